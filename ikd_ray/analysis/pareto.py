"""The Pareto front of a sweep, and the content of pareto.json and trials.csv."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ikd_ray.analysis.dataframes import eligible_runs, one_per_seed, trials_frame
from ikd_ray.analysis.objectives import Objectives, finished_with, main_metric
from ikd_ray.formatting import null_nonfinite
from ikd_ray.records import SweepRecord, TrialRecord


class Candidate(NamedTuple):
    """A trial with the objective values that it is compared by: its own, or its configuration's means over seeds."""

    trial: TrialRecord
    objectives: dict[str, float]


def pareto_front(trials: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """Return the Pareto-optimal finished trials, at most one for each configuration that has several seeds.

    A trial dominates another if it is at least as good in every objective and better in one. A trial that lacks an
    objective, or whose value is not finite, is ignored. Of trials equal in every objective the one with the lowest
    number is kept.

    A configuration with several seeds is compared by its mean objectives, so that no lucky seed is on the front; the
    trial whose main metric is nearest to the mean represents it. `eligible_runs` says which trials are compared.

    The front is sorted by its first "min" objective, smallest first; without one, by the first objective, best first.
    """
    return [candidate.trial for candidate in front_candidates(trials, objectives)]


def front_candidates(trials: Sequence[TrialRecord], objectives: Objectives) -> list[Candidate]:
    """Return the members of `pareto_front` with the objective values that they were compared by."""
    best: dict[tuple[float, ...], Candidate] = {}
    for candidate in sorted(candidates(trials, objectives), key=lambda candidate: candidate.trial.number):
        values = candidate.objectives
        costs = tuple(values[name] if objectives[name] == "min" else -values[name] for name in objectives)
        best.setdefault(costs, candidate)
    front: list[tuple[float, ...]] = []
    for costs in sorted(best):  # what dominates costs is before them, and is dominated itself or on the front
        if not any(_dominates(other, costs) for other in reversed(front)):
            front.append(costs)
    directions = list(objectives.values())
    leading = directions.index("min") if "min" in directions else 0
    front.sort(key=lambda costs: (costs[leading], best[costs].trial.number))
    return [best[costs] for costs in front]


def candidates(trials: Sequence[TrialRecord], objectives: Objectives) -> list[Candidate]:
    """Return the trials that `pareto_front` compares, one for each configuration that has several seeds."""
    records = {trial.id: trial for trial in trials}
    frame = trials_frame(trials)
    usable = [trial.number for trial in finished_with(trials, objectives)]
    runs = eligible_runs(frame, frame["number"].isin(usable), ["method"])
    groups = ["method", "configuration"]
    num_seeds = runs.groupby(groups)["seed"].transform("nunique")
    alone = [records[name] for name in runs.index[num_seeds == 1]]
    compared = [Candidate(trial, {name: trial.metrics[name] for name in objectives}) for trial in alone]
    for _, seeds in one_per_seed(runs[num_seeds > 1], ["method"]).groupby(groups):
        trials = [records[name] for name in seeds.index]
        means = {name: _mean([trial.metrics[name] for trial in trials]) for name in objectives}
        compared.append(Candidate(_nearest(trials, main_metric(objectives), means), means))
    return compared


def _mean(values: Sequence[float]) -> float:
    """Return the mean; of equal values, such as sizes, exactly that value."""
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def _nearest(trials: Sequence[TrialRecord], metric: str, means: Mapping[str, float]) -> TrialRecord:
    return min(trials, key=lambda trial: (abs(trial.metrics[metric] - means[metric]), trial.number))


def _dominates(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


def pareto_content(sweep: SweepRecord, members: Sequence[Candidate]) -> dict[str, Any]:
    """Return the content of pareto.json, given the front as `front_candidates` returns it."""
    return {
        "sweep": sweep.name,
        "task": sweep.task,
        "data": sweep.data["description"],
        "generated": sweep.data["generated"],
        "teacher": {"name": sweep.teacher["name"], "metrics": null_nonfinite(sweep.teacher["metrics"])},
        "objectives": dict(sweep.objectives),
        "front": [
            {"id": trial.id, "number": trial.number, "params": trial.params}
            | {"objectives": dict(values), "metrics": null_nonfinite(trial.metrics)}
            | _method(trial, bool(trial.method))
            for trial, values in members
        ],
    }


def _method(trial: TrialRecord, shown: bool) -> dict[str, Any]:
    return {"method": trial.method, "again": trial.retrained} if shown else {}


def trials_csv(trials: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> str:
    """Return trials.csv: the rows of `trial_rows`, floats at full precision, a missing value as an empty cell.

    Without a trial the text is the header of the columns that are always there.
    """
    rows, text = trial_rows(trials, members), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ALWAYS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


ALWAYS = ("id", "number", "status", "on_front", "duration_s", "reason")
"""Columns of `trial_rows` that are always there."""


def trial_rows(trials: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Return one row per trial, all with the same columns; None is a missing value.

    Columns: id, number, status, on_front; method and again if methods are compared; every parameter; every final
    metric; duration_s, reason.
    """
    has_methods = any(trial.method for trial in trials)
    params = dict.fromkeys(name for trial in trials for name in trial.params)
    metrics = sorted({name for trial in trials for name in trial.metrics})
    on_front = {trial.id for trial in members}
    return [
        {"id": trial.id, "number": trial.number, "status": trial.status, "on_front": trial.id in on_front}
        | _method(trial, has_methods)
        | {name: trial.params.get(name) for name in params}
        | {name: trial.metrics.get(name) for name in metrics}
        | {"duration_s": trial.duration_s, "reason": trial.reason}
        for trial in trials
    ]
