"""Regression by a Gaussian process, whose hyperparameters are those of highest evidence on a grid."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

LENGTH_SCALES = (0.5, 1.0, 2.0, 4.0)  # of features between 0 and 1
NOISES = (0.03, 0.1, 0.3, 0.8)  # variances, of scores with variance 1
MAIN_LENGTH_SCALE = 0.4
MAIN_SHARES = (0.2, 0.5, 0.8)
"""Shares of the variance that one feature explains by itself, where there is such a feature."""
JITTER = 1e-6
MIN_VARIANCE = 1e-4


class Prediction(NamedTuple):
    """Mean and standard deviation of the function that the scores are noisy values of, at m points."""

    mean: np.ndarray
    deviation: np.ndarray


class GaussianProcess:
    """Regression from the scores at some points.

    The prior has mean 0 and variance 1 for standardised scores, and Matérn's covariance with smoothness 5/2. A main
    feature has a covariance of its own, which is added (Duvenaud et al., "Additive Gaussian Processes", 2011): what is
    known of one of its values then holds for all points with that value, also for those that are far from the others.
    Length scale, noise and the main feature's share maximise the marginal likelihood (Rasmussen and Williams, "Gaussian
    Processes for Machine Learning", 2006, equation 2.30 and algorithm 2.1) on a grid, which takes milliseconds and has
    no starting point.
    """

    def __init__(self, points: np.ndarray, scores: np.ndarray, main: int | None = None) -> None:
        """Fit scores (n) at points (n, features) between 0 and 1; `main` is the index of the main feature."""
        self._points, self._main = points, main
        self._center, self._spread = float(scores.mean()), max(float(scores.std()), 1e-9)
        self._standard = (scores - self._center) / self._spread
        own, distances, best = self._main_covariance(points, points), cdist(points, points), -math.inf
        for scale in LENGTH_SCALES:
            whole = _matern(distances / scale)
            for share in (0.0,) if main is None else MAIN_SHARES:
                for noise in NOISES:
                    factor = _factorize(share * own + (1 - share) * whole, noise)
                    weights = cho_solve((factor, True), self._standard)
                    evidence = -0.5 * self._standard @ weights - np.log(np.diag(factor)).sum()
                    if evidence > best:
                        best = evidence
                        self._scale, self._share, self._noise = scale, share, noise
                        self._factor, self._weights = factor, weights

    def predict(self, points: np.ndarray) -> Prediction:
        """Predict at m points, (m, features)."""
        cross = self._covariance(self._points, points)
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
        self._factor = _factorize(self._covariance(self._points, self._points), self._noise)
        self._weights = cho_solve((self._factor, True), self._standard)
        return scores

    def _covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        whole = _matern(cdist(first, second) / self._scale)
        return self._share * self._main_covariance(first, second) + (1 - self._share) * whole

    def _main_covariance(self, first: np.ndarray, second: np.ndarray) -> np.ndarray | float:
        if self._main is None:
            return 0.0
        column = slice(self._main, self._main + 1)
        return _matern(cdist(first[:, column], second[:, column]) / MAIN_LENGTH_SCALE)


def _factorize(covariance: np.ndarray, noise: float) -> np.ndarray:
    """Return the lower Cholesky factor of the covariance of noisy scores."""
    return np.asarray(cholesky(covariance + (noise + JITTER) * np.eye(len(covariance)), lower=True))


def _matern(distances: np.ndarray) -> np.ndarray:
    scaled = math.sqrt(5) * distances
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)
