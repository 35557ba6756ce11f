"""Checks of the user's own tables, for what deserves a warning but may be meant."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ikd_ray.data.dataset import Dataset
from ikd_ray.data.splits import HOLDOUT
from ikd_ray.data.task_file import CustomTask
from ikd_ray.formatting import clean


def data_warnings(dataset: Dataset) -> list[str]:
    """Return a line for each class without a training example, and each split that shares examples with train.

    GLUE's tables are what they are; of its tasks only the texts without a label are checked.
    """
    own = _missing_classes(dataset) if isinstance(dataset.task, CustomTask) else ()
    others = [name for name in dataset.splits if name != "train"]
    return [*own, *(line for name in others for line in _shared_texts(dataset, name))]


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


def _shared_texts(dataset: Dataset, name: str) -> Iterable[str]:
    train, texts = dataset.splits["train"], list(dataset.splits[name].examples())

    def count(rows: np.ndarray) -> int:
        training_texts = set(train.select(np.flatnonzero(rows)).examples())
        return sum(text in training_texts for text in texts)

    harm = f"which makes metrics on {name} too good"
    if isinstance(dataset.task, CustomTask) and (shared := count(train.is_labelled)):
        # Examples that train has twice may be held out and stay in it, too.
        advice = "leave each of them in train once" if name == HOLDOUT else "take them out of train"
        yield f"{shared} of {len(texts)} {name} examples are in train too, {harm}; {advice}"
    if not train.is_labelled.all() and (shared := count(~train.is_labelled)):
        yield (
            f"{shared} of {len(texts)} {name} examples are among the texts without a label, {harm}; take them out of "
            "that table"
        )
