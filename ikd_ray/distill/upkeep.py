"""Keeping the folder of saved epochs within its size, without taking anything from a trial that runs."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

IN_USE, HOUSEKEEPING = ".in_use", ".housekeeping.lock"
LOOK_EVERY = 0.02  # of the room: so much is saved between two looks at all there is


@dataclass(frozen=True)
class State:
    """A saved epoch, seen from outside."""

    folder: Path
    bytes: int
    used: float  # seconds since 1970

    @property
    def key(self) -> str:
        """Of the stage that it is an epoch of."""
        return self.folder.parent.name


def states(folder: Path) -> list[State]:
    """Every saved epoch below the folder of all stages."""
    found = []
    for epoch in folder.glob("[!.]*/[!.]*"):
        with suppress(OSError):  # it went meanwhile
            size = sum(file.stat().st_size for file in epoch.iterdir())
            found.append(State(epoch, size, epoch.stat().st_mtime))
    return found


class Upkeep:
    """One process's part in it: it says what it stands on, and makes room when it saves."""

    def __init__(self, folder: Path, disk_gb: float) -> None:
        self._folder, self._room = folder, disk_gb * 1e9
        self._saved = self._room  # since the last look: the first one is due
        self._lease: Path | None = None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Within it, nothing of what is given to `keep` goes."""
        home = self._folder / IN_USE
        home.mkdir(parents=True, exist_ok=True)
        lease = home / uuid.uuid4().hex
        with FileLock(lease.with_suffix(".lock")):
            lease.mkdir()
            self._lease = lease
            try:
                yield
            finally:
                self._lease = None
                shutil.rmtree(lease, ignore_errors=True)
        lease.with_suffix(".lock").unlink(missing_ok=True)

    def keep(self, key: str) -> None:
        """The stage's epochs, those still to come too, are stood on from now on."""
        # Not while somebody makes room: they have read what is in use.
        with FileLock(self._folder / HOUSEKEEPING):
            (self._lease / key).touch()

    def saved(self, folder: Path) -> None:
        """Note a new state; makes room where all together take too much."""
        self._saved += sum(file.stat().st_size for file in folder.iterdir())
        if self._saved >= LOOK_EVERY * self._room:
            self._saved = 0
            make_room(self._folder, self._room)


def make_room(folder: Path, room: float) -> list[State]:
    """Remove states, the least recently used first, until the others take at most `room` bytes.

    What a running trial stands on stays, even if that is more.

    Returns:
        What went.
    """
    gone = []
    with FileLock(folder / HOUSEKEEPING):
        there = sorted(states(folder), key=lambda state: state.used)
        total = sum(state.bytes for state in there)
        if total <= room:
            return []
        used = in_use(folder)
        for state in there:
            if total <= room:
                break
            if state.key not in used:
                remove(state)
                gone.append(state)
                total -= state.bytes
    return gone


def in_use(folder: Path) -> set[str]:
    """Keys of the stages that running trials stand on. To be asked while making room."""
    used = set()
    for lease in [path for path in (folder / IN_USE).glob("*") if path.is_dir()]:
        try:
            with FileLock(lease.with_suffix(".lock"), blocking=False):
                shutil.rmtree(lease, ignore_errors=True)  # of a process that was killed
            lease.with_suffix(".lock").unlink(missing_ok=True)
        except Timeout:
            with suppress(FileNotFoundError):  # it ended just now
                used |= {key.name for key in lease.iterdir()}
    return used


def remove(state: State) -> None:
    """The state is gone at once, for who looks for it; then its files go."""
    aside = state.folder.with_name(f".{state.folder.name}.{uuid.uuid4().hex[:8]}")
    with suppress(OSError):
        os.rename(state.folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
        state.folder.parent.rmdir()  # the last one's
