"""The expected improvement of the front, against sampling."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ikd_ray.search.acquisition import REFERENCE_STEP, Front

SIZES = [1, 2, 4, 6]
SCORED, SCORES, WORST = np.array([2.0, 4.0, 4.0]), np.array([0.3, 0.2, 0.5]), 0.1


def hypervolume(scored, scores) -> float:
    """Return the area above `WORST` and left of the reference point, by adding up strips."""
    volume = 0.0
    for left, right in pairwise([*SIZES, SIZES[-1] + REFERENCE_STEP]):
        best = max((score for size, score in zip(scored, scores, strict=True) if size <= left), default=WORST)
        volume += (right - left) * max(best - WORST, 0.0)
    return volume


def test_the_front_is_the_best_score_up_to_each_size():
    front = Front.of(SIZES, SCORED, SCORES, WORST)
    assert front.sizes.tolist() == SIZES
    assert front.best.tolist() == [0.1, 0.3, 0.5, 0.5]


@pytest.mark.parametrize(
    ("size", "mean", "deviation"), [(1, 0.2, 0.1), (2, 0.6, 0.05), (4, 0.4, 0.2), (6, 0.3, 0.1)]
)
def test_the_expectation_is_the_mean_of_many_samples(size, mean, deviation):
    front = Front.of(SIZES, SCORED, SCORES, WORST)
    found = front.expected_improvement(np.array([size]), np.array([mean]), np.array([deviation]))
    before = hypervolume(SCORED, SCORES)
    samples = np.random.default_rng(0).normal(mean, deviation, 20_000)
    gains = [hypervolume([*SCORED, size], [*SCORES, sample]) - before for sample in samples]
    assert found[0] == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / len(gains) ** 0.5 + 1e-6)


def test_one_size_gives_the_expected_improvement_of_a_maximum():
    front = Front.of([0, 0], np.zeros(2), np.array([0.0, 1.0]), 0.0)
    # Of a standard normal variable over its mean: the density at 0.
    found = front.expected_improvement(np.zeros(1), np.ones(1), np.ones(1))
    assert found[0] == pytest.approx(1 / np.sqrt(2 * np.pi))
