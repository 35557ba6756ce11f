"""Arrays on disk: ragged rows, entries grouped by length, and arrays that survive an interrupted build."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np

from ikd_ray.storage import store

SAVE_SECONDS = 10.0  # between durable points: the work that a killed process loses at most
PROGRESS = "progress.json"


class ArrayFile:
    """An .npy file that grows entry by entry; only a small buffer of it is in memory."""

    def __init__(self, path: Path, dtype: type, entry: tuple[int, ...] = (), count: int = 0) -> None:
        """
        Args:
            entry: shape of an entry.
            count: entries to keep of a file begun before; what follows them is cut off.

        Raises:
            ValueError: the file has fewer.
        """
        self._dtype, self._entry, self.count = np.dtype(dtype), entry, count
        self._file = open(path, "r+b" if count else "wb")  # noqa: SIM115 - closed by `close`
        self._write_header()
        end = self._file.tell() + count * math.prod(entry) * self._dtype.itemsize
        if self._file.seek(0, os.SEEK_END) < end:
            self._file.close()
            raise ValueError(f"{path}: shorter than the {end} bytes of {count} entries")
        self._file.truncate(end)
        self._file.seek(end)

    def _write_header(self) -> None:
        # numpy leaves room in it for any count, so that it can be written again when the count is known.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.count, *self._entry)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, entries: np.ndarray) -> None:
        """Write (n, *entry) more."""
        self._file.write(np.ascontiguousarray(entries, self._dtype).data)
        self.count += len(entries)

    def sync(self) -> None:
        """Wait until all entries are on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Without it numpy cannot read the file."""
        try:
            self._file.seek(0)
            self._write_header()
        finally:
            self._file.close()


class ResumableArrays:
    """Array files that grow together in a folder of their own, step by step, with durable points.

    A context for one process at a time. Leaving it by an exception, or by being killed, leaves the folder: the
    next process goes on from its last durable point.
    """

    def __init__(self, folder: Path, key: str, dtype: type, entries: Mapping[str, tuple[int, ...]]) -> None:
        """
        Args:
            key: identifies what the steps are: a folder of another key is not gone on with.
            entries: each array's path in the folder, without suffix, and the shape of its entries. A folder
                that lacks one of them is not gone on with; what it has besides is removed.
        """
        self.steps = 0  # done, by earlier processes too
        self._folder, self._key, self._dtype, self._entries = folder, key, dtype, entries
        self._files: dict[str, ArrayFile] = {}

    def __enter__(self) -> ResumableArrays:
        self._closing = ExitStack()
        try:
            progress = json.loads((self._folder / PROGRESS).read_text())
            if progress["key"] != self._key:
                raise ValueError(f"{self._folder}: of other steps")
            self._open(progress["counts"])
            self.steps = progress["steps"]
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            self._closing.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._open(dict.fromkeys(self._entries, 0))
        for path in self._folder.rglob("*.npy"):
            if path.relative_to(self._folder).with_suffix("").as_posix() not in self._entries:
                path.unlink()
        self.save()
        return self

    def _open(self, counts: Mapping[str, int]) -> None:
        for name, entry in self._entries.items():
            path = self._folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = file = ArrayFile(path, self._dtype, entry, counts[name])
            self._closing.callback(file.close)
            store.fsync(path.parent)
        store.fsync(self._folder)

    def append(self, name: str, entries: np.ndarray) -> None:
        self._files[name].append(entries)

    def end_step(self) -> None:
        """All of a step's entries are appended; from time to time this makes a durable point."""
        self.steps += 1
        if time.monotonic() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Make a durable point."""
        for file in self._files.values():
            file.sync()
        counts = {name: file.count for name, file in self._files.items()}
        progress = {"key": self._key, "steps": self.steps, "counts": counts}
        store.write_atomic(self._folder / PROGRESS, json.dumps(progress))
        self._saved = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._closing:
            if kind is None:
                self.save()


def row_offsets(sizes: np.ndarray) -> np.ndarray:
    """(n,) row sizes -> (n + 1,) offsets, int64."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


@dataclass(frozen=True)
class RaggedArray:
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
    def open(cls, folder: Path, name: str) -> RaggedArray:
        """Memory-mapped values; the offsets are read."""
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return cls(values, np.load(folder / f"{name}.offsets.npy", allow_pickle=False))


class RaggedArrayWriter:
    """Writes what `RaggedArray.open` reads, from the first row to the last; only the rows' sizes are in memory."""

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
        np.save(self._offsets, row_offsets(np.concatenate(self._sizes)))


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


class BucketedArray:
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
