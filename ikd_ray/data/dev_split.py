"""A dev set drawn from train, for own data that has none."""

from __future__ import annotations

import math

import numpy as np

from ikd_ray.data.dataset import Split
from ikd_ray.data.task_file import CustomTask
from ikd_ray.errors import UsageError
from ikd_ray.formatting import clean


def draw_dev(train: Split, task: CustomTask) -> tuple[Split, Split]:
    """Divide labelled examples into train and dev by the task's `split` and `split_seed`.

    The draw is scikit-learn's `train_test_split`, stratified by class; scores are drawn at random. It depends on the
    examples, their order and the seed alone. Rows of equal texts are drawn together, so that no dev text is in train.

    Returns:
        The examples that remain in train, and those of dev, both in their order.

    Raises:
        UsageError: a class is too rare to have a row in both parts, or there are too few scores.
    """
    from sklearn.model_selection import (
        train_test_split,
    )  # imported late: it takes a while, and few tasks need it

    first_rows: dict[str | tuple[str, str], int] = {}
    # For each row the first row that has its texts; (n,).
    origin = np.array([first_rows.setdefault(texts, row) for row, texts in enumerate(train.examples())])
    distinct = np.unique(origin)
    labels = train.labels[distinct]
    _check_size(task, labels)
    _, drawn = train_test_split(
        distinct,
        test_size=task.split,
        random_state=task.split_seed,
        stratify=None if task.is_regression else labels,
    )
    in_dev = np.isin(origin, drawn)
    parts = train.select(np.flatnonzero(~in_dev)), train.select(np.flatnonzero(in_dev))
    if not task.is_regression:
        for name, part in zip(("train", "dev"), parts, strict=True):
            _check_classes(task, train.labels, part.labels, name)
    return parts


def describe_dev(rows: int, of: int, task: CustomTask) -> str:
    """Return a text such as `dev: 60 of 600 rows, drawn stratified with seed 0`."""
    how = "at random" if task.is_regression else "stratified"
    return f"dev: {rows:,} of {of:,} rows, drawn {how} with seed {task.split_seed}"


def _check_size(task: CustomTask, labels: np.ndarray) -> None:
    """Check that each class, or all scores, have enough different texts; `labels` are of these."""
    if task.is_regression:
        drawn = math.ceil(task.split * len(labels))
        if min(drawn, len(labels) - drawn) < 2:  # no correlation is defined
            raise UsageError(
                f"task {task.name}: split: {task.split:g} of {len(labels)} different texts leaves fewer than two in "
                "dev or in train; give more of them, or examples of their own as dev"
            )
        return
    classes, counts = np.unique(labels, return_counts=True)
    least = math.ceil(1 / min(task.split, 1 - task.split))  # so that each part gets one
    if counts.min() < least:
        name = task.labels[classes[counts.argmin()]]
        raise UsageError(
            f"task {task.name}: split: {task.split:g} needs {least} different texts of each class, but {_shown(name)} "
            f"has {counts.min()} in train; add some, change split, or give examples of their own as dev"
        )


def _check_classes(task: CustomTask, labels: np.ndarray, part: np.ndarray, name: str) -> None:
    """Check that a part has an example of every class, which fails where one text has several labels."""
    missing = np.setdiff1d(labels, part)
    if len(missing):
        raise UsageError(
            f"task {task.name}: split: {task.split:g} leaves no row of {_shown(task.labels[missing[0]])} in {name}, "
            "since its texts have other labels, too; correct the labels, or give examples of their own as dev"
        )


def _shown(name: str) -> str:
    return f"class {clean(name, 60)!r}"
