"""Data sets of a task before tokenization."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ikd_ray.tasks import Task


@dataclass(frozen=True, eq=False)
class Split:
    """Examples in the order of their source. The fields are named as a tokenizer names its arguments."""

    text: list[str]
    text_pair: list[str] | None
    """Second texts of a task of pairs, else `None`."""
    labels: np.ndarray
    """(n,) int64 class indices, or float32 scores for regression."""
    rows: np.ndarray | None = None
    """(n,) positions of the examples in their source; `None` for all of them in order."""

    def __len__(self) -> int:
        return len(self.text)

    def select(self, rows: np.ndarray) -> Split:
        """Return the examples at `rows`, in that order."""
        text = [self.text[row] for row in rows]
        text_pair = None if self.text_pair is None else [self.text_pair[row] for row in rows]
        return Split(text, text_pair, self.labels[rows], rows if self.rows is None else self.rows[rows])


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

    @property
    def generated(self) -> bool:
        """True if the examples are this project's own instead of the task's."""
        return self.source == "embedded"

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


def format_sizes(splits: dict[str, Split]) -> str:
    """Return a text such as `8551 train / 1043 dev`."""
    return " / ".join(f"{len(split)} {name}" for name, split in splits.items())
