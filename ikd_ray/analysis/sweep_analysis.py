"""A sweep as its figures see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ikd_ray import records
from ikd_ray.analysis.intervals import Estimate
from ikd_ray.analysis.objectives import direction, selection_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.config import make_trial
from ikd_ray.errors import UsageError
from ikd_ray.formatting import clean
from ikd_ray.records import TRIAL_FILE, Direction, SweepRecord, TrialRecord
from ikd_ray.tasks import Task

NOT_SEARCHED = ("regime", "student_layers", "seed")  # named elsewhere, or no choice

# What a regime's stages do not read (`ikd_ray.distill.regimes`).
_LAYERWISE = {"soft_labels", "epochs_per_layer", "cosine_threshold", "train", "top_trains"}
_INTERNAL = {"internal_losses", "internal_weight", *_LAYERWISE}
IDLE = {"hard": {"temperature", "lambda", *_INTERNAL}, "kd": _INTERNAL, "id": _LAYERWISE}


@dataclass(frozen=True)
class SweepAnalysis:
    """A sweep, its trials, and which of them are looked at closely."""

    folder: Path
    sweep: SweepRecord
    task: Task
    trials: list[TrialRecord]  # all that have ended
    finished: list[TrialRecord]  # those whose main metric is finite, on dev and where they are chosen

    @property
    def metric(self) -> str:
        """The task's main metric on the dev set."""
        return f"dev/{self.task.metric}"

    @property
    def chosen_by(self) -> str:
        """The main metric on the split that students are chosen by: dev, or the training set's held-out part."""
        return selection_metric(self.sweep, self.task.metric)

    @property
    def sign(self) -> int:
        """1 where more of what students are chosen by is better, else -1."""
        return self.sign_of(self.chosen_by)

    def sign_of(self, metric: str) -> int:
        """1 where more of a metric is better, else -1."""
        return 1 if self.direction(metric) == "max" else -1

    def direction(self, metric: str) -> Direction:
        """Return whether more or less of a metric is better."""
        return direction(metric, self.sweep.objectives)

    @property
    def taught(self) -> float:
        """The teacher's main metric; nan where it is not known."""
        return self.sweep.teacher["metrics"].get(self.metric, math.nan)

    @cached_property
    def front(self) -> list[TrialRecord]:
        """Its members, by size, whose main metric is finite too."""
        on_front = pareto_front(self.trials, self.sweep.objectives)
        return [trial for trial in on_front if trial in self.finished]

    @cached_property
    def best(self) -> TrialRecord:
        """The front's best by the main metric."""
        return self.best_of(self.front or self.finished)

    @cached_property
    def baseline(self) -> TrialRecord | None:
        """The best student of standard distillation by the teacher itself, as on the front: by means over seeds."""
        own = [
            trial
            for trial in self.trials
            if trial.params["regime"] == "kd" and not trial.params.get("assistant_layers")
        ]
        ways = {self.chosen_by: self.direction(self.chosen_by)}
        return next((trial for trial in pareto_front(own, ways) if trial in self.finished), None)

    @cached_property
    def closely(self) -> list[TrialRecord]:
        """The front's members, and the best of each regime."""
        regimes = dict.fromkeys(trial.params["regime"] for trial in self.finished)
        best = [
            self.best_of([trial for trial in self.finished if trial.params["regime"] == regime])
            for regime in regimes
        ]
        return [*self.front, *(trial for trial in best if trial not in self.front)]

    def best_of(self, trials: Sequence[TrialRecord]) -> TrialRecord:
        """By the metric that students are chosen by; of equals the one that was suggested first."""
        return max(trials, key=lambda trial: (self.sign * trial.metrics[self.chosen_by], -trial.number))

    @cached_property
    def varied(self) -> list[str]:
        """Parameters, regime and depth aside, in which the trials differ."""
        names = dict.fromkeys(name for trial in self.finished for name in trial.params)
        return [
            name
            for name in names
            if name not in NOT_SEARCHED and len({str(trial.params.get(name)) for trial in self.finished}) > 1
        ]


def open_analysis(folder: Path) -> SweepAnalysis:
    """The sweep in a folder.

    Raises:
        UsageError: there is none, a record cannot be read, or no trial has finished.
    """
    sweep = records.read_sweep(folder)
    task = records.read_task(folder)
    trials = records.read_trials(folder)
    metric = f"dev/{task.metric}"
    needed = {metric, selection_metric(sweep, task.metric)}
    finished = [
        trial
        for trial in trials
        if trial.status == "finished"
        and all(math.isfinite(trial.metrics.get(name, math.nan)) for name in needed)
    ]
    if not finished:
        raise UsageError(f"{folder}: no trial of it has finished with a {metric} that is a number")
    for trial in finished:
        try:
            make_trial(trial.params)
        except UsageError as error:
            raise UsageError(f"{folder}: {TRIAL_FILE} of {trial.id}: {error}") from None
    return SweepAnalysis(folder, sweep, task, trials, finished)


def depth(trial: TrialRecord) -> int:
    """Its encoder layers."""
    return len(trial.layer_map)


def title(trial: TrialRecord) -> str:
    """`t003 (sid, 3 layers)`."""
    layers = depth(trial)
    return f"{clean(trial.id)} ({trial.params['regime']}, {layers} layer{'s' * (layers != 1)})"


def number(value: float | None, form: str = ".3f") -> str:
    """A value, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def interval(estimate: Estimate, form: str = ".3f") -> str:
    """`0.412 ± 0.013`; the mean alone where there is no interval."""
    half = f" ± {format(estimate.half, form.lstrip('+'))}" if math.isfinite(estimate.half) else ""
    return number(estimate.mean, form) + half
