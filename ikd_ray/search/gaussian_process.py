"""Regression by a Gaussian process, whose hyperparameters are those of highest evidence on a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.spatial.distance import cdist

LENGTH_SCALES = (0.5, 1.0, 2.0, 4.0)  # of features between 0 and 1
NOISES = (0.03, 0.1, 0.3, 0.8)  # variances, of scores with variance 1
JITTER = 1e-6
MIN_VARIANCE = 1e-4


class Prediction(NamedTuple):
    """Mean and standard deviation of the function that the scores are noisy values of, at m points."""

    mean: np.ndarray
    deviation: np.ndarray


def predict(known: np.ndarray, scores: np.ndarray, asked: np.ndarray) -> Prediction:
    """Predict the scores at some points from those at others.

    The prior has mean 0 and variance 1 for standardised scores, and Matérn's covariance with smoothness 5/2. Length
    scale and noise maximise the marginal likelihood (Rasmussen and Williams, "Gaussian Processes for Machine Learning",
    2006, equation 2.30 and algorithm 2.1) on a grid, which takes milliseconds and has no starting point.

    Args:
        known: (n, features), between 0 and 1.
        scores: (n).
        asked: (m, features).
    """
    center, spread = scores.mean(), max(float(scores.std()), 1e-9)
    standard = (scores - center) / spread
    distances = cdist(known, known)
    best, evidence = None, -math.inf
    for scale in LENGTH_SCALES:
        covariance = _matern(distances / scale)
        for noise in NOISES:
            factor = cho_factor(covariance + (noise + JITTER) * np.eye(len(scores)), lower=True)
            weights = cho_solve(factor, standard)
            found = -0.5 * standard @ weights - np.log(np.diag(factor[0])).sum()
            if found > evidence:
                best, evidence = (scale, factor, weights), found
    assert best is not None
    scale, factor, weights = best
    cross = _matern(cdist(known, asked) / scale)
    explained = solve_triangular(factor[0], cross, lower=True)
    variance = np.maximum(1 - (explained**2).sum(axis=0), MIN_VARIANCE)
    return Prediction(cross.T @ weights * spread + center, np.sqrt(variance) * spread)


def _matern(distances: np.ndarray) -> np.ndarray:
    scaled = math.sqrt(5) * distances
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
