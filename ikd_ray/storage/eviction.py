"""Eviction from the cache of saved epochs: least recently used first, never what a running trial uses.

FOLDER/KEY/NAME         an entry: a saved epoch of the stage with that key, or an array derived from one
FOLDER/.in_use/         leases: for each running process a locked file and the keys that it uses
FOLDER/.locks/          one lock per stage, held by the process that trains it
FOLDER/.going/          entries on their way out: renamed first, which is atomic, then removed
FOLDER/.housekeeping.lock   held while leases are taken or entries are evicted
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ikd_ray.storage import store

LEASES, TRASH, LOCKS, EVICTION_LOCK = ".in_use", ".going", ".locks", ".housekeeping.lock"
SCAN_EVERY = 0.02  # the folder is scanned after so much of its capacity has been written


@dataclass(frozen=True)
class CacheEntry:
    """A saved epoch, or an array stored beside the epochs of a stage."""

    folder: Path
    bytes: int
    used: float  # seconds since 1970

    @property
    def key(self) -> str:
        """Key of the entry's stage."""
        return self.folder.parent.name


def cache_entries(folder: Path) -> list[CacheEntry]:
    """Return all entries below the folder of all stages."""
    entries = []
    for path in folder.glob("[!.]*/[!.]*"):
        with suppress(OSError):  # removed meanwhile
            entries.append(CacheEntry(path, _size(path), path.stat().st_mtime))
    return entries


def touch(entry: Path) -> None:
    """Record that an entry is used now, by its modification time; without effect if another user owns it."""
    with suppress(OSError):
        os.utime(entry)


def leased_keys(folder: Path) -> set[str]:
    """Return the keys that running processes use, as of this moment, without writing to the folder.

    Raises:
        OSError: the leases cannot be read.
    """
    keys = set()
    for lock in _lease_locks(folder / LEASES):
        try:
            with FileLock(lock, blocking=False):
                pass
        except Timeout:
            keys |= _read_keys(lock.with_suffix(""))
    return keys


def evict(folder: Path, capacity: float) -> list[CacheEntry]:
    """Remove and return entries, the least recently used first, until the others take at most `capacity` bytes.

    Entries of leased keys stay, even if they take more. Leftovers of killed processes are removed. Where the disk is
    nearly full, the capacity is what `store.MAX_DISK_SHARE` leaves to others.
    """
    removed, trash = [], folder / TRASH
    trash.mkdir(exist_ok=True)
    with FileLock(folder / EVICTION_LOCK):
        leased = _collect_leases(folder)
        entries = sorted(cache_entries(folder), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        capacity = min(capacity, store.MAX_DISK_SHARE * (total + shutil.disk_usage(folder).free))
        for entry in entries:
            if total <= capacity:
                break
            if entry.key not in leased and _move_to_trash(entry.folder, trash):
                removed.append(entry)
                total -= entry.bytes
        for stage in folder.glob("[!.]*"):
            if stage.name not in leased:
                for leftover in stage.glob(".*"):  # of a killed process: a live one would hold a lease
                    _move_to_trash(leftover, trash)
                with suppress(OSError):  # not empty
                    stage.rmdir()
        for lock in (folder / LOCKS).glob("*"):
            if lock.name not in leased and not (folder / lock.name).exists():
                lock.unlink(missing_ok=True)
    for path in trash.iterdir():  # outside the lock: this may take long
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed


_unscanned: dict[Path, float] = {}  # folder -> bytes that this process has written since its last scan


class CacheEviction:
    """One process's leases on the cache, and the eviction that its writes trigger."""

    def __init__(self, folder: Path, disk_gb: float) -> None:
        self._folder, self._capacity = folder, disk_gb * 1e9
        self._lease: Path | None = None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Hold a lease: within the block nothing is evicted whose key was given to `pin`."""
        (self._folder / LEASES).mkdir(parents=True, exist_ok=True)
        (self._folder / LOCKS).mkdir(exist_ok=True)
        lease = self._folder / LEASES / uuid.uuid4().hex
        lock = FileLock(lease.with_suffix(".lock"))
        # Never during an eviction, which takes a lock file that nobody holds for that of a killed process.
        with FileLock(self._folder / EVICTION_LOCK):
            acquired = lock.acquire()
        with acquired:
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None
                with suppress(OSError):
                    lease.unlink()
        with suppress(OSError):
            lease.with_suffix(".lock").unlink()

    def pin(self, key: str) -> None:
        """Protect a stage's entries, including future ones, until the lease ends."""
        assert self._lease is not None, "within `lease` alone"
        # Never during an eviction, which has read the leases already.
        with FileLock(self._folder / EVICTION_LOCK), open(self._lease, "a", encoding="utf-8") as keys:
            keys.write(f"{key}\n")

    def entry_saved(self, entry: Path) -> None:
        """Account for a new entry; evict where all entries together take too much."""
        unscanned = _unscanned.get(self._folder, self._capacity) + _size(entry)  # the first scan is due
        if unscanned >= SCAN_EVERY * self._capacity:
            unscanned = 0
            with suppress(OSError):  # the next scan tries again
                evict(self._folder, self._capacity)
        _unscanned[self._folder] = unscanned


def _size(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # `store.is_intact` replaces its record of verified files
            size += file.stat().st_size
    return size


def _move_to_trash(path: Path, trash: Path) -> bool:
    """Make a path disappear at once; return whether it is gone."""
    try:
        os.rename(path, trash / uuid.uuid4().hex)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _collect_leases(folder: Path) -> set[str]:
    """Return the leased keys and remove the leases of killed processes."""
    leased, leases = set(), folder / LEASES
    leases.mkdir(exist_ok=True)
    # NFS caches a folder's list for up to a minute, unless a change of one's own shows that it is outdated.
    with tempfile.TemporaryFile(dir=leases):
        pass
    for lock in _lease_locks(leases):
        lease = lock.with_suffix("")
        try:
            with FileLock(lock, blocking=False):
                lease.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        except OSError:  # held (Timeout is an OSError), or another user's
            leased |= _read_keys(lease)
    return leased


def _lease_locks(leases: Path) -> list[Path]:
    try:  # not glob(), which finds nothing where it may not read
        return [path for path in leases.iterdir() if path.suffix == ".lock"]
    except FileNotFoundError:
        return []


def _read_keys(lease: Path) -> set[str]:
    try:
        return set(lease.read_text(encoding="utf-8").split())
    except FileNotFoundError:  # nothing pinned yet, or just released
        return set()
