"""Keeping the folder of saved epochs within its size, without taking anything from a trial that runs."""

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

IN_USE, GOING, LOCKS, HOUSEKEEPING = ".in_use", ".going", ".locks", ".housekeeping.lock"
SCAN_EVERY = 0.02  # of the room: so much is saved between two looks at all there is


@dataclass(frozen=True)
class CacheEntry:
    """A saved epoch, or what is saved beside a stage's epochs, seen from outside."""

    folder: Path
    bytes: int
    used: float  # seconds since 1970

    @property
    def key(self) -> str:
        """Of the stage that it belongs to."""
        return self.folder.parent.name


def touch(state: Path) -> None:
    """Its time of change is when it was last used; only that is lost where it is another user's."""
    with suppress(OSError):
        os.utime(state)


def cache_entries(folder: Path) -> list[CacheEntry]:
    """Everything saved below the folder of all stages."""
    found = []
    for epoch in folder.glob("[!.]*/[!.]*"):
        with suppress(OSError):  # it went meanwhile
            found.append(CacheEntry(epoch, _bytes(epoch), epoch.stat().st_mtime))
    return found


def _bytes(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # who looks for a state replaces what it remembers of it
            size += file.stat().st_size
    return size


_since_look: dict[Path, float] = {}  # bytes that this process has saved since it last looked at all there is


class CacheEviction:
    """One process's part in it: it says what it stands on, and makes room when it saves."""

    def __init__(self, folder: Path, disk_gb: float) -> None:
        self._folder, self._room = folder, disk_gb * 1e9
        self._lease: Path | None = None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Within it, nothing of what is given to `pin` goes."""
        home = self._folder / IN_USE
        home.mkdir(parents=True, exist_ok=True)
        (self._folder / LOCKS).mkdir(exist_ok=True)
        lease = home / uuid.uuid4().hex
        lock = FileLock(lease.with_suffix(".lock"))
        # Not while somebody makes room: a lock that nobody holds is a killed process's to them.
        with FileLock(self._folder / HOUSEKEEPING):
            held = lock.acquire()
        with held:
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
        """The stage's epochs, those still to come too, are stood on from now on."""
        assert self._lease is not None, "within `lease` alone"
        # Not while somebody makes room: they have read what is in use.
        with FileLock(self._folder / HOUSEKEEPING), open(self._lease, "a") as keys:
            keys.write(f"{key}\n")

    def entry_saved(self, folder: Path) -> None:
        """Note a new state; makes room where all together take too much."""
        since = _since_look.get(self._folder, self._room) + _bytes(folder)  # the first look is due
        if since >= SCAN_EVERY * self._room:
            since = 0
            with suppress(OSError):  # another time, then
                evict(self._folder, self._room)
        _since_look[self._folder] = since


def evict(folder: Path, room: float) -> list[CacheEntry]:
    """Remove cache_entries, the least recently used first, until the others take at most `room` bytes.

    What a running trial stands on stays, even if that is more. What killed processes left goes. Where the disk
    is nearly full, what others need of it is not for the states.

    Returns:
        What went.
    """
    gone, going = [], folder / GOING
    going.mkdir(exist_ok=True)
    with FileLock(folder / HOUSEKEEPING):
        used = _in_use(folder)
        there = sorted(cache_entries(folder), key=lambda state: state.used)
        total = sum(state.bytes for state in there)
        room = min(room, store.MAX_DISK_SHARE * (total + shutil.disk_usage(folder).free))
        for state in there:
            if total <= room:
                break
            if state.key not in used and _set_aside(state.folder, going):
                gone.append(state)
                total -= state.bytes
        for stage in folder.glob("[!.]*"):
            if stage.name not in used:
                for left in stage.glob(".*"):  # by who was killed: whoever saves stands on the stage
                    _set_aside(left, going)
                with suppress(OSError):  # it holds something
                    stage.rmdir()
        for lock in (folder / LOCKS).glob("*"):
            if lock.name not in used and not (folder / lock.name).exists():
                lock.unlink(missing_ok=True)
    for path in going.iterdir():  # this takes long, and nobody need wait for it
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return gone


def _set_aside(path: Path, going: Path) -> bool:
    """Make something vanish at once, for who looks for it; returns whether it is gone."""
    try:
        os.rename(path, going / uuid.uuid4().hex)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _in_use(folder: Path) -> set[str]:
    """Keys of the stages that running trials stand on. Removes the leases of processes that were killed."""
    used, home = set(), folder / IN_USE
    home.mkdir(exist_ok=True)
    # On NFS a folder's list may be a minute old, unless a change of one's own shows that there is a newer one.
    with tempfile.TemporaryFile(dir=home):
        pass
    for lock in _locks(home):
        keys = lock.with_suffix("")
        try:
            with FileLock(lock, blocking=False):
                keys.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        except OSError:  # somebody holds it, or it is another user's
            used |= _keys(keys)
    return used


def leased_keys(folder: Path) -> set[str]:
    """The same for who must not write there; right for the moment only.

    Raises:
        OSError: it cannot be told.
    """
    used = set()
    for lock in _locks(folder / IN_USE):
        try:
            with FileLock(lock, blocking=False):
                pass
        except Timeout:
            used |= _keys(lock.with_suffix(""))
    return used


def _locks(home: Path) -> list[Path]:
    try:  # not with glob(), which finds nothing where it may not read
        return [path for path in home.iterdir() if path.suffix == ".lock"]
    except FileNotFoundError:
        return []


def _keys(lease: Path) -> set[str]:
    try:
        return set(lease.read_text().split())
    except FileNotFoundError:  # none yet, or it ended just now
        return set()
