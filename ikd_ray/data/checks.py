"""Checks of a custom task's tables, for what deserves a warning but may be meant."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.task_file import CustomTask
from ikd_ray.formatting import clean


def data_warnings(dataset: Dataset) -> list[str]:
    """Return a line for each class without a training example, and each split that shares examples with train.

    GLUE's tasks have none: their tables are what they are.
    """
    if not isinstance(dataset.task, CustomTask):
        return []
    others = [name for name in dataset.splits if name != "train"]
    return [*_missing_classes(dataset), *(line for name in others for line in _shared_rows(dataset, name))]


def _missing_classes(dataset: Dataset) -> Iterable[str]:
    task = dataset.task
    if task.is_regression:
        return
    train = dataset.splits["train"]
    counts = np.bincount(train.labels[train.is_labelled], minlength=task.num_labels)
    missing = [name for name, count in zip(task.labels, counts, strict=True) if not count]
    if missing:
        yield (
            f"train has no example of {len(missing)} of {task.num_labels} classes, which no student will learn: "
            f"{clean(', '.join(missing), 200)}; add examples, or take the classes out of the task file"
        )


def _shared_rows(dataset: Dataset, name: str) -> Iterable[str]:
    train = dataset.splits["train"]
    labelled = train.select(np.flatnonzero(train.is_labelled))
    training_texts, texts = set(_texts(labelled)), list(_texts(dataset.splits[name]))
    shared = sum(text in training_texts for text in texts)
    if shared:
        yield (
            f"{shared} of {len(texts)} {name} examples are in train too, which makes metrics on {name} too good; "
            "take them out of train"
        )


def _texts(split: Split) -> Iterable[str | tuple[str, str]]:
    return split.text if split.text_pair is None else zip(split.text, split.text_pair, strict=True)
