"""The student that the one-standard-error rule recommends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ikd_ray.analysis.objectives import SELECTION_SPLITS, SIZE, direction, main_metric
from ikd_ray.analysis.pareto import Candidate, front_candidates
from ikd_ray.formatting import decimal, metric_title
from ikd_ray.records import SweepRecord, TrialRecord


@dataclass(frozen=True)
class Recommendation:
    """The smallest student of the front that is as good as the best one, as far as the examples can tell.

    Attributes:
        trial: the recommended one.
        best: the front's best one by the main metric.
        metric: the main metric, with its split.
        standard_error: of the best one's metric, over examples of the split; 0 where it is not known.
        value, best_value: what was compared, of a configuration with several seeds the mean over them.
    """

    trial: TrialRecord
    best: TrialRecord
    metric: str
    standard_error: float
    value: float
    best_value: float

    @property
    def reason(self) -> str:
        """The rule's result in words."""
        title = metric_title(self.metric)
        if self.trial.id == self.best.id:
            return f"the best {title}, and no smaller student of the front is within one standard error of it"
        return (
            f"the smallest student whose {title} ({decimal(self.value)}) is within one standard error "
            f"({decimal(self.standard_error)}) of the best one's ({decimal(self.best_value)}, "
            f"{len(self.best.layer_map)} layers)"
        )


def recommend(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> Recommendation | None:
    """Return the student to take by the one-standard-error rule; None where no student has a main metric on a split.

    Breiman, Friedman, Olshen and Stone (Classification and Regression Trees, 1984, section 3.4.3) take the simplest
    model whose error is within one standard error of the least one: a difference that other examples would undo is no
    reason for a larger model.
    """
    metric, front = main_metric(sweep.objectives), front_candidates(trials, sweep.objectives)
    if not front or not metric.startswith(SELECTION_SPLITS):
        return None
    sign = 1 if direction(metric, sweep.objectives) == "max" else -1
    best = max(front, key=lambda member: (sign * member.objectives[metric], -_size(member)))
    error = standard_error(metric, best.objectives[metric], _examples(sweep, metric))
    limit = sign * best.objectives[metric] - error
    near = [member for member in front if sign * member.objectives[metric] >= limit]
    found = min(near, key=lambda member: (_size(member), -sign * member.objectives[metric]))
    values = found.objectives[metric], best.objectives[metric]
    return Recommendation(found.trial, best.trial, metric, error, *values)


def standard_error(metric: str, value: float, examples: int) -> float:
    """Return the approximate standard error of a metric over examples; 0 of a metric or a number that is not known.

    That of a proportion for accuracy, and as an approximation for F1: sqrt(v (1 - v) / n). That of Pearson's
    correlation for mcc, which is one of two labels, for pearson and for spearman: (1 - v^2) / sqrt(n - 1).
    """
    if examples < 2:
        return 0.0
    match metric.rpartition("/")[2]:
        case "accuracy" | "f1" | "macro_f1":
            return math.sqrt(max(value * (1 - value), 0.0) / examples)
        case "mcc" | "pearson" | "spearman":
            return (1 - value**2) / math.sqrt(examples - 1)
    return 0.0


def _examples(sweep: SweepRecord, metric: str) -> int:
    counts = sweep.data.get("truncated") or {}  # which has the numbers of all examples, too
    return counts.get(metric.partition("/")[0], {}).get("examples", 0)


def _size(member: Candidate) -> float:
    return member.trial.metrics.get(SIZE, math.inf)
