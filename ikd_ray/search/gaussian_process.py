"""Regression by a Gaussian process, whose hyperparameters are those of highest evidence on a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

LENGTH_SCALES = (0.5, 1.0, 2.0, 4.0)  # of features between 0 and 1
NOISES = (0.03, 0.1, 0.3, 0.8)  # variances, of scores with variance 1
JITTER = 1e-6
MIN_VARIANCE = 1e-4


class Prediction(NamedTuple):
    """Mean and standard deviation of the function that the scores are noisy values of, at m points."""

    mean: np.ndarray
    deviation: np.ndarray


class GaussianProcess:
    """Regression from the scores at some points.

    The prior has mean 0 and variance 1 for standardised scores, and Matérn's covariance with smoothness 5/2. Length
    scale and noise maximise the marginal likelihood (Rasmussen and Williams, "Gaussian Processes for Machine Learning",
    2006, equation 2.30 and algorithm 2.1) on a grid, which takes milliseconds and has no starting point.
    """

    def __init__(self, points: np.ndarray, scores: np.ndarray) -> None:
        """Fit scores (n) at points (n, features) between 0 and 1."""
        self._points = points
        self._center, self._spread = float(scores.mean()), max(float(scores.std()), 1e-9)
        self._standard = (scores - self._center) / self._spread
        distances, best = cdist(points, points), -math.inf
        for scale in LENGTH_SCALES:
            covariance = _matern(distances / scale)
            for noise in NOISES:
                factor = _factorize(covariance, noise)
                weights = cho_solve((factor, True), self._standard)
                evidence = -0.5 * self._standard @ weights - np.log(np.diag(factor)).sum()
                if evidence > best:
                    best = evidence
                    self._scale, self._noise, self._factor, self._weights = scale, noise, factor, weights

    def predict(self, points: np.ndarray) -> Prediction:
        """Predict at m points, (m, features)."""
        cross = _matern(cdist(self._points, points) / self._scale)
        explained = solve_triangular(self._factor, cross, lower=True)
        variance = np.maximum(1 - (explained**2).sum(axis=0), MIN_VARIANCE)
        mean = cross.T @ self._weights * self._spread + self._center
        return Prediction(mean, np.sqrt(variance) * self._spread)

    def assume(self, points: np.ndarray) -> np.ndarray:
        """Take the scores at further points, (m, features), to be as expected, and return them.

        The means that are predicted from now on stay; the deviations near these points fall.
        """
        scores = self.predict(points).mean
        self._points = np.concatenate([self._points, points])
        self._standard = np.concatenate([self._standard, (scores - self._center) / self._spread])
        self._factor = _factorize(_matern(cdist(self._points, self._points) / self._scale), self._noise)
        self._weights = cho_solve((self._factor, True), self._standard)
        return scores


def _factorize(covariance: np.ndarray, noise: float) -> np.ndarray:
    """Return the lower Cholesky factor of the covariance of noisy scores."""
    return np.asarray(cholesky(covariance + (noise + JITTER) * np.eye(len(covariance)), lower=True))


def _matern(distances: np.ndarray) -> np.ndarray:
    scaled = math.sqrt(5) * distances
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
