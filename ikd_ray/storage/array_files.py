"""Arrays written to disk front to back, in constant memory, by processes that may be killed at any time."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
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


class GrowingArrays:
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

    def __enter__(self) -> GrowingArrays:
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
            store.flush(path.parent)
        store.flush(self._folder)

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
        store.replace(self._folder / PROGRESS, json.dumps(progress))
        self._saved = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._closing:
            if kind is None:
                self.save()
