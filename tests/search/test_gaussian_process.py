"""Regression by a Gaussian process with a main feature."""

from __future__ import annotations

import numpy as np
import pytest

from ikd_ray.search.candidates import Features
from ikd_ray.search.gaussian_process import GaussianProcess

DEPTHS = np.repeat(np.linspace(0, 1, 5), 4)


def points(depths: np.ndarray, seed: int) -> np.ndarray:
    """Return points whose first feature is the depth, and whose others are far from each other."""
    others = np.random.default_rng(seed).integers(0, 2, (len(depths), 12))
    return np.column_stack([depths, others])


@pytest.mark.parametrize(("main", "error"), [(0, 0.15), (None, 0.5)])
def test_a_main_feature_counts_far_from_all_points(main, error):
    scores = DEPTHS + np.random.default_rng(0).normal(size=len(DEPTHS)) * 0.02
    model = GaussianProcess(points(DEPTHS, 1), scores, main)
    found = model.predict(points(DEPTHS, 2)).mean
    assert np.abs(found - DEPTHS).max() < error
    assert (np.abs(found - DEPTHS).max() > 0.15) == (main is None)


@pytest.mark.parametrize("main", [0, None])
def test_scores_that_are_assumed_leave_the_means_and_lower_the_deviations(main):
    known, new = points(DEPTHS, 1), points(DEPTHS[::4], 3)
    model = GaussianProcess(known, DEPTHS + known[:, 1], main)
    before = model.predict(new)
    assert model.assume(new) == pytest.approx(before.mean)
    after = model.predict(new)
    assert after.mean == pytest.approx(before.mean, abs=1e-3)
    assert (after.deviation < before.deviation).all()


def test_the_column_of_a_parameter(load):
    space = load(
        "params: {regime: {choice: [kd, id, pid]}, epochs: 3, student_layers: {int: [1, 5]}, lambda: {float: [0.1, 1]}}"
    )
    features = Features(space)
    encoded = features.encode([{"regime": "kd", "student_layers": 3, "lambda": 1.0}])[0]
    assert encoded[features.column("student_layers")] == 0.5
    assert encoded[features.column("lambda")] == 1.0
    assert features.column("epochs") is None
    assert features.column("temperature") is None
