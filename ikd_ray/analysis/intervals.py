"""Means with their confidence intervals, of one sample and of paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Half widths below this come from the rounding of equal differences."""


@dataclass(frozen=True)
class Interval:
    """A sample's mean and half the width of the mean's confidence interval."""

    mean: float  # nan of an empty sample
    half_width: float  # nan of fewer than two values
    count: int

    @property
    def excludes_zero(self) -> bool:
        """True if zero is outside the interval; False for fewer than three values and for equal ones."""
        return self.count > 2 and self.half_width > ROUNDING and abs(self.mean) > self.half_width


def t_interval(values: Iterable[float]) -> Interval:
    """Return the mean of the finite values and the 95% confidence interval of the population mean.

    mean ± t(0.975, n - 1) * s / sqrt(n), where s / sqrt(n) is the standard error of the mean, s the sample standard
    deviation (n - 1 in its denominator), and t the quantile of Student's distribution: Student, "The Probable Error of
    a Mean", Biometrika 6 (1908). It holds for values that are independent and about normal.
    """
    sample = np.array([value for value in values if math.isfinite(value)], dtype=float)
    if not sample.size:
        return Interval(math.nan, math.nan, 0)
    mean = float(sample.mean())
    if sample.size < 2:
        return Interval(mean, math.nan, 1)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, sample.size - 1)
    return Interval(mean, float(quantile * stats.sem(sample)), sample.size)


def paired_t_interval(first: pd.Series, second: pd.Series) -> Interval:
    """Return the mean of `first` - `second` over the pairs of finite values, with its 95% confidence interval.

    The index of both is the key of a pair, such as a seed. It is the interval of the paired t-test: what a key adds to
    both values cancels out.
    """
    return t_interval(first - second)
