"""A sweep with its trials, as the report shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikd_ray import records
from ikd_ray.analysis.dataframes import trials_frame
from ikd_ray.analysis.objectives import direction, finished_with, selection_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.recommendation import Recommendation, recommend
from ikd_ray.config import make_trial
from ikd_ray.errors import UsageError
from ikd_ray.records import TRIAL_FILE, Direction, SweepRecord, TrialRecord
from ikd_ray.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

ATTENTION_KL, AGREEMENT = "dev/attention_kl", "dev/teacher_agreement"

NOT_SEARCHED = ("regime", "student_layers", "seed")
"""Parameters that are shown by themselves, or are no choice of the search."""

_LAYERWISE = {"soft_labels", "epochs_per_layer", "cosine_threshold", "train", "top_trains"}
_INTERNAL = {"internal_losses", "internal_weight", *_LAYERWISE}
UNUSED_PARAMS = {
    "hard": {"temperature", "lambda", "unlabelled_fraction", *_INTERNAL},
    "kd": _INTERNAL,
    "id": _LAYERWISE,
}
"""Parameters that the stages of a regime do not depend on (`ikd_ray.distill.regimes`)."""


def used_params(trial: TrialRecord) -> dict[str, Any]:
    """Return the parameters that a trial's regime depends on, with their values."""
    unused = UNUSED_PARAMS.get(trial.params["regime"], ())
    return {name: value for name, value in trial.params.items() if name not in unused}


@dataclass(frozen=True)
class SweepAnalysis:
    """A sweep, its ended trials, and the trials that are shown in detail."""

    folder: Path
    sweep: SweepRecord
    task: Task
    trials: list[TrialRecord]  # all that have ended
    finished: list[TrialRecord]  # whose main metric is finite on dev and on the selection split

    @property
    def metric(self) -> str:
        """The task's main metric on the dev split."""
        return f"dev/{self.task.metric}"

    @property
    def selection_metric(self) -> str:
        """The main metric on the split that students are chosen by: dev, or a held-out part of the training set."""
        return selection_metric(self.sweep, self.task.metric)

    def direction(self, metric: str) -> Direction:
        """Return whether more or less of a metric is better."""
        return direction(metric, self.sweep.objectives)

    @property
    def teacher_score(self) -> float:
        """The teacher's main metric on the dev split; nan if it is not known."""
        return self.sweep.teacher["metrics"].get(self.metric, math.nan)

    def with_teacher_sizes(self, sizes: Mapping[str, float]) -> SweepAnalysis:
        """Return the analysis with the teacher's sizes, where its record, of an earlier version, has none."""
        teacher = {"sizes": dict(sizes)} | self.sweep.teacher
        return replace(self, sweep=replace(self.sweep, teacher=teacher))

    @property
    def has_methods(self) -> bool:
        """True if the sweep's space compares methods."""
        return any(trial.method for trial in self.finished)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per ended trial: `trials_frame`, in which `ATTENTION_KL` and `AGREEMENT` are always present.

        Further columns: `finished`; `on_front`; `group`, the method, or the regime where methods are not compared;
        `is_standard`, whether it is standard distillation by the teacher itself.
        """
        frame = trials_frame(self.trials)
        return frame.assign(
            finished=frame.index.isin([trial.id for trial in self.finished]),
            on_front=frame.index.isin([trial.id for trial in self.front]),
            group=frame["method" if self.has_methods else "regime"],
            is_standard=(frame["regime"] == "kd") & (frame["assistant_layers"] == 0),
            **{name: frame.get(name, math.nan) for name in (ATTENTION_KL, AGREEMENT)},
        )

    @property
    def finished_frame(self) -> pd.DataFrame:
        """The rows of `frame` of finished trials."""
        return self.frame[self.frame["finished"]]

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The Pareto front, as far as its main metric is finite, by size."""
        return [trial for trial in pareto_front(self.trials, self.sweep.objectives) if trial in self.finished]

    @cached_property
    def best(self) -> TrialRecord:
        """The best trial of the front by the selection metric."""
        return self.best_of(self.front or self.finished)

    @cached_property
    def baseline(self) -> TrialRecord | None:
        """The best student of standard distillation by the teacher itself, compared as on the front."""
        standard = [trial for trial in self.trials if self.frame["is_standard"][trial.id]]
        best = pareto_front(standard, {self.selection_metric: self.direction(self.selection_metric)})
        return next((trial for trial in best if trial in self.finished), None)

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The student to take if nothing else decides; None where the objectives do not tell."""
        return recommend(self.sweep, self.trials)

    def front_sample(self, most: int) -> list[TrialRecord]:
        """Return at most so many members of the front, the recommended one first, then evenly spaced ones by size."""
        found = self.recommendation
        members = sorted(self.front, key=lambda trial: found is None or trial.id != found.trial.id)
        if len(members) <= most:
            return members
        others = members[1:]
        step = (len(others) - 1) / max(1, most - 2)
        return [members[0], *(others[round(step * place)] for place in range(most - 1))]

    @cached_property
    def highlighted(self) -> list[TrialRecord]:
        """The front's members, then the best trial of each regime."""
        regimes = dict.fromkeys(trial.params["regime"] for trial in self.finished)
        best = [
            self.best_of([trial for trial in self.finished if trial.params["regime"] == regime])
            for regime in regimes
        ]
        return [*self.front, *(trial for trial in best if trial not in self.front)]

    def best_of(self, trials: Sequence[TrialRecord]) -> TrialRecord:
        """Return the best trial by the selection metric; of equals the one that was suggested first."""
        sign = 1 if self.direction(self.selection_metric) == "max" else -1
        return max(trials, key=lambda trial: (sign * trial.metrics[self.selection_metric], -trial.number))

    @cached_property
    def varied_params(self) -> list[str]:
        """Parameters in which the finished trials differ, other than `NOT_SEARCHED`."""
        names = dict.fromkeys(name for trial in self.finished for name in trial.params)
        return [
            name
            for name in names
            if name not in NOT_SEARCHED and len({str(trial.params.get(name)) for trial in self.finished}) > 1
        ]


def open_analysis(folder: Path) -> SweepAnalysis:
    """Read the sweep in a folder.

    Raises:
        UsageError: there is no sweep, a record cannot be read, or no trial has finished.
    """
    sweep = records.read_sweep(folder)
    task = records.read_task(folder)
    trials = records.read_trials(folder)
    metric = f"dev/{task.metric}"
    finished = finished_with(trials, {metric, selection_metric(sweep, task.metric)})
    if not finished:
        raise UsageError(f"{folder}: no trial of it has finished with a {metric} that is a number")
    for trial in finished:
        try:
            make_trial(trial.params)
        except UsageError as error:
            raise UsageError(f"{folder}: {TRIAL_FILE} of {trial.id}: {error}") from None
    return SweepAnalysis(folder, sweep, task, trials, finished)
