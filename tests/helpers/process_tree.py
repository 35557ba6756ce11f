"""The processes of one sweep, including those whose parents have died."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil

# Titles that Ray gives to its processes, by what they do for a sweep.
TITLES = {
    "trial": re.compile(r"ray::\w*(Trainable|ImplicitFunc)\b"),
    "worker": re.compile(r"ray::\w*TrainWorker"),
    "raylet": re.compile(r"\S*/raylet\s"),
    "gcs_server": re.compile(r"\S*/gcs_server\s"),
}
# Agents notice within a minute that Ray is gone, and end then.
AGENTS = re.compile(r"ray::(Dashboard|RuntimeEnv)Agent")
MARK = "IKD_TESTED_SWEEP"  # environment variable, inherited by every process of a sweep


def title(process: psutil.Process) -> str:
    """Return the command line of a process, or "" where it has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


class ProcessTree:
    """Processes found by a mark in their environment, by their working directory and by their parents.

    All three are needed: a process that renames itself may overwrite its environment, and one whose parent dies
    gets another.
    """

    def __init__(self, home: Path | None = None) -> None:
        """Choose a new mark.

        Args:
            home: working directory of the sweep's processes, if nobody else works there.
        """
        self._home, self._mark = home, uuid.uuid4().hex
        self._known: set[psutil.Process] = set()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for the root process."""
        return {MARK: self._mark}

    def alive(self) -> list[psutil.Process]:
        """Return the processes that run now, zombies left out."""
        parents = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    parents[process] = process.ppid()
        found = {process for process in parents if process in self._known or self._is_marked(process)}
        while more := {p for p, parent in parents.items() if parent in {f.pid for f in found}} - found:
            found |= more
        self._known |= found
        return sorted(found, key=lambda process: process.pid)

    def find(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind of `TITLES` that run now."""
        return [process for process in self.alive() if TITLES[kind].search(title(process))]

    def wait_for_end(self, seconds: float, ignore_agents: bool = False) -> list[psutil.Process]:
        """Return the processes that still run after `seconds`, at once when there are none."""
        end = time.monotonic() + seconds
        while True:
            alive = [p for p in self.alive() if not (ignore_agents and AGENTS.match(title(p)))]
            if not alive or time.monotonic() > end:
                return alive
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill all processes, and those that they start meanwhile."""
        while alive := self.alive():
            for process in alive:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(alive, timeout=1)

    def listening(self) -> list[tuple[str, str]]:
        """Return (process name, address) of every socket that waits for connections or datagrams."""
        found = []
        for process in self.alive():
            with suppress(psutil.Error):
                sockets = process.net_connections(kind="inet")
                waiting = [s for s in sockets if s.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)]
                found += [(process.name(), socket.laddr.ip) for socket in waiting]
        return found

    def _is_marked(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            if self._home is not None and Path(process.cwd()).is_relative_to(self._home):
                return True
            return process.environ().get(MARK) == self._mark
        return False
