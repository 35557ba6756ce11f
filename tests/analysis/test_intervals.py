from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ikd_ray.analysis.intervals import Estimate, mean_interval, paired_difference


def test_an_interval_worked_out_by_hand():
    """Mean 3, standard deviation sqrt(2.5), t(0.975, 4) = 2.776: half is 2.776 * sqrt(2.5 / 5)."""
    found = mean_interval([1, 2, 3, 4, 5])
    assert (found.mean, found.count) == (3, 5)
    assert found.half == pytest.approx(2.776445 * math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_it_is_that_of_the_t_test(count):
    values = np.random.default_rng(count).normal(0.4, 0.02, count)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_a_paired_difference_is_that_of_the_paired_t_test_over_common_seeds():
    rng = np.random.default_rng(0)
    ones, others = rng.normal(0.5, 0.1, 6), rng.normal(0.4, 0.1, 6)
    low, high = stats.ttest_rel(ones[1:5], others[1:5]).confidence_interval(0.95)
    mine = dict(enumerate(ones)) | {4: ones[4], 5: math.nan, 7: 9.0}
    theirs = dict(reversed(list(enumerate(others)))) | {0: math.inf, 8: -9.0}
    found = paired_difference(mine, theirs)
    assert found.count == 4
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_what_seeds_do_to_both_alike_cancels_out():
    luck = {0: 0.3, 1: 0.5, 2: 0.9}
    better = {seed: value + 0.01 * (1 + 0.1 * seed) for seed, value in luck.items()}
    assert paired_difference(better, luck).excludes_zero
    unpaired = mean_interval(better.values()).half + mean_interval(luck.values()).half
    assert unpaired > 1


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
def test_nothing_known_has_no_mean(values):
    found = mean_interval(values)
    assert math.isnan(found.mean)
    assert math.isnan(found.half)
    assert not found.excludes_zero


def test_one_value_has_no_interval():
    found = mean_interval([0.5, math.nan])
    assert (found.mean, found.count) == (0.5, 1)
    assert math.isnan(found.half)
    assert not found.excludes_zero  # nothing is known of how sure it is


def test_an_interval_that_begins_at_zero_does_not_exclude_it():
    assert not Estimate(0.1, 0.1, 3).excludes_zero
    assert Estimate(-0.1, 0.09, 3).excludes_zero
    assert not mean_interval([0.0, 0.0]).excludes_zero  # equal in every digit
