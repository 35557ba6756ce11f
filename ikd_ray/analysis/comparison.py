"""Which methods a sweep compares, and which trials speak for each of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ikd_ray.analysis.configurations import by_seed, contenders, have_seeds
from ikd_ray.analysis.intervals import Estimate, mean_interval, paired_difference
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.config import sort_regimes
from ikd_ray.records import TrialRecord

Runs = Mapping[Any, TrialRecord]  # of one configuration, by seed


def is_made(subject: SweepAnalysis) -> bool:
    """Whether there is something to compare with intervals, or methods to compare at all."""
    return has_methods(subject) or have_seeds(subject.finished)


def has_methods(subject: SweepAnalysis) -> bool:
    return any(trial.method for trial in subject.finished)


def of_methods(subject: SweepAnalysis, trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """The trials of each method in the order that these were begun in; where there are none, of each regime."""
    if has_methods(subject):
        names = list(dict.fromkeys(trial.method for trial in trials if trial.method))
        return {name: [trial for trial in trials if trial.method == name] for name in names}
    regimes = sort_regimes([trial.params["regime"] for trial in trials])
    return {name: [trial for trial in trials if trial.params["regime"] == name] for name in regimes}


def best_configuration(subject: SweepAnalysis, trials: Sequence[TrialRecord]) -> Runs:
    """Of a method's ended trials those of its best configuration: by the mean of what students were chosen by, over
    seeds, of those that take part (`contenders`); none where none finished. Of equals the one that was suggested first.
    """
    metric = subject.chosen_by

    def worth(runs: Runs) -> float:
        mean = estimate(runs, metric).mean
        return subject.sign * mean if math.isfinite(mean) else -math.inf

    finished = {trial.id for trial in subject.finished}
    groups = contenders(trials, lambda trial: trial.id in finished)
    return max(map(by_seed, groups), key=worth, default={})


def is_baseline(runs: Runs) -> bool:
    """Whether it is standard distillation by the teacher itself."""
    params = [trial.params for trial in runs.values()]
    return any(it["regime"] == "kd" and not it.get("assistant_layers") for it in params)


def values(runs: Runs, metric: str) -> dict[Any, float]:
    """A metric by seed; nan where it is not known."""
    return {seed: trial.metrics.get(metric, math.nan) for seed, trial in runs.items()}


def estimate(runs: Runs, metric: str) -> Estimate:
    return mean_interval(values(runs, metric).values())


def difference(ones: Runs, others: Runs, metric: str) -> Estimate:
    """Of the first less the second, paired by seed."""
    return paired_difference(values(ones, metric), values(others, metric))


def winner(rows: Mapping[str, Mapping[Any, float]], sign: int = 1) -> str | None:
    """The row with the best mean, if the paired 95% interval of its difference to every other one excludes 0.

    Args:
        rows: values by seed; rows without any are no rivals.
        sign: 1 where more is better, else -1.
    """
    means = {name: mean_interval(row.values()).mean for name, row in rows.items()}
    rivals = [name for name, mean in means.items() if math.isfinite(mean)]
    if len(rivals) < 2:
        return None
    best = max(rivals, key=lambda name: sign * means[name])
    differences = [paired_difference(rows[best], rows[name]) for name in rivals if name != best]
    return best if all(it.excludes_zero and sign * it.mean > 0 for it in differences) else None
