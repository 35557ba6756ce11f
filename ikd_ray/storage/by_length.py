"""Arrays of one entry an example whose shape depends on the example's length alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import numpy as np


class LengthOrder:
    """Examples in order of length, those of equal length in order of row: how such arrays are laid out.

    Entries of one length lie side by side as one dense block, so that a batch is read with one copy for each
    length in it instead of one for each example, and evaluation, which goes by length, reads front to back.
    """

    def __init__(self, lengths: np.ndarray, rows: np.ndarray | None = None) -> None:
        """
        Args:
            lengths: (n,) tokens of each row.
            rows: those that have an entry, ascending; none: all.
        """
        rows = np.arange(len(lengths)) if rows is None else rows
        self.lengths = lengths
        self.rows = rows[np.argsort(lengths[rows], kind="stable")]  # position -> row
        # Row -> position; a row that has no entry has one beyond every array's end.
        self.positions = np.full(len(lengths), len(lengths))
        self.positions[self.rows] = np.arange(len(self.rows))
        distinct, counts = np.unique(lengths[rows], return_counts=True)
        first = np.cumsum(counts) - counts
        self.blocks: dict[int, tuple[int, int]] = {  # length -> first position, number of examples; ascending
            length: (start, count)
            for length, start, count in zip(distinct.tolist(), first.tolist(), counts.tolist(), strict=True)
        }

    def __len__(self) -> int:
        return len(self.rows)


class ByLength:
    """A flat array, which may be a memory map, of entries in `LengthOrder`."""

    def __init__(
        self, values: np.ndarray | None, order: LengthOrder, shape: Callable[[int], tuple[int, ...]]
    ) -> None:
        """
        Args:
            values: flat, all entries one after the other; may be set later.
            shape: an entry's shape for a length.
        """
        self.values, self._order, self._shape = values, order, shape
        self._spans: dict[int, tuple[int, int]] = {}
        end = 0
        for length, (_, count) in order.blocks.items():
            start, end = end, end + count * prod(shape(length))
            self._spans[length] = start, end
        self.size = end  # of the flat array

    def read(self, rows: np.ndarray) -> np.ndarray:
        """(B, *shape of the longest): the rows' entries, a copy, 0 beyond an entry's own shape."""
        longest = int(self._order.lengths[rows].max(initial=0))
        assert self.values is not None
        out = np.zeros((len(rows), *self._shape(longest)), self.values.dtype)
        for which, inside, block, places in self._pieces(rows):
            there: tuple[np.ndarray | slice, ...] = (which, *inside)
            out[there] = block[places]
        return out

    def write(self, rows: np.ndarray, entries: np.ndarray) -> None:
        """The inverse of `read`; what lies beyond an entry's own shape is left out."""
        for which, inside, block, places in self._pieces(rows):
            there: tuple[np.ndarray | slice, ...] = (which, *inside)
            block[places] = entries[there]

    def _pieces(
        self, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, tuple[slice, ...], np.ndarray, np.ndarray]]:
        """For each length among the rows: which of them have it, how far its entries reach in a padded array,
        the block of all entries of that length, and the rows' places in it."""
        lengths, positions = self._order.lengths[rows], self._order.positions[rows]
        values = np.asarray(self.values)  # a memory map's own class takes its time over every slice
        for length in np.unique(lengths).tolist():
            which = np.flatnonzero(lengths == length)
            shape, (first, count) = self._shape(length), self._order.blocks[length]
            block = values[slice(*self._spans[length])].reshape(count, *shape)
            yield which, tuple(map(slice, shape)), block, positions[which] - first
