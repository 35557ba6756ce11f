"""The Pareto front of a sweep, and the tables that show it."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ikd_ray.analysis.configurations import by_seed, contenders
from ikd_ray.analysis.objectives import Objectives, main_metric
from ikd_ray.formatting import null_nonfinite
from ikd_ray.records import SweepRecord, TrialRecord

Members = list[tuple[TrialRecord, dict[str, float]]]  # with the objectives that count


def pareto_front(trials: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The finished trials that no other one dominates; of a configuration that was run with several seeds one at most.

    One trial dominates another if it is at least as good in every objective and better in one. A trial that
    lacks an objective, or has one that is not finite, takes no part. Of trials equal in every objective the
    one with the lowest number stays.

    Trials whose parameters differ in nothing but the seed are one configuration. Their mean objectives count, so that
    no lucky seed is on the front, and the trial whose main metric is nearest to its mean stands for them, of equals
    the one with the lowest number. Who takes part: `contenders`.

    Args:
        objectives: metric -> direction; at least one.

    Returns:
        The smallest first, by the first "min" objective; without one, the best first by the first objective.
    """
    return [trial for trial, _ in front_candidates(trials, objectives)]


def front_candidates(trials: Sequence[TrialRecord], objectives: Objectives) -> Members:
    """The `front`, and for each member the objectives that put it there: its own, or its configuration's means."""
    best: dict[tuple[float, ...], tuple[TrialRecord, dict[str, float]]] = {}
    for trial, values in sorted(candidates(trials, objectives), key=lambda candidate: candidate[0].number):
        costs = tuple(values[name] * (1 if way == "min" else -1) for name, way in objectives.items())
        best.setdefault(costs, (trial, values))
    front = [costs for costs in best if not any(_dominates(other, costs) for other in best)]
    directions = list(objectives.values())
    leading = directions.index("min") if "min" in directions else 0
    front.sort(key=lambda costs: (costs[leading], best[costs][0].number))
    return [best[costs] for costs in front]


def candidates(trials: Sequence[TrialRecord], objectives: Objectives) -> Members:
    """Who takes part in a choice, see `front`, with the objectives that count: a trial's own, or means over seeds."""

    def values(trial: TrialRecord) -> dict[str, float]:
        return {name: trial.metrics.get(name, math.nan) for name in objectives}

    def able(trial: TrialRecord) -> bool:
        return trial.status == "finished" and all(map(math.isfinite, values(trial).values()))

    found: Members = []
    for own in contenders(trials, able):
        seeds = list(by_seed(own).values())
        if len(seeds) == 1:
            found += [(trial, values(trial)) for trial in own]
        else:
            means = {name: _mean([trial.metrics[name] for trial in seeds]) for name in objectives}
            found.append((_nearest(seeds, main_metric(objectives), means), means))
    return found


def _mean(values: Sequence[float]) -> float:
    """Of equal values, such as sizes, the value itself, to the last digit."""
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def _nearest(trials: Sequence[TrialRecord], metric: str, means: Mapping[str, float]) -> TrialRecord:
    return min(trials, key=lambda trial: (abs(trial.metrics[metric] - means[metric]), trial.number))


def _dominates(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


def pareto_content(sweep: SweepRecord, members: Members) -> dict[str, Any]:
    """What `pareto.json` holds; `members` is the sweep's front, in its order, with `front_candidates`' objectives."""
    return {
        "sweep": sweep.name,
        "task": sweep.task,
        "data": sweep.data["description"],
        "generated": sweep.data["generated"],
        "teacher": {"name": sweep.teacher["name"], "metrics": null_nonfinite(sweep.teacher["metrics"])},
        "objectives": dict(sweep.objectives),
        "front": [_member(trial, values) for trial, values in members],
    }


def _member(trial: TrialRecord, values: Mapping[str, float]) -> dict[str, Any]:
    own = {"id": trial.id, "number": trial.number, "params": trial.params}
    own |= {"objectives": dict(values), "metrics": null_nonfinite(trial.metrics)}
    return own | ({"method": trial.method, "again": trial.retrained} if trial.method else {})


def trials_table(trials: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """One row a trial, all with the same columns; None where a trial lacks a parameter or metric.

    Columns: id, number, status, on_front, where methods are compared method and again, every parameter, every final
    metric, duration_s, reason.
    """
    compared = any(trial.method for trial in trials)
    params = dict.fromkeys(name for trial in trials for name in trial.params)
    metrics = sorted({name for trial in trials for name in trial.metrics})
    on_front = {trial.id for trial in members}
    return [
        {"id": trial.id, "number": trial.number, "status": trial.status, "on_front": trial.id in on_front}
        | ({"method": trial.method, "again": trial.retrained} if compared else {})
        | {name: trial.params.get(name) for name in params}
        | {name: trial.metrics.get(name) for name in metrics}
        | {"duration_s": trial.duration_s, "reason": trial.reason}
        for trial in trials
    ]


def trials_csv(trials: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> str:
    """`trials_table` as CSV, floats at full precision. Without a trial it is the fixed columns' header alone."""
    rows = trials_table(trials, members)
    fixed = ["id", "number", "status", "on_front", "duration_s", "reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else fixed)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
