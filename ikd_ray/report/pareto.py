"""The Pareto front of a sweep, and the tables that show it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ikd_ray.report.records import Direction, SweepRecord, TrialRecord

Objectives = Mapping[str, Direction]

SELECTING = ("dev/", "holdout/")
"""How the names of metrics begin that students may be compared by: a sweep has objectives on one of the splits."""

GENERATED = "GENERATED corpus, not CoLA"
"""Shown wherever a result of the embedded corpus is."""


def front(trials: Sequence[TrialRecord], objectives: Objectives) -> list[TrialRecord]:
    """The finished trials that no other one dominates.

    One trial dominates another if it is at least as good in every objective and better in one. A trial that
    lacks an objective, or has one that is not finite, takes no part. Of trials equal in every objective the
    one with the lowest number stays.

    Args:
        objectives: metric -> direction; at least one.

    Returns:
        The smallest first, by the first "min" objective; without one, the best first by the first objective.
    """
    candidates: dict[tuple[float, ...], TrialRecord] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        costs = _costs(trial, objectives)
        if trial.status == "finished" and all(map(math.isfinite, costs)):
            candidates.setdefault(costs, trial)
    best = [costs for costs in candidates if not any(_dominates(other, costs) for other in candidates)]
    directions = list(objectives.values())
    leading = directions.index("min") if "min" in directions else 0
    best.sort(key=lambda costs: (costs[leading], candidates[costs].number))
    return [candidates[costs] for costs in best]


def main_metric(objectives: Mapping[str, str]) -> str:
    """What students are compared by: the first objective on the split that selects, else the first."""
    return next((name for name in objectives if name.startswith(SELECTING)), next(iter(objectives)))


def _costs(trial: TrialRecord, objectives: Objectives) -> tuple[float, ...]:
    """The trial's objectives with signs that make less better; nan where it has none."""
    values = ((trial.metrics.get(name, math.nan), direction) for name, direction in objectives.items())
    return tuple(value if direction == "min" else -value for value, direction in values)


def _dominates(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


def json_ready(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """The metrics with null for what JSON cannot write: nan and infinities."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def pareto_content(sweep: SweepRecord, members: Sequence[TrialRecord]) -> dict[str, Any]:
    """What `pareto.json` holds; `members` is the sweep's front, in its order."""
    return {
        "sweep": sweep.name,
        "task": sweep.task,
        "data": sweep.data["description"],
        "generated": sweep.data["generated"],
        "teacher": {"name": sweep.teacher["name"], "metrics": json_ready(sweep.teacher["metrics"])},
        "objectives": dict(sweep.objectives),
        "front": [_member(trial) for trial in members],
    }


def _member(trial: TrialRecord) -> dict[str, Any]:
    metrics = json_ready(trial.metrics)
    return {"id": trial.id, "number": trial.number, "params": trial.params, "metrics": metrics}


def trials_table(trials: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """One row a trial, all with the same columns; None where a trial lacks a parameter or metric.

    Columns: id, number, status, on_front, every parameter, every final metric, duration_s, reason.
    """
    params = dict.fromkeys(name for trial in trials for name in trial.params)
    metrics = sorted({name for trial in trials for name in trial.metrics})
    on_front = {trial.id for trial in members}
    return [
        {"id": trial.id, "number": trial.number, "status": trial.status, "on_front": trial.id in on_front}
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
