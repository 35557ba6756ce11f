"""The metric that students are compared by, and whether more or less of a metric is better."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from ikd_ray.data.dataset import TEST
from ikd_ray.records import Direction, SweepRecord, TrialRecord

Objectives = Mapping[str, Direction]

SIZE, LATENCY = "student/params", "student/latency_ms"

SELECTION_SPLITS = ("dev/", "holdout/")
"""Prefixes of the metrics that students may be compared by; a sweep has objectives on one of the two splits."""


def main_metric(objectives: Collection[str]) -> str:
    """Return the first objective on a selection split, or else the first objective."""
    return next((name for name in objectives if name.startswith(SELECTION_SPLITS)), next(iter(objectives)))


def task_metric(objectives: Objectives, teacher_metrics: Collection[str]) -> str | None:
    """Return the metric by which a table ranks students beside their teacher; None if the teacher has no metric.

    It is the first objective that the teacher was scored on as well; without one, the teacher's first held-out metric,
    or else its first metric.
    """
    shared = [name for name in objectives if name in teacher_metrics]
    held_out = [name for name in teacher_metrics if name.startswith("holdout/")]
    return next(iter([*shared, *held_out, *teacher_metrics]), None)


def selection_metric(sweep: SweepRecord, task_metric: str) -> str:
    """Return the metric, with its split, that configurations and students are chosen by.

    It is the main objective; where no objective is on a selection split, `task_metric`, a name without a split.
    """
    main = main_metric(sweep.objectives)
    metric = main if main.startswith(SELECTION_SPLITS) else task_metric
    return f"{sweep.data.get('selection', 'dev')}/{metric.rpartition('/')[2]}"


def dev_metric(metric: str) -> str:
    """Return the name that a held-out metric has on the dev split; other names are returned unchanged."""
    return metric.replace("holdout/", "dev/")


def metric_on_test(metric: str) -> str:
    """Return the name that a metric of any split has on the test set."""
    return f"{TEST}/{metric.rpartition('/')[2]}"


def direction(metric: str, objectives: Objectives) -> Direction:
    """Return whether more ("max") or less ("min") of a metric is better.

    The objective of that name decides, whichever split it is on; any other metric is to be maximised.
    """
    directions = {dev_metric(name): value for name, value in objectives.items()}
    return directions.get(dev_metric(metric), "max")


def finished_with(trials: Iterable[TrialRecord], metrics: Collection[str]) -> list[TrialRecord]:
    """Return the finished trials that have a finite value of each of the metrics."""
    finished = (trial for trial in trials if trial.status == "finished")
    return [
        trial
        for trial in finished
        if all(math.isfinite(trial.metrics.get(name, math.nan)) for name in metrics)
    ]


def plotted_objectives(objectives: Objectives) -> Objectives:
    """Return the objectives that pareto.png shows: the horizontal and the vertical one.

    The vertical one is the main metric; the horizontal one is the number of parameters if that is an objective or there
    is no other, else the first other objective.
    """
    vertical = main_metric(objectives)
    others = [name for name in objectives if name != vertical]
    horizontal = SIZE if SIZE in others or not others else others[0]
    directions: dict[str, Direction] = {SIZE: "min", **objectives}
    return {horizontal: directions[horizontal], vertical: directions[vertical]}
