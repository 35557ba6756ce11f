"""A sweep of which processes are killed at seeded moments, and which goes on until it has ended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.process_tree import Process, ProcessTree
from tests.helpers.run_command import saved_epochs, start_sweep

STARTED, STEP, EPOCH = " started: ", " ...", " epoch "  # in lines that `sweeps/run.py` prints
FATAL = ("driver", "raylet")  # with these the sweep ends, and has to be resumed
NAME = "sweep"
SECONDS = {1: 400.0, 2: 900.0}  # that a sweep of so many workers a trial may take
LINE_SECONDS, END_SECONDS, GONE_SECONDS, LONG_GONE_SECONDS = 180.0, 90.0, 15.0, 60.0


@dataclass(frozen=True)
class Moment:
    """`delay` seconds after the `count`-th line with `words` from now on."""

    words: str
    count: int
    delay: float

    def __str__(self) -> str:
        return f"{self.delay:.2f} s after {self.count} x {self.words!r}"


@dataclass(frozen=True)
class Kill:
    victim: str  # "driver", or one of `victims.TITLES`
    moment: Moment
    draw: float  # which one of several, from 0 to 1


def draw_kill(victim: str, rng: random.Random) -> Kill:
    """Some kills of trials, and half of those of a worker, come in the first epochs; others anywhere."""
    if victim == "worker":
        moments = [Moment(STARTED, 1, rng.uniform(0, 5)), Moment(EPOCH, 1, rng.uniform(0, 3))]
    else:
        moments = [Moment(STARTED, rng.randint(1, 2), rng.uniform(0, 2.5))]
        # One in three while the sweep is being prepared, by when there is a raylet. A raylet's turn comes after a
        # trial's, when that is over.
        if victim == "driver":
            moments = [*moments * 2, Moment(STEP, rng.randint(2, 4), rng.uniform(0, 1.5))]
    return Kill(victim, rng.choice(moments), rng.random())


class SweepRun:
    """One process of `sweeps/run.py`, from its start to its end."""

    def __init__(self, environment: Mapping[str, str], home: Path, arguments: Sequence[object]) -> None:
        self.process = start_sweep(dict(environment), home, list(arguments))
        self.lines: list[str] = []
        self.at_kill = 0  # lines that came before the last one
        self._news = threading.Condition()
        self._over = False
        self._seen = 0  # lines that moments have been looked for in
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def wait_for(self, words: str, count: int) -> None:
        """Until so many more lines have the words."""
        end = time.monotonic() + LINE_SECONDS * count
        with self._news:
            while count:
                fresh = self._news.wait_for(
                    lambda: self._over or len(self.lines) > self._seen, end - time.monotonic()
                )
                assert fresh, f"too long without {words!r}:\n{self.text}"
                assert len(self.lines) > self._seen, f"it ended before {words!r}:\n{self.text}"
                count -= words in self.lines[self._seen]
                self._seen += 1

    def end(self, seconds: float) -> int:
        """Its exit status. Without an end by itself, it is ended."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end within {seconds:.0f} s:\n{self.text}") from None
        self._reader.join(10)
        return status


class KilledSweep:
    """A sweep that is killed, and told to go on, until it has ended."""

    def __init__(
        self, environment: Mapping[str, str], home: Path, say: Callable[[str], None] = print
    ) -> None:
        """`home` is a folder for this sweep alone. `say(line)` tells of each kill."""
        self.home, self.folder, self._say = home, home / "outputs" / NAME, say
        self._family = ProcessTree(home)
        self._environment = {**environment, **self._family.environment}
        self._rays_folders: set[Path] = set()
        self.left: list[str] = []  # who outlived a process of `sweeps/run.py` for too long
        self.legs: list[SweepRun] = []
        self.kept: dict[Path, float] = {}  # epochs that were saved when something was killed

    def run(self, arguments: Sequence[object], kills: Sequence[Kill], workers: int) -> None:
        """To its end, through all the kills; of a sweep that has so many workers a trial."""
        try:
            self._start(arguments)
            for kill in kills:
                self._kill(kill)
                if kill.victim in FATAL:
                    self._check_end(kill.victim)
                    # Before there is a record of the sweep, the same command starts it.
                    recorded = (self.folder / "sweep.json").exists()
                    self._start(["--resume", NAME] if recorded else arguments)
            leg = self.legs[-1]
            status = leg.end(SECONDS[workers])
            assert status == 0, f"status {status}:\n{leg.text}"
            self._note_who_is_left()
            assert not any("Traceback" in leg.text for leg in self.legs), self.text
        finally:
            self._clean()

    @property
    def text(self) -> str:
        return "\n--- the next process ---\n".join(leg.text for leg in self.legs)

    def _start(self, arguments: Sequence[object]) -> None:
        self.legs.append(SweepRun(self._environment, self.home, arguments))

    def _kill(self, kill: Kill) -> None:
        leg, moment = self.legs[-1], kill.moment
        leg.wait_for(moment.words, moment.count)
        if kill.victim != "driver":
            self._find(kill)
        time.sleep(moment.delay)
        saved = saved_epochs(self.home / "outputs")
        self._rays_folders |= self._family.rays_folders()
        pid = leg.process.pid if kill.victim == "driver" else self._find(kill).pid
        assert leg.process.poll() is None, f"it ended before {kill.victim} was killed:\n{leg.text}"
        leg.at_kill = len(leg.lines)
        os.kill(pid, signal.SIGKILL)
        self.kept |= saved
        after = leg.lines[-1].rstrip() if leg.lines else "nothing"
        self._say(f"{kill.victim} {pid} killed {moment}, with {len(saved)} epochs saved; last line: {after}")

    def _find(self, kill: Kill) -> Process:
        end = time.monotonic() + LINE_SECONDS
        while not (found := self._family.find(kill.victim)):
            assert time.monotonic() < end, f"no {kill.victim} to kill:\n{self.text}"
            time.sleep(0.05)
        return found[int(kill.draw * len(found))]

    def _check_end(self, victim: str) -> None:
        leg = self.legs[-1]
        status = leg.end(END_SECONDS)
        if victim == "driver":
            assert status == -signal.SIGKILL
        else:
            assert status != 0, f"it ended well without its {victim}:\n{leg.text}"
            # Without a record of it there is nothing to resume.
            hint = f"--resume {NAME}" if (self.folder / "sweep.json").exists() else "the same command"
            after = "".join(leg.lines[leg.at_kill :])
            assert hint in after, f"status {status} without a hint {hint!r} at its end:\n{leg.text}"
        self._note_who_is_left()

    def _note_who_is_left(self) -> None:
        """Told at the very end: what else is wrong is worth knowing, too."""
        start = time.monotonic()
        if left := self._family.left(GONE_SECONDS):
            names = ", ".join(f"{process.pid} {process.title.strip()[:100]}" for process in left)
            still = self._family.left(LONG_GONE_SECONDS)
            end = "and stay" if still else f"and go after {time.monotonic() - start:.0f} s"
            self.left.append(f"{GONE_SECONDS:.0f} s after an end there are still {names}, {end}")

    def _clean(self) -> None:
        """Whatever was found wrong, leave no process."""
        self._rays_folders |= self._family.rays_folders()
        while alive := self._family.alive():
            for process in alive:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)
        for folder in self._rays_folders:
            shutil.rmtree(folder, ignore_errors=True)
