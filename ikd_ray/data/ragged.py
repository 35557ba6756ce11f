"""Ragged arrays: many short rows in one flat array plus offsets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """(n,) row sizes -> (n + 1,) offsets, int64."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


@dataclass(frozen=True)
class Ragged:
    """Row r is `values[offsets[r]:offsets[r + 1]]`; `values` may be a memory map."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows' values one after the other, flat, in the order asked for."""
        # Slices beat an index array of the values' size many times over, the more the longer the rows.
        parts = [self.values[start:end] for start, end in self._spans(rows)]
        return np.concatenate(parts) if parts else self.values[:0]

    def scatter(self, rows: np.ndarray, flat: np.ndarray) -> None:
        """The inverse of `gather`: write the rows' values."""
        done = 0
        for start, end in self._spans(rows):
            self.values[start:end] = flat[done : done + end - start]
            done += end - start

    def _spans(self, rows: np.ndarray) -> Iterator[tuple[int, int]]:
        return zip(self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), strict=True)

    def save(self, folder: Path, name: str) -> None:
        np.save(folder / f"{name}.npy", self.values)
        np.save(folder / f"{name}.offsets.npy", self.offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> Ragged:
        """Memory-mapped values; the offsets are read."""
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return cls(values, np.load(folder / f"{name}.offsets.npy", allow_pickle=False))
