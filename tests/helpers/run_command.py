"""`sweeps/run.py` as a user starts it."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import psutil

from ikd_ray.distill.epoch_cache import STAGES
from ikd_ray.records import read_trials
from ikd_ray.storage.store import MANIFEST, is_intact
from tests.helpers.tiny_models import make_dataset, write_teacher

ROOT = Path(__file__).resolve().parents[2]
MARK = "IKD_TEST_MARK"  # in the environment of a sweep and of all that it starts
LINGER_S = 5  # in which the last of a sweep's processes may notice that its others are gone
VARIES = ("time/", "latency", "_epochs")  # metrics that say when, where and by whom it was trained
FOLDER = "/tmp/ikd-"  # how the names of Ray's folders begin


def write_glue(folder: Path, train: int = 96, dev: int = 40) -> Path:
    """Made-up sentences in the layout of GLUE's CoLA."""
    (folder / "CoLA").mkdir(parents=True)
    for name, split in make_dataset(train=train, dev=dev).splits.items():
        rows = (f"x\t{label}\t\t{text}\n" for text, label in zip(split.text, split.labels, strict=True))
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(rows))
    return folder


def write_inputs(folder: Path, **sizes: int) -> Path:
    """A tiny teacher and made-up sentences, in `teacher` and `glue`. `sizes`: see `write_glue`."""
    write_teacher(folder / "teacher")
    write_glue(folder / "glue", **sizes)
    return folder


def sweep_flags(inputs: Path, space: Path, name: str) -> list[object]:
    """Of a sweep on the tiny teacher and data."""
    teacher, glue = inputs / "teacher", inputs / "glue"
    return ["--task", "cola", "--teacher", teacher, "--data-dir", glue, "--space", space, "--name", name]


def start_sweep(
    environment: dict[str, str], home: Path, arguments: list[object], within: Sequence[str] = (), **options
) -> subprocess.Popen:
    """The sweep in a process whose lines can be read as they come, those on stderr among them.

    Args:
        within: a command that runs the command which follows it.
        options: more of, or instead of, what `Popen` is given here.
    """
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    command = [*within, sys.executable, str(ROOT / "sweeps" / "run.py"), *map(str, arguments)]
    return subprocess.Popen(command, cwd=home, env=environment, **given)


@dataclass
class SweepExit:
    """How a sweep ended, and what it left."""

    status: int
    seconds: float  # from the signal on, where there was one
    output: str  # all its lines
    errors: str  # those on stderr
    processes: list[str]  # command lines of those that are still there
    folders: set[str]  # of Ray, below /tmp


class SweepProcess:
    """A running sweep: its lines, and all processes that come of it, whoever is their parent by now."""

    def __init__(self, *arguments, **options) -> None:
        """What `start` takes."""
        self._mark, self._before = uuid.uuid4().hex, _ray_folders()
        self._since, self._errors = time.monotonic(), tempfile.TemporaryFile("w+")  # noqa: SIM115 - see `close`
        environment, *others = arguments
        # A session of its own, so that a signal to its group, as a terminal sends it, reaches nobody else.
        options |= {"stderr": self._errors, "start_new_session": True}
        self.process = start_sweep(environment | {MARK: self._mark}, *others, **options)
        self._lines: list[str] = []
        self._unread: Queue[str | None] = Queue()  # none: that was all
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.append(line)
            self._unread.put(line)
        self._unread.put(None)

    def wait_for(self, *words: str, count: int = 1, timeout: float = 200) -> str:
        """The `count`-th line from here on that has one of these words."""
        until = time.monotonic() + timeout
        while count:
            try:
                line = self._unread.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {words!r} in {timeout:g} s:\n{self._told()}") from None
            if line is None:
                raise AssertionError(f"ended without {words!r}:\n{self._told()}")
            count -= any(some in line for some in words)
        return line

    def has_said(self, words: str) -> bool:
        """Whether any of its lines so far has them."""
        return any(words in line for line in self._lines)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 200) -> None:
        """For what no line tells of."""
        until = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"ended, or {timeout:g} s have passed:\n{self._told()}")
            time.sleep(0.01)

    def interrupt(self, group: bool = False) -> None:
        """Ctrl-C: for the driver alone, or, as in a terminal, for its whole foreground group."""
        self._since = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, signal.SIGINT)

    def end(self, timeout: float = 120) -> SweepExit:
        """Wait for its end."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end in {timeout:g} s:\n{self._told()}") from None
        seconds = time.monotonic() - self._since
        until = time.monotonic() + LINGER_S
        while (processes := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        left = [" ".join(process.cmdline()).strip() or process.name() for process in processes]
        folders = _ray_folders() - self._before - _folders_in_use()
        self._reader.join(1)  # longer where an orphan holds the pipe
        self._errors.seek(0)
        return SweepExit(status, seconds, "".join(self._lines), self._errors.read(), left, folders)

    def _output(self) -> str:
        self._errors.seek(0)
        return "".join(self._lines) + self._errors.read()

    def processes(self) -> list[psutil.Process]:
        """Those of this sweep that are there now."""
        return processes_with_mark(self._mark)

    def close(self) -> None:
        """Nothing of it stays."""
        kill_all(self._mark)
        self.process.wait()
        self._reader.join()
        self._errors.close()


def processes_with_mark(mark: str) -> list[psutil.Process]:
    """The processes, none that has ended, in whose environment `MARK` is that."""
    return [process for process in psutil.process_iter() if _mark_of(process) == mark]


def _mark_of(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    return None


def kill_all(mark: str) -> None:
    """Kill them, and those that they start meanwhile."""
    while left := processes_with_mark(mark):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def _ray_folders() -> set[str]:
    return {folder for name in (FOLDER, FOLDER.replace("ikd", ".ikd")) for folder in glob.glob(f"{name}*")}


def _folders_in_use() -> set[str]:
    """Ray's folders of sweeps that have nothing to do with these tests."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline()).replace("=", " ").split()
            found |= {"/".join(word.split("/")[:3]) for word in words if word.startswith(FOLDER)}
    return found


@contextmanager
def run_sweep_process(*arguments, **options) -> Iterator[SweepProcess]:
    """A sweep that runs while the block does, and of which nothing is left behind it. Takes what `start` takes."""
    sweep = SweepProcess(*arguments, **options)
    try:
        yield sweep
    finally:
        sweep.close()


def trial_metrics(sweep: Path) -> dict[str, dict[str, Any]]:
    """Of each trial what was asked for and all its numbers, but not what says when and by whom they were made."""
    return {
        trial.id: {
            "params": trial.params,
            "history": [_lasting(epoch) for epoch in trial.history],
            "metrics": _lasting(trial.metrics),
        }
        for trial in read_trials(sweep)
    }


def _lasting(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not any(word in name for word in VARIES)}


def saved_epochs(output: Path) -> dict[Path, float]:
    """The folders of all epochs that are saved, and how long each one's training took, to the nanosecond."""
    cards = (output / "cache" / STAGES).glob("[!.]*/[!.]*/epoch.json")  # not those that are being written
    return {card.parent: json.loads(card.read_text())["metrics"]["time/epoch_s"] for card in cards}


def damaged_entries(output: Path) -> list[Path]:
    """Folders of the cache that say what they hold and do not hold it; there must be some to look at."""
    folders = [manifest.parent for manifest in (output / "cache").rglob(MANIFEST)]
    assert folders
    return [folder for folder in folders if not is_intact(folder)]
