"""The scripts of `sweeps/` as a user starts them, and the inputs that they need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from filelock import FileLock

from ikd_ray.config import SweepConfig
from ikd_ray.sweep.request import Request, validate
from tests.helpers.consistency import saved_epochs
from tests.helpers.process_tree import ProcessTree, title
from tests.helpers.tiny_models import make_dataset, write_teacher

ROOT = Path(__file__).resolve().parents[2]
LINE_S, END_S = 240.0, 120.0  # seconds to wait for a line, and for the end
LINGER_S = 5.0  # seconds in which the last processes may notice that the others are gone


def write_glue(folder: Path, train: int = 96, dev: int = 40) -> Path:
    """Write generated sentences in the layout of GLUE's CoLA."""
    (folder / "CoLA").mkdir(parents=True)
    for name, split in make_dataset(train=train, dev=dev).splits.items():
        rows = (f"x\t{label}\t\t{text}\n" for text, label in zip(split.text, split.labels, strict=True))
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(rows))
    return folder


def write_inputs(folder: Path, **sizes: int) -> Path:
    """Write a tiny teacher and a GLUE folder, `teacher` and `glue`; `sizes` as for `write_glue`."""
    write_teacher(folder / "teacher")
    write_glue(folder / "glue", **sizes)
    return folder


def sweep_flags(inputs: Path, home: Path, name: str, space: str, *more: object) -> list[object]:
    """Write `space.yaml` into `home`, and return flags of `run.py` for a sweep with the inputs of `write_inputs`."""
    (home / "space.yaml").write_text(space)
    teacher, glue = inputs / "teacher", inputs / "glue"
    flags = ["--task", "cola", "--teacher", teacher, "--data-dir", glue, "--space", home / "space.yaml"]
    return [*flags, "--name", name, *more]


def validated_request(inputs: Path, home: Path, space: str, **settings: Any) -> Request:
    """Write `space.yaml` into `home`, and return the request of a sweep with the inputs of `write_inputs`."""
    (home / "space.yaml").write_text(space)
    return validate(
        SweepConfig(
            **{
                "task": "cola",
                "data_dir": inputs / "glue",
                "teacher": str(inputs / "teacher"),
                "space": home / "space.yaml",
                "output": home / "outputs",
                **settings,
            }
        )
    )


def script_command(script: str, *arguments: object) -> list[str]:
    """Return the command line of a script of `sweeps/`."""
    return [sys.executable, str(ROOT / "sweeps" / f"{script}.py"), *map(str, arguments)]


def restore_sighup() -> None:
    """Let a new process receive SIGHUP, also where the tests run under `nohup`, which ignores it."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass
class SweepExit:
    """The end of a sweep's process and what it left behind."""

    status: int
    seconds: float  # since the last signal, or since the start
    output: str
    errors: str  # stderr
    processes: list[str]  # command lines of processes that still run
    folders: set[Path]  # Ray's temporary folders that nobody uses

    @property
    def text(self) -> str:
        return self.output + self.errors

    def tells_to_resume(self, words: str) -> bool:
        """Return whether a line says how to go on, with these words."""
        return any(line.startswith("go on: ") and words in line for line in self.text.splitlines())


class SweepProcess:
    """A running `sweeps/run.py`, its output line by line, and its process tree.

    Attributes:
        lines: the lines of stdout so far.
        times: `time.monotonic()` at which each of them came.
    """

    def __init__(
        self,
        environment: dict[str, str],
        home: Path,
        arguments: Sequence[object],
        within: Sequence[str] = (),
        own_home: bool = False,
    ) -> None:
        """Start the sweep.

        Args:
            environment: environment variables.
            home: working directory.
            arguments: flags of `run.py`.
            within: command that runs the command which follows it.
            own_home: whether nobody else works in `home`.
        """
        self.tree = ProcessTree(home if own_home else None)
        self.lines: list[str] = []
        self.times: list[float] = []
        self._folders, self._since, self._read = _ray_folders(), time.monotonic(), 0
        self._news, self._closed = Condition(), False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self.process = subprocess.Popen(
            [*within, *script_command("run", *arguments)],
            cwd=home,
            env=environment | self.tree.environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # a signal to its group, as a terminal sends it, must not reach pytest
            preexec_fn=restore_sighup,
        )
        self._reader = Thread(target=self._read_lines, daemon=True)
        self._reader.start()

    def _read_lines(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                self.times.append(time.monotonic())
                self._news.notify_all()
        with self._news:
            self._closed = True
            self._news.notify_all()

    @property
    def text(self) -> str:
        """The whole output so far, stderr last."""
        self._errors.seek(0)
        return "".join(self.lines) + self._errors.read()

    def wait_for(self, *words: str, count: int = 1, timeout: float = LINE_S) -> str:
        """Return the `count`-th line, of those not yet waited for, that has one of the words."""
        end = time.monotonic() + timeout
        with self._news:
            while True:
                while self._read == len(self.lines):
                    assert not self._closed, f"ended without {words!r}:\n{self.text}"
                    came = self._news.wait(end - time.monotonic())
                    assert came, f"too long without {words!r}:\n{self.text}"
                line = self.lines[self._read]
                self._read += 1
                count -= any(word in line for word in words)
                if not count:
                    return line

    def wait_until(self, condition: Callable[[], bool], timeout: float = LINE_S) -> None:
        """Wait for what no line tells."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended meanwhile:\n{self.text}"
            assert time.monotonic() < end, f"{timeout:g} s have passed:\n{self.text}"
            time.sleep(0.02)

    def interrupt(self, group: bool = False, number: signal.Signals = signal.SIGINT) -> None:
        """Send Ctrl-C or another signal to the driver, or, as a terminal does, to its whole process group."""
        self._since = time.monotonic()
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, timeout: float = END_S, status: int | None = None) -> SweepExit:
        """Wait for the end; assert its exit status, where one is given."""
        try:
            ended = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end in {timeout:g} s:\n{self.text}") from None
        seconds = time.monotonic() - self._since
        processes = [title(process) for process in self.tree.wait_for_end(LINGER_S)]
        self._reader.join(1)  # an orphan may still hold the pipe
        assert status in (None, ended), self.text
        self._errors.seek(0)
        output, errors = "".join(self.lines), self._errors.read()
        return SweepExit(ended, seconds, output, errors, processes, self.new_ray_folders())

    def new_ray_folders(self) -> set[Path]:
        """Return Ray's temporary folders that came since the start and that no driver holds."""
        return {folder for folder in _ray_folders() - self._folders if _is_abandoned(folder)}

    def close(self) -> None:
        """Kill what still runs."""
        self.tree.kill()
        self.process.wait()
        self._reader.join()
        self._errors.close()


@contextmanager
def run_sweep_process(*arguments, **options) -> Iterator[SweepProcess]:
    """Run a sweep while the block does; arguments as for `SweepProcess`."""
    sweep = SweepProcess(*arguments, **options)
    try:
        yield sweep
    finally:
        sweep.close()


def wait_for_epochs(sweep: SweepProcess, outputs: Path, count: int = 1) -> None:
    """Wait until a trial has started and `count` epochs are saved, so that the next one runs."""
    sweep.wait_for("started: ")
    sweep.wait_until(lambda: len(saved_epochs(outputs)) >= count)


def _ray_folders() -> set[Path]:
    return {
        lock.parent for pattern in ("ikd-*", ".ikd-*") for lock in Path("/tmp").glob(f"{pattern}/owner.lock")
    }


def _is_abandoned(folder: Path) -> bool:
    """Return whether a folder is Ray's and no driver holds its lock."""
    with suppress(OSError), FileLock(folder / "owner.lock", blocking=False):  # held, or gone meanwhile
        return True
    return False
