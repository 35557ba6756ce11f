"""Means with their confidence intervals, of one method and of the difference of two."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ROUNDING = 1e-9  # what equal differences spread in their last digits


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its confidence interval; nan of each that the values do not give."""

    mean: float
    half: float  # nan of less than two values
    count: int  # values

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval, of three values at least that are not all equal, and zero is not in it."""
        return self.count > 2 and self.half > ROUNDING and abs(self.mean) > self.half  # nan: never


def mean_interval(values: Iterable[float]) -> Estimate:
    """The mean of a sample and the 95% confidence interval of the mean that it was drawn around.

    mean ± t(0.975, n - 1) * s / sqrt(n), with s the sample's standard deviation (n - 1 in its denominator) and t the
    quantile of Student's distribution: Student, "The Probable Error of a Mean", Biometrika 6 (1908). It holds for
    values that are independent and about normal.

    Args:
        values: of which those that are not finite count for nothing.
    """
    known = np.array([value for value in values if math.isfinite(value)], dtype=float)
    if not known.size:
        return Estimate(math.nan, math.nan, 0)
    mean = float(known.mean())
    if known.size < 2:
        return Estimate(mean, math.nan, 1)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, known.size - 1)
    return Estimate(mean, float(quantile * stats.sem(known)), known.size)


def paired_difference(ones: Mapping[Hashable, float], others: Mapping[Hashable, float]) -> Estimate:
    """The mean of `ones` less `others` over the keys that both have, with its 95% confidence interval.

    It is `mean_interval` of the differences, the interval of the paired t-test: what a key, such as a seed, does to
    both alike cancels out.

    Args:
        ones, others: value by key; a key whose value is not finite in either counts for nothing.
    """
    return mean_interval(value - others[key] for key, value in ones.items() if key in others)
