"""Checks of the user's own tables, for what deserves a warning but may be meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ikd_ray.data.dataset import TEST, Dataset, Split
from ikd_ray.data.splits import HOLDOUT
from ikd_ray.data.task_file import CustomTask
from ikd_ray.formatting import clean


def data_warnings(dataset: Dataset) -> list[str]:
    """Return a line for each class without a training example, and for each split that shares examples with another.

    GLUE's tables are what they are; of its tasks only the texts without a label are checked.
    """
    own = _missing_classes(dataset) if isinstance(dataset.task, CustomTask) else ()
    others = {name: split for name, split in dataset.splits.items() if name != "train"}
    test = {} if dataset.test is None else {TEST: dataset.test}
    shared = (
        line for name, split in (others | test).items() for line in _shared_with_train(dataset, name, split)
    )
    return [*own, *shared, *_shared_with_test(dataset, others)]


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


def _shared_with_train(dataset: Dataset, name: str, split: Split) -> Iterable[str]:
    train = dataset.splits["train"]
    harm = f"which makes metrics on {name} too good"
    if isinstance(dataset.task, CustomTask):
        # Examples that train has twice may be held out and stay in it, too.
        advice = "leave each of them in train once" if name == HOLDOUT else "take them out of train"
        shared = _count_shared(split, train.select(np.flatnonzero(train.is_labelled)))
        if shared:
            yield f"{shared} of {len(split)} {name} examples are in train too, {harm}; {advice}"
    if not train.is_labelled.all():
        shared = _count_shared(split, train.select(np.flatnonzero(~train.is_labelled)))
        if shared:
            yield (
                f"{shared} of {len(split)} {name} examples are among the texts without a label, {harm}; take them out "
                "of that table"
            )


def _shared_with_test(dataset: Dataset, others: Mapping[str, Split]) -> Iterable[str]:
    test, task = dataset.test, dataset.task
    if test is None:
        return
    for name, split in others.items():
        if shared := _count_shared(test, split):
            is_drawn = name == HOLDOUT or (isinstance(task, CustomTask) and task.split)
            yield (
                f"{shared} of {len(test)} test examples are in {name} too, which makes metrics on test too good; take "
                f"them out of {f'train, from which {name} is drawn' if is_drawn else name}"
            )


def _count_shared(split: Split, other: Split) -> int:
    """Return the number of a split's examples whose texts another one has."""
    texts = set(other.examples())
    return sum(example in texts for example in split.examples())
