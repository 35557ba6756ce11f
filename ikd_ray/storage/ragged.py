"""Ragged arrays: many short rows in one flat array plus offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from ikd_ray.storage.array_files import ArrayFile


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

    def flat(self, rows: np.ndarray) -> np.ndarray:
        """The values of these rows one after the other, in the order of the array."""
        wanted = np.zeros(len(self), bool)
        wanted[rows] = True
        return np.asarray(self.values)[np.repeat(wanted, self.sizes)]

    def padded(self, rows: np.ndarray, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows beside one another, `fill` beyond their ends.

        Returns:
            (B, L) values, L the longest of the rows, and their mask (B, L), true within the rows.
        """
        starts = self.offsets[rows]
        sizes = self.offsets[rows + 1] - starts
        columns = np.arange(sizes.max(initial=0))
        mask = columns < sizes[:, None]
        # Places beyond a row's end may be beyond the array's; what is there is overwritten.
        values = np.asarray(self.values).take(starts[:, None] + columns, mode="clip")
        values[~mask] = fill
        return values, mask

    @classmethod
    def open(cls, folder: Path, name: str) -> Ragged:
        """Memory-mapped values; the offsets are read."""
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return cls(values, np.load(folder / f"{name}.offsets.npy", allow_pickle=False))


class RaggedWriter:
    """Writes what `Ragged.open` reads, from the first row to the last; only the rows' sizes are in memory."""

    def __init__(self, folder: Path, name: str, dtype: type) -> None:
        self._offsets, self._dtype = folder / f"{name}.offsets.npy", dtype
        self._values = ArrayFile(folder / f"{name}.npy", dtype)
        self._sizes = [np.zeros(0, np.int64)]

    def append(self, rows: Sequence[Sequence[int]]) -> None:
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        self._values.append(np.fromiter(chain.from_iterable(rows), self._dtype, int(sizes.sum())))
        self._sizes.append(sizes)

    def close(self) -> None:
        """Without it the rows cannot be read."""
        self._values.close()
        np.save(self._offsets, offsets_of(np.concatenate(self._sizes)))
