"""A sweep whose processes are killed at seeded moments, and which is resumed until it has ended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers.consistency import saved_epochs
from tests.helpers.process_tree import title
from tests.helpers.run_command import LINE_S, SweepExit, SweepProcess

STARTED, STEP, EPOCH = " started: ", " ...", " epoch "  # in lines that `run.py` prints
FATAL = ("driver", "raylet")  # without these the sweep ends, and has to be resumed
NAME = "sweep"
SWEEP_S = {1: 400.0, 2: 900.0}  # seconds that a sweep may take, by workers per trial
END_S, GONE_S = 90.0, 15.0  # seconds from a kill to the end, and from there to that of the last process


@dataclass(frozen=True)
class Kill:
    """A process to kill `delay` seconds after the `count`-th line with `words` from now on."""

    victim: str  # "driver", or a kind of `process_tree.TITLES`
    words: str
    count: int
    delay: float
    draw: float  # which of several processes, from 0 to 1


def draw_kill(victim: str, rng: random.Random) -> Kill:
    """Draw the moment: for trials and half of the workers in their first epochs, else anywhere."""
    if victim == "worker":
        moments = [(STARTED, 1, rng.uniform(0, 5)), (EPOCH, 1, rng.uniform(0, 3))]
    else:
        moments = [(STARTED, rng.randint(1, 2), rng.uniform(0, 2.5))]
        if victim == "driver":  # one in three while the sweep is prepared
            moments = [*moments * 2, (STEP, rng.randint(2, 4), rng.uniform(0, 1.5))]
    return Kill(victim, *rng.choice(moments), rng.random())


class KilledSweep:
    """A sweep in a home of its own, through kills and resumptions to its end.

    Attributes:
        folder: the sweep's folder.
        saved: epochs that had been saved when something was killed, with their seconds.
        left: descriptions of processes that outlived a driver for too long.
    """

    def __init__(self, environment: Mapping[str, str], home: Path) -> None:
        self.home, self.folder = home, home / "outputs" / NAME
        self.saved: dict[Path, float] = {}
        self.left: list[str] = []
        self._environment = dict(environment)
        self._processes: list[SweepProcess] = []

    def run(self, arguments: Sequence[object], kills: Sequence[Kill], workers: int) -> None:
        """Run to the end through all kills, and assert that the last process ended well."""
        try:
            self._start(arguments)
            for kill in kills:
                self._kill(kill, self._processes[-1])
                if kill.victim in FATAL:
                    # Before the sweep has a record, the same command starts it.
                    self._start(["--resume", NAME] if self._has_record() else arguments)
            ended = self._end(SWEEP_S[workers])
            assert ended.status == 0, f"status {ended.status}:\n{ended.text}"
            texts = [process.text for process in self._processes]
            assert not any("Traceback" in text for text in texts), "\n--- next process ---\n".join(texts)
        finally:
            for process in self._processes:
                process.close()
                for folder in process.new_ray_folders():
                    shutil.rmtree(folder, ignore_errors=True)

    def _start(self, arguments: Sequence[object]) -> None:
        self._processes.append(SweepProcess(self._environment, self.home, arguments, own_home=True))

    def _has_record(self) -> bool:
        return (self.folder / "sweep.json").exists()

    def _kill(self, kill: Kill, sweep: SweepProcess) -> None:
        sweep.wait_for(kill.words, count=kill.count)
        if kill.victim != "driver":
            self._find(kill, sweep)
        time.sleep(kill.delay)
        saved = saved_epochs(self.home / "outputs")
        pid = sweep.process.pid if kill.victim == "driver" else self._find(kill, sweep).pid
        assert sweep.process.poll() is None, f"ended before {kill.victim} was killed:\n{sweep.text}"
        os.kill(pid, signal.SIGKILL)
        self.saved |= saved
        moment = f"{kill.delay:.2f} s after {kill.count} x {kill.words!r}"
        last = sweep.lines[-1].rstrip() if sweep.lines else "nothing"
        print(f"{kill.victim} {pid} killed {moment}, with {len(saved)} epochs saved; last line: {last}")
        if kill.victim == "driver":
            assert self._end(END_S).status == -signal.SIGKILL
        elif kill.victim in FATAL:
            ended = self._end(END_S)
            assert ended.status != 0, f"ended well without its {kill.victim}:\n{ended.text}"
            hint = f"--resume {NAME}" if self._has_record() else "the same command"
            assert ended.tells_to_resume(hint), f"no {hint!r} at its end:\n{ended.text}"

    def _find(self, kill: Kill, sweep: SweepProcess) -> psutil.Process:
        end = time.monotonic() + LINE_S
        while not (found := sweep.tree.find(kill.victim)):
            assert time.monotonic() < end, f"no {kill.victim} to kill:\n{sweep.text}"
            time.sleep(0.05)
        return found[int(kill.draw * len(found))]

    def _end(self, seconds: float) -> SweepExit:
        """Wait for the end; note which processes outlive it, as a later failure may explain them."""
        sweep = self._processes[-1]
        ended = sweep.end(seconds)
        if left := sweep.tree.wait_for_end(GONE_S, ignore_agents=True):
            titles = ", ".join(f"{process.pid} {title(process)[:100]}" for process in left)
            self.left.append(f"{GONE_S:.0f} s after an end there are still {titles}")
        return ended
