"""Subsets of a training set: nested fractions of it, and the held-out part that models are selected by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ikd_ray.data.dataset import Dataset, Split, is_labelled
from ikd_ray.errors import UsageError
from ikd_ray.tasks import Task

HOLDOUT = "holdout"
HOLDOUT_FRACTION = 0.1  # of the training examples of each label
HOLDOUT_SEED = 0
"""Not the sweep's: all sweeps of a task hold out the same examples, and share teachers and targets."""


def nested_subset(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return the rows of a stratified random subset; with one seed, smaller subsets lie within larger ones.

    The rows are shuffled once, by the seed alone. Of each label's rows the first `fraction` in that order is taken
    (rounded, at least one row). Scores, which have a floating type, form one group.

    Args:
        labels: (n,) class indices or scores; n is at least 1.
        fraction: above 0, at most 1; 1 selects every row.
        seed: of the shuffle.

    Returns:
        The selected rows, ascending, int64.
    """
    if fraction == 1:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    if np.issubdtype(labels.dtype, np.floating):
        groups = [order]
    else:
        groups = [order[labels[order] == label] for label in np.unique(labels)]
    return np.sort(np.concatenate([group[: max(1, round(fraction * len(group)))] for group in groups]))


def training_rows(labels: np.ndarray, fraction: float, unlabelled_fraction: float, seed: int) -> np.ndarray:
    """Return the rows that a student trains on: subsets (`nested_subset`) of those with a label and of those without.

    Args:
        labels: (n,), with `UNLABELLED` or nan for none.
        fraction: share of the labelled rows, above 0.
        unlabelled_fraction: share of the other rows; 0 selects none.
        seed: seed of both subsets.

    Returns:
        The selected rows, ascending, int64.
    """
    labelled_rows, other_rows = np.flatnonzero(is_labelled(labels)), np.flatnonzero(~is_labelled(labels))
    chosen = labelled_rows[nested_subset(labels[labelled_rows], fraction, seed)]
    if not unlabelled_fraction or not len(other_rows):
        return chosen
    others = other_rows[nested_subset(labels[other_rows], unlabelled_fraction, seed)]
    return np.sort(np.append(chosen, others))


def hold_out(dataset: Dataset) -> Dataset:
    """Move a tenth of the training examples, stratified by label, into a split "holdout".

    Both parts keep the order of their source; other splits are unchanged. Texts without a label that are held out are
    left out. The choice depends on the training labels alone. A teacher that comes with a classifier may have been
    fine-tuned on these examples by its author; its `holdout/...` metrics may then be too good.

    Raises:
        UsageError: a label has fewer than two training examples, or a tenth of the scores is less than two.
    """
    train = dataset.splits["train"]
    labelled_rows = np.flatnonzero(train.is_labelled)
    labels = train.labels[labelled_rows]
    _check_size(dataset.task, labels)
    held_out = labelled_rows[nested_subset(labels, HOLDOUT_FRACTION, HOLDOUT_SEED)]
    repeated = _unlabelled_rows_of(train, held_out)
    remaining = np.setdiff1d(np.arange(len(train)), np.append(held_out, repeated))
    splits = dataset.splits | {"train": train.select(remaining), HOLDOUT: train.select(held_out)}
    description = f"{dataset.description}; {len(held_out)} of train are held out to choose by"
    if len(repeated):
        description += f", and with them {len(repeated)} of the texts without a label"
    return replace(dataset, splits=splits, description=description)


def _unlabelled_rows_of(train: Split, rows: np.ndarray) -> np.ndarray:
    """Return the rows without a label whose texts are those of some rows."""
    others = np.flatnonzero(~train.is_labelled)
    if not len(others):
        return others
    texts = set(train.select(rows).examples())
    return others[[text in texts for text in train.select(others).examples()]]


def _check_size(task: Task, labels: np.ndarray) -> None:
    problem = ""
    if task.is_regression:
        if round(HOLDOUT_FRACTION * len(labels)) < 2:  # no correlation is defined
            problem = f"a tenth of {len(labels)} training examples is less than two; give more of them"
    else:
        classes, counts = np.unique(labels, return_counts=True)
        if counts.min() < 2:
            label = task.labels[classes[counts.argmin()]]
            problem = f"label {label!r} has a single training example; give at least two of each label"
    if problem:
        raise UsageError(f"selection: holdout: {problem}, or write selection: dev")
