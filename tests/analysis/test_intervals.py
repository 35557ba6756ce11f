from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ikd_ray.analysis.comparison import best_group
from ikd_ray.analysis.intervals import Interval, paired_t_interval, t_interval


def bounds(interval: Interval) -> tuple[float, float]:
    return interval.mean - interval.half_width, interval.mean + interval.half_width


def test_an_interval_worked_out_by_hand():
    """Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776: the half width is 2.776 * sqrt(2.5 / 5)."""
    interval = t_interval([1, 2, 3, 4, 5])
    assert (interval.mean, interval.count) == (3, 5)
    assert interval.half_width == pytest.approx(2.776445 * math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_scipys_t_test(count):
    values = np.random.default_rng(count).normal(0.4, 0.02, count)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert bounds(t_interval(values)) == pytest.approx(tuple(expected))


def test_the_paired_interval_is_that_of_scipys_paired_t_test_over_common_seeds():
    rng = np.random.default_rng(0)
    ones, others = rng.normal(0.5, 0.1, 6), rng.normal(0.4, 0.1, 6)
    expected = stats.ttest_rel(ones[1:5], others[1:5]).confidence_interval(0.95)
    first = pd.Series(dict(enumerate(ones)) | {5: math.nan, 7: 9.0})
    second = pd.Series(dict(reversed(list(enumerate(others)))) | {0: math.inf, 8: -9.0})
    interval = paired_t_interval(first, second)
    assert interval.count == 4
    assert bounds(interval) == pytest.approx(tuple(expected))


def test_noise_that_a_seed_adds_to_both_values_cancels_out():
    noise = pd.Series([0.3, 0.5, 0.9])
    better = noise + 0.01 * (1 + 0.1 * noise.index)
    assert paired_t_interval(better, noise).excludes_zero
    assert t_interval(better).half_width + t_interval(noise).half_width > 1


@pytest.mark.parametrize(
    ("values", "mean"),
    [([], math.nan), ([math.nan], math.nan), ([math.inf, -math.inf], math.nan), ([0.5, math.nan], 0.5)],
)
def test_fewer_than_two_known_values_have_no_interval(values, mean):
    interval = t_interval(values)
    assert interval.mean == pytest.approx(mean, nan_ok=True)
    assert interval.count == math.isfinite(mean)
    assert math.isnan(interval.half_width)
    assert not interval.excludes_zero


def test_an_interval_that_begins_at_zero_does_not_exclude_it():
    assert not Interval(0.1, 0.1, 3).excludes_zero
    assert Interval(-0.1, 0.09, 3).excludes_zero
    assert not t_interval([0.0, 0.0]).excludes_zero  # equal in every digit


def test_the_best_group_needs_rivals_seeds_and_all_of_the_differences():
    near = pd.Series([0.50, 0.60, 0.70])
    best = near + pd.Series([0.01, 0.01, 0.011])
    assert best_group({"best": best, "near": near, "far": pd.Series([0.1] * 3)}) == "best"
    assert best_group({"best": best, "near": near}, "min") == "near"
    assert best_group({"best": best}) is None
    assert best_group({"best": best, "near": pd.Series({7: 0.1, 8: 0.1})}) is None  # no seed in common
    assert best_group({"best": pd.Series([0.9]), "near": near}) is None
    assert best_group({"best": best, "near": near, "unknown": pd.Series([math.nan])}) == "best"
