"""Expected improvement of the Pareto front by a student whose size is known and whose score is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

REFERENCE_STEP = 1.0
"""Layers beyond the largest size at which the hypervolume's reference point lies."""


@dataclass(frozen=True)
class Front:
    """The best score up to each size, which is known before a student is trained.

    Sizes are numbers of layers, of which parameters, megabytes and seconds are nearly linear functions: the
    hypervolume's unit differs, its improvements do not.
    """

    sizes: np.ndarray
    """All sizes, ascending."""
    best: np.ndarray
    """The best score of a student of at most that size."""

    @classmethod
    def of(cls, sizes: Sequence[float], scored: np.ndarray, scores: np.ndarray, worst: float) -> Front:
        """Return the front of students.

        Args:
            sizes: all sizes that students may have.
            scored: (n) sizes of the students.
            scores: (n) their scores, the higher the better.
            worst: the score of the reference point.
        """
        ascending = np.unique(np.asarray(sizes, dtype=float))
        fits = scored[None, :] <= ascending[:, None]
        best = np.where(fits, scores[None, :], worst).max(axis=1, initial=worst)
        return cls(ascending, best)

    def expected_improvement(self, sizes: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        """Return the expected improvement of the hypervolume by each of n students.

        With one known objective it has a closed form: at each size from the student's own on, the expected
        improvement of a normal variable over the front's score there, times the distance to the next size (Emmerich et
        al., "The computation of the expected improvement in dominated hypervolume of Pareto front approximations",
        2008, in the case of two objectives).

        Args:
            sizes: (n) sizes of the students.
            mean: (n) expected scores.
            deviation: (n) their standard deviations.
        """
        widths = np.diff(self.sizes, append=self.sizes[-1] + REFERENCE_STEP)
        z = (mean[:, None] - self.best[None, :]) / deviation[:, None]
        density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        improvement = deviation[:, None] * (z * ndtr(z) + density)
        reaches = self.sizes[None, :] >= sizes[:, None]
        return (improvement * widths * reaches).sum(axis=1)
