"""A share of a split: which of its examples, so that smaller shares lie within larger ones."""

from __future__ import annotations

import numpy as np


def nested_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of a share of the examples, of each label alike: a pure function of its arguments.

    All rows are shuffled once, by the seed alone, and of every label's rows the first ones in that order are taken:
    `fraction` of them, rounded, and at least one. So with one seed the rows of a smaller fraction are among those
    of a larger one. Scores (labels of a floating type) are one group: a plain random share.

    Args:
        labels: (n,) class indices, or scores; n at least 1.
        fraction: above 0, at most 1; 1 gives every row.

    Returns:
        The rows in ascending order, int64.
    """
    if fraction == 1:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    if np.issubdtype(labels.dtype, np.floating):
        groups = [order]
    else:
        groups = [order[labels[order] == label] for label in np.unique(labels)]
    return np.sort(np.concatenate([group[: max(1, round(fraction * len(group)))] for group in groups]))
