"""All processes of one sweep, also those whose parents died. Linux only: it reads /proc."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What Ray calls its processes.
TITLES = {
    "trial": re.compile(r"ray::\w*(Trainable|ImplicitFunc)\b"),
    "worker": re.compile(r"ray::\w*TrainWorker"),
    "raylet": re.compile(r"\S*/raylet\s"),
}
# They see that Ray is gone after a minute, whoever's driver was killed; then they go.
AGENTS = re.compile(r"ray::(Dashboard|RuntimeEnv)Agent")
MARK = "IKD_TESTED_SWEEP"  # of the environment, which every process inherits
RAYS_FOLDER = re.compile(r"/tmp/ikd-[^/\s]+")


@dataclass(frozen=True)
class Process:
    """One that is no zombie."""

    pid: int
    since: str  # tells it from a later one with the same id
    parent: int = field(compare=False)
    title: str = field(compare=False)
    own: bool = field(compare=False)  # whether it has the sweep's mark, or works in its folder


class ProcessTree:
    """Found by a mark in their environment, by their working folder and by their parents.

    None of these is there for ever: processes that rename themselves write over the first.
    """

    def __init__(self, home: Path) -> None:
        """`home`: the folder that the sweep is started in, its own."""
        self._home, self._mark = home, f"{MARK}={uuid.uuid4().hex}"
        self._known: set[Process] = set()

    @property
    def environment(self) -> dict[str, str]:
        """To be given to the sweep."""
        return dict([self._mark.split("=")])

    def alive(self) -> list[Process]:
        """Those that run now."""
        there = list(self._processes())
        known = {process.pid for process in there if process.own or process in self._known}
        more = True
        while more:
            more = {process.pid for process in there if process.parent in known} - known
            known |= more
        found = [process for process in there if process.pid in known]
        self._known |= set(found)
        return found

    def find(self, victim: str) -> list[Process]:
        """Those that run now and are what `TITLES` names."""
        return [process for process in self.alive() if TITLES[victim].match(process.title)]

    def left(self, seconds: float) -> list[Process]:
        """Those that still run after so long, but for Ray's agents; it waits no longer than it must."""
        end = time.monotonic() + seconds
        while (alive := self._at_work()) and time.monotonic() < end:
            time.sleep(0.2)
        return alive

    def _at_work(self) -> list[Process]:
        return [process for process in self.alive() if not AGENTS.match(process.title)]

    def rays_folders(self) -> set[Path]:
        """Where Ray has its sockets and logs; nobody removes it where the driver is killed."""
        return {Path(name) for process in self.alive() for name in RAYS_FOLDER.findall(process.title)}

    def _processes(self) -> Iterator[Process]:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (process := self._read(entry)):
                yield process

    def _read(self, entry: Path) -> Process | None:
        try:
            state, parent, *more = (entry / "stat").read_text().rpartition(")")[2].split()
            if state in "ZX":
                return None
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            at_home = Path(os.readlink(entry / "cwd")).is_relative_to(self._home)
            own = at_home or self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile, or is somebody else's
            return None
        return Process(int(entry.name), more[17], int(parent), title, own)
