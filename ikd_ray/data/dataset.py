"""Data sets of a task before tokenization."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from ikd_ray.tasks import Task

TEST = "test"
"""Name of the split that is scored when a sweep has ended."""
UNLABELLED = -1
"""Class index of an example without a label, by scikit-learn's convention; a missing score is nan."""


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in the order of their source. The fields are named as a tokenizer names its arguments."""

    text: list[str]
    text_pair: list[str] | None
    """Second texts of a task of pairs, else `None`."""
    labels: np.ndarray
    """(n,) int64 class indices, or float32 scores for regression; `UNLABELLED` or nan where there is no label."""
    rows: np.ndarray | None = None
    """(n,) positions of the examples in their source; `None` for all of them in order. Texts without a label have a
    source of their own."""

    def __len__(self) -> int:
        return len(self.text)

    @property
    def is_labelled(self) -> np.ndarray:
        """The (n,) mask of the examples that have a label."""
        return is_labelled(self.labels)

    def examples(self) -> Iterable[str | tuple[str, str]]:
        """Return each example's text or, for a task of pairs, both."""
        return self.text if self.text_pair is None else zip(self.text, self.text_pair, strict=True)

    def select(self, rows: np.ndarray) -> Split:
        """Return the examples at `rows`, in that order."""
        text = [self.text[row] for row in rows]
        text_pair = None if self.text_pair is None else [self.text_pair[row] for row in rows]
        return Split(text, text_pair, self.labels[rows], rows if self.rows is None else self.rows[rows])


def is_labelled(labels: np.ndarray) -> np.ndarray:
    """Return a mask, (n,), of the labels that are none of the marks of a missing one."""
    return ~np.isnan(labels) if np.issubdtype(labels.dtype, np.floating) else labels != UNLABELLED


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task's splits and their source.

    The splits are "train", "dev", for MNLI "dev_mismatched", and "holdout" after `ikd_ray.data.splits.hold_out`.
    """

    task: Task
    splits: dict[str, Split]
    source: Literal["folder", "hub", "embedded"]
    description: str
    """One line for people and for tags."""
    test: Split | None = None
    """Examples that are scored when a sweep has ended, and never chosen by; no part of the fingerprint."""

    @property
    def generated(self) -> bool:
        """True if the examples are this project's own instead of the task's."""
        return self.source == "embedded"

    @property
    def labelled(self) -> Dataset:
        """The data set without the training examples that have no label."""
        train = self.splits.get("train")
        if train is None or train.is_labelled.all():
            return self
        labelled_rows = np.flatnonzero(train.is_labelled)
        return replace(self, splits=self.splits | {"train": train.select(labelled_rows)})

    @cached_property
    def test_dataset(self) -> Dataset | None:
        """The test examples as the only split of a data set of their own; None without any."""
        return None if self.test is None else replace(self, splits={TEST: self.test}, test=None)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the task's identity and of every text and label."""
        digest = hashlib.sha256(self.task.identity.encode())
        for name, split in sorted(self.splits.items()):
            digest.update(f"\0{name}\0{len(split)}\0".encode())
            for texts in (split.text, split.text_pair or ()):
                for text in texts:
                    data = text.encode()
                    # The length comes first, so that no two lists of texts give the same bytes.
                    digest.update(len(data).to_bytes(8, "little") + data)
            digest.update(split.labels.astype(split.labels.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()


def add_unlabelled(dataset: Dataset, text: list[str], text_pair: list[str] | None) -> Dataset:
    """Append texts without a label to the training examples.

    Students imitate the teacher on them; the teacher itself and the gold labels' losses do without.

    Args:
        dataset: the labelled examples.
        text: (n,) texts.
        text_pair: (n,) second texts of a task of pairs, else `None`.
    """
    train = dataset.splits["train"]
    missing = np.nan if dataset.task.is_regression else UNLABELLED
    labels = np.concatenate([train.labels, np.full(len(text), missing, train.labels.dtype)])
    pairs = None if train.text_pair is None else train.text_pair + (text_pair or [])
    rows = np.append(np.arange(len(train)) if train.rows is None else train.rows, np.arange(len(text)))
    splits = dataset.splits | {"train": Split(train.text + text, pairs, labels, rows)}
    description = f"{dataset.description}; {len(text):,} texts without a label"
    return replace(dataset, splits=splits, description=description)


def format_sizes(splits: dict[str, Split]) -> str:
    """Return a text such as `8551 train / 1043 dev`."""
    return " / ".join(f"{len(split)} {name}" for name, split in splits.items())
