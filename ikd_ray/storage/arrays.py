"""Arrays on disk: entries grouped by length, and arrays whose writing survives an interruption."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from ikd_ray.storage import store

CHECKPOINT_SECONDS = 10.0  # between two checkpoints: the most work that a killed process loses
PROGRESS = "progress.json"


class LengthOrder:
    """Rows sorted by length (stable), as the entries of a `BucketedArray` are.

    Entries of equal length form one dense block. A batch is read with one copy per length instead of one per row,
    and evaluation, which goes by length, reads the file from front to back.

    Attributes:
        lengths: (n,) tokens of each row.
        rows: position -> row.
        positions: (n,) row -> position. A row without an entry has a position beyond the end of every array.
        blocks: length -> (first position, number of rows), by ascending length.
    """

    def __init__(self, lengths: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Sort by length the rows that have an entry (ascending; None: all)."""
        rows = np.arange(len(lengths)) if rows is None else rows
        self.lengths = lengths
        self.rows = rows[np.argsort(lengths[rows], kind="stable")]
        self.positions = np.full(len(lengths), len(lengths))
        self.positions[self.rows] = np.arange(len(self.rows))
        distinct, firsts, counts = np.unique(lengths[self.rows], return_index=True, return_counts=True)
        self.blocks: dict[int, tuple[int, int]] = dict(
            zip(distinct.tolist(), zip(firsts.tolist(), counts.tolist(), strict=True), strict=True)
        )

    def __len__(self) -> int:
        return len(self.rows)


class BucketedArray:
    """One entry per row in `LengthOrder`, its shape a function of the row's length, all in one flat array."""

    def __init__(
        self, values: np.ndarray | None, order: LengthOrder, shape: Callable[[int], tuple[int, ...]]
    ) -> None:
        """Lay entries out in a flat array.

        Args:
            values: (size,), may be a memory map; may be assigned later.
            order: the rows that have entries.
            shape: maps a length to the shape of an entry.
        """
        self.values, self._order, self._shape = values, order, shape
        self._spans: dict[int, tuple[int, int]] = {}
        end = 0
        for length, (_, count) in order.blocks.items():
            start, end = end, end + count * math.prod(shape(length))
            self._spans[length] = start, end
        self.size = end  # of the flat array

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the rows' entries, (B, *shape of the longest), padded with 0."""
        longest = int(self._order.lengths[rows].max(initial=0))
        assert self.values is not None
        out = np.zeros((len(rows), *self._shape(longest)), self.values.dtype)
        for index, block, positions in self._blocks(rows):
            out[index] = block[positions]
        return out

    def write(self, rows: np.ndarray, entries: np.ndarray) -> None:
        """Store padded entries as `read` returns them, without the padding."""
        for index, block, positions in self._blocks(rows):
            block[positions] = entries[index]

    def _blocks(
        self, rows: np.ndarray
    ) -> Iterator[tuple[tuple[np.ndarray | slice, ...], np.ndarray, np.ndarray]]:
        """Yield for each length: the index of its rows in a padded array, its block, and their positions there."""
        lengths, positions = self._order.lengths[rows], self._order.positions[rows]
        values = np.asarray(self.values)  # slicing a np.memmap is slow
        for length in np.unique(lengths).tolist():
            which = np.flatnonzero(lengths == length)
            shape, (first, count) = self._shape(length), self._order.blocks[length]
            block = values[slice(*self._spans[length])].reshape(count, *shape)
            yield (which, *map(slice, shape)), block, positions[which] - first


class ResumableArrays:
    """Array files that are filled from front to back, step by step, by a process that may be killed at any time.

    A context manager for one process at a time. A checkpoint records how much of every file is safely on the disk;
    after an exception or a kill the next process continues from the last checkpoint. Memory holds only what is being
    appended.

    Attributes:
        steps: number of steps that are complete, those of earlier processes included.
    """

    def __init__(self, folder: Path, key: str, dtype: type, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Name the arrays.

        Args:
            folder: belongs to these arrays alone. A folder of another key, or one that lacks an array, is not
                continued but replaced; arrays that are not in `shapes` are removed.
            key: identifies the sequence of steps.
            dtype: type of all values.
            shapes: path of each array below `folder`, without suffix -> its final shape.
        """
        self.steps = 0
        self._folder, self._key, self._dtype, self._shapes = folder, key, np.dtype(dtype), shapes
        self._filled = dict.fromkeys(shapes, 0)  # entries, along the first axis, that are written
        self._data_offsets: dict[str, int] = {}  # bytes of each file's header

    def __enter__(self) -> ResumableArrays:
        try:
            self._resume()
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._create()
        for path in self._folder.rglob("*.npy"):
            if path.relative_to(self._folder).with_suffix("").as_posix() not in self._shapes:
                path.unlink()
        self.checkpoint()
        return self

    def append(self, name: str, entries: np.ndarray) -> None:
        """Write (n, *entry shape) entries behind those that an array has."""
        count, *entry_shape = self._shapes[name]
        start, end = self._filled[name], self._filled[name] + len(entries)
        if end > count:
            raise ValueError(f"{self._path(name)}: {end} entries where {count} are expected")
        # Written, not assigned to a memory map: where a disk is full, that would kill the process.
        with open(self._path(name), "r+b") as file:
            file.seek(self._data_offsets[name] + start * math.prod(entry_shape) * self._dtype.itemsize)
            file.write(np.ascontiguousarray(entries, self._dtype).data)
        self._filled[name] = end

    def end_step(self) -> None:
        """Count a step as complete; every `CHECKPOINT_SECONDS` this makes a checkpoint."""
        self.steps += 1
        if time.monotonic() - self._checkpointed >= CHECKPOINT_SECONDS:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Wait until all that is written is on the disk, then record it."""
        for name in self._shapes:
            store.fsync(self._path(name))
        progress = {"key": self._key, "steps": self.steps, "counts": self._filled}
        store.write_atomic(self._folder / PROGRESS, json.dumps(progress))
        self._checkpointed = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.checkpoint()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _resume(self) -> None:
        progress = json.loads((self._folder / PROGRESS).read_text(encoding="utf-8"))
        if progress["key"] != self._key:
            raise ValueError(f"{self._folder} belongs to another sequence of steps")
        for name, shape in self._shapes.items():
            array = open_memmap(self._path(name), "r")
            if (array.dtype, array.shape) != (self._dtype, shape):
                raise ValueError(f"{self._path(name)} has another type or shape")
            self._data_offsets[name] = array.offset
            self._filled[name] = progress["counts"][name]
        self.steps = progress["steps"]

    def _create(self) -> None:
        self._filled = dict.fromkeys(self._shapes, 0)
        for name, shape in self._shapes.items():
            path = self._path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._data_offsets[name] = open_memmap(path, "w+", self._dtype, shape).offset
            _reserve(path)
            store.fsync(path.parent)
        store.fsync(self._folder)


def _reserve(path: Path) -> None:
    """Reserve a sparse file's blocks, so that a disk that is too small is noticed now and not in the middle."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:  # else the file system cannot reserve
            if store.is_disk_full(error):
                raise
