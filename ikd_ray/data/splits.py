"""Parts of a training set: a share of its examples, and the held-out part that models are chosen by."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ikd_ray.data.dataset import Dataset, Split, fingerprint
from ikd_ray.errors import UsageError
from ikd_ray.tasks import Task

HOLDOUT = "holdout"
SHARE = 0.1  # of the training examples of each label
SEED = 0  # no sweep's own: all of a task hold out the same examples, and share teachers and targets


def hold_out(dataset: Dataset) -> Dataset:
    """The data set with a tenth of its training examples, of each label alike, as a split `holdout` of its own.

    Both parts keep the order of the source, and the other splits are what they were. Which examples they are
    depends on the training labels alone (`nested_subset` with `SHARE` and `SEED`). A teacher that comes with a head
    was fine-tuned by its maker, maybe on these examples too: of it `holdout/...` may say too much, as `dev/...` may.

    Raises:
        UsageError: a label has fewer than two training examples, or a tenth of the scores is less than two.
    """
    train = dataset.splits["train"]
    _check_size(dataset.task, train)
    held = nested_subset(train.labels, SHARE, SEED)
    kept = np.setdiff1d(np.arange(len(train)), held)
    splits = dataset.splits | {"train": train.select(kept), HOLDOUT: train.select(held)}
    description = f"{dataset.description}; {len(held)} of train are held out to choose by"
    return replace(
        dataset, splits=splits, description=description, fingerprint=fingerprint(dataset.task, splits)
    )


def _check_size(task: Task, train: Split) -> None:
    if task.is_regression:
        if round(SHARE * len(train)) < 2:  # one correlates with nothing
            raise _too_small(f"a tenth of {len(train)} training examples is less than two; give more of them")
        return
    labels, counts = np.unique(train.labels, return_counts=True)
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        if count < 2:
            raise _too_small(
                f"label {task.labels[label]!r} has a single training example; give at least two of each label"
            )


def _too_small(why: str) -> UsageError:
    return UsageError(f"selection: holdout: {why}, or write selection: dev")


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
