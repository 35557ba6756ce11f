"""The recommended student of a sweep, with MLflow's alias `champion`, and the main numbers of the sweep's front."""

from __future__ import annotations

from collections.abc import Sequence

from ikd_ray.analysis.objectives import dev_metric, direction, main_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.recommendation import recommend
from ikd_ray.records import SweepRecord, TrialRecord, metrics_on_test

HEADLINE = ("student/params", "student/latency_ms", "dev/teacher_agreement")
"""Metrics of the champion that the sweep's run has, besides the objectives."""


def choose_champion(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the recommended member of the Pareto front of all trials; None where the front is empty.

    Without a recommendation, where no objective is on a split, it is the best one by the main metric.
    """
    if found := recommend(sweep, trials):
        return found.trial
    front = pareto_front(trials, sweep.objectives)
    metric = main_metric(sweep.objectives)
    sign = -1 if direction(metric, sweep.objectives) == "min" else 1
    return max(front, key=lambda trial: sign * trial.metrics[metric], default=None)


def headline_metrics(sweep: SweepRecord, num_students: int, champion: TrialRecord) -> dict[str, float]:
    """Return the size of the front, and the champion's main numbers beside the teacher's, as the sweep's run has them.

    They are `front/students`, `champion/<metric>` and `teacher/<metric>`, metrics on the test set among them.
    """
    tested = metrics_on_test(sweep.teacher["metrics"])
    names = dict.fromkeys([*sweep.objectives, *map(dev_metric, sweep.objectives), *HEADLINE, *tested])
    teacher = sweep.teacher_metrics
    return {
        "front/students": float(num_students),
        **{f"champion/{name}": champion.metrics[name] for name in names if name in champion.metrics},
        **{f"teacher/{name}": teacher[name] for name in names if name in teacher},
    }
