"""Sweeps of a soak: each is started again after every end until it has ended well."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ikd_ray.distill.epoch_cache import EPOCH_FILE
from ikd_ray.records import read_trials
from ikd_ray.storage.remote import open_storage
from tests.helpers.consistency import saved_epochs
from tests.helpers.killed_sweep import GONE_S, NAME, STARTED, STEP
from tests.helpers.process_tree import title
from tests.helpers.run_command import SweepExit, SweepProcess
from tests.helpers.servers import LosingProxy, MlflowServer, losing_proxy, mlflow_server
from tests.helpers.small_disk import Disk, small_disk

END_S = 300.0  # seconds that a process may take in which nothing more is struck
MOMENT_S = 300.0  # seconds to wait for the moment of a fault
MAX_STARTS = 12
OTHER = "other"  # name of the sweep that shares the cache
UNDELIVERED = "MLflow lacks a part of this sweep"


@dataclass(frozen=True)
class Setting:
    """Place and manner in which a round's sweeps run.

    Attributes:
        workers: Ray Train workers of each trial.
        concurrent: trials at once.
        shared: whether a second sweep runs at the same time, with the same cache and MLflow.
        s3: whether the output is a bucket.
        server: whether MLflow is a server behind a proxy, else a SQLite file.
        disk: what is on a small disk: "cache", "study" (with the trials), "mlflow" or "".
    """

    workers: int
    concurrent: int
    shared: bool
    s3: bool
    server: bool
    disk: str

    @property
    def trials(self) -> int:
        """Trials of each sweep: those of two workers take long to start."""
        return 1 if self.workers == 2 else 3


def draw_setting(rng: random.Random) -> Setting:
    """Draw a setting that two CPUs have room for."""
    workers, concurrent, shared = rng.choice([(1, 1, False), (1, 1, True), (1, 2, False), (2, 1, False)])
    s3, server = rng.random() < 0.25, rng.random() < 0.4
    places = [""] if s3 else ["", "cache", "study"] if server else ["cache", "study", "mlflow", ""]
    return Setting(workers, concurrent, shared, s3, server, rng.choice(places))


class SoakSweep:
    """A sweep through all of its processes.

    Attributes:
        name: its name.
        allowed: exit statuses that this process may have, besides 0.
        variables_once: further environment variables of the next process.
        statuses: exit statuses of all processes so far.
        problems: what was wrong with their ends.
        saved: epochs of the sweep's own trials that had been saved at some moment, with their seconds.
        is_finished: whether it has ended well, and has nothing to deliver any more.
    """

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        home: Path,
        output: Path,
        arguments: Sequence[object],
        more: Sequence[object] = (),
        within: Sequence[str] = (),
    ) -> None:
        """Start the sweep.

        Args:
            name: its name.
            environment: environment variables.
            home: working directory.
            output: the folder of its output as the test sees it.
            arguments: flags of its first command.
            more: flags of all its commands.
            within: command that runs the command which follows it.
        """
        self.name, self.output = name, output
        self._environment, self._home, self._within = dict(environment), home, within
        self._first, self._resume = [*arguments, *more], ["--resume", name, *more]
        self._processes: list[SweepProcess] = []
        self.variables_once: dict[str, str] = {}
        self.statuses: list[int] = []
        self.problems: list[str] = []
        self.saved: dict[Path, float] = {}
        self.is_finished = False
        self.start()

    def start(self) -> None:
        """Start the next process; before the sweep has a record the same command does."""
        self._resumes = self._has_record
        arguments = self._resume if self._resumes else self._first
        variables, self.variables_once = self._environment | self.variables_once, {}
        self._processes.append(SweepProcess(variables, self._home, arguments, self._within, own_home=True))
        self.allowed: set[int] = set()
        self._seen = 0

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return self.output / self.name

    @property
    def process(self) -> SweepProcess:
        """The process that runs, or ran last."""
        return self._processes[-1]

    @property
    def has_ended(self) -> bool:
        """True if no process of it runs now."""
        return self.process.process.poll() is not None

    @property
    def _has_record(self) -> bool:
        return (self.folder / "sweep.json").exists()

    def wait(self, seconds: float) -> None:
        """Wait, at most until the process ends."""
        end = time.monotonic() + seconds
        while not self.has_ended and time.monotonic() < end:
            time.sleep(0.05)

    def wait_for_moment(self, rng: random.Random) -> str:
        """Wait for a random moment and return which it is; "" where the process ended before."""
        words, count, delay = rng.choice(
            [
                # Every process of a sweep comes to these, so that a round without a fault is rare.
                (STARTED, 1, rng.uniform(0, 2)),
                (STARTED, 1, rng.uniform(0, 8)),
                (STEP, rng.randint(1, 3), rng.uniform(0, 4)),
                ("finished in", 1, rng.uniform(0, 1)),
                ("sweep ended", 1, rng.uniform(0, 1)),
            ]
        )
        end = time.monotonic() + MOMENT_S
        while count and not self.has_ended and time.monotonic() < end:
            new, self._seen = self.process.lines[self._seen :], len(self.process.lines)
            count -= min(count, sum(words in line for line in new))
            time.sleep(0.05)
        self.wait(delay)
        return "" if count or self.has_ended else f"{delay:.1f} s after {words!r}"

    def note_saved_epochs(self) -> None:
        """Remember the epochs that its trials have saved by now."""
        for path, seconds in saved_epochs(self.output).items():
            if json.loads((path / EPOCH_FILE).read_text())["trial"].startswith(f"{self.name}/"):
                self.saved[path] = seconds

    def forget_saved_epochs(self) -> None:
        """Expect no more that the epochs are kept: the cache was deleted."""
        self.saved = {}

    def end(self) -> None:
        """Wait for the end of the process, and note what is wrong with it."""
        process = self.process
        try:
            ended = process.end(END_S)
        except AssertionError as error:  # it hangs
            self.problems.append(f"{self.name}: {error}")
            process.close()
            return
        self.statuses.append(ended.status)
        left = [title(p)[:100] for p in process.tree.wait_for_end(GONE_S, ignore_agents=True)]
        wrong = self._faults(ended) + [f"process left: {one}" for one in left]
        self.problems += [
            f"{self.name}, process {len(self._processes)}: {one}\n{ended.text}" for one in wrong
        ]
        ran = [trial.status for trial in read_trials(self.folder)] if self._has_record else []
        self.is_finished = ended.status == 0 and {*ran} == {"finished"} and UNDELIVERED not in ended.text
        process.tree.kill()

    def _faults(self, ended: SweepExit) -> list[str]:
        """Return what is wrong with an end."""
        found, errors = [], ended.errors.splitlines()
        if "Traceback" in ended.text:
            found.append("a traceback")
        if ended.status not in {0, *self.allowed}:
            found.append(f"exit status {ended.status}, not one of 0, {self.allowed}")
        if ended.status == 130 and errors:
            found.append("interrupted, with words on stderr")
        if ended.status in (1, 2) and not (len(errors) == 1 and errors[0].startswith("error: ")):
            found.append(f"{len(errors)} lines on stderr, not one error")
        hints = ["the same command"] if self._resumes or not self._has_record else []
        hints += [f"--resume {self.name}"] if self._has_record else []
        if ended.status in (1, 130) and not any(map(ended.tells_to_resume, hints)):
            found.append(f"no line that tells of {' or '.join(hints)!r}")
        return found

    @property
    def is_over(self) -> bool:
        """True if it is finished, or has been started too often."""
        return self.is_finished or len(self._processes) > MAX_STARTS

    def go_on(self) -> None:
        """Wait for the end of the process, and start the next one unless that was the last."""
        self.end()
        if not self.is_over:
            self.start()

    def finish(self) -> None:
        """Run it to its end, however often that takes."""
        while not self.is_over:
            self.go_on()
        if not self.is_finished:
            self.problems.append(f"{self.name}: not finished after {MAX_STARTS} starts:\n{self.process.text}")

    def left_folders(self) -> set[Path]:
        """Return Ray's temporary folders that its processes have left."""
        return set().union(*(process.new_ray_folders() for process in self._processes))

    def close(self) -> None:
        """Kill what runs and remove its temporary folders."""
        for process in self._processes:
            process.close()
            for folder in process.new_ray_folders():
                shutil.rmtree(folder, ignore_errors=True)


@dataclass
class SoakRound:
    """Sweeps, server and disk that faults of a round may strike.

    Attributes:
        setting: the setting.
        sweep: the sweep that is struck.
        other: the sweep that shares the cache and MLflow, if any.
        output: the folder of the output, as the test sees it.
        bucket: URI of the output, or "".
        uri: MLflow's store, not behind the proxy and as the test sees it.
        disk: the small disk, where the setting has one.
        server: MLflow's server, where the setting has one.
        proxy: the proxy before it.
        struck: what was struck so far: kind of fault, victim and moment.
    """

    setting: Setting
    sweep: SoakSweep
    other: SoakSweep | None
    output: Path
    bucket: str
    uri: str
    disk: Disk | None
    server: MlflowServer | None
    proxy: LosingProxy | None
    struck: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def sweeps(self) -> list[SoakSweep]:
        """All sweeps."""
        return [self.sweep, *([self.other] if self.other else [])]


@contextmanager
def open_round(
    setting: Setting,
    environment: Mapping[str, str],
    home: Path,
    arguments: Sequence[object],
    bucket: str,
) -> Iterator[SoakRound]:
    """Start what a setting needs, and its sweeps.

    Args:
        setting: the setting.
        environment: environment variables; with a bucket, those of a machine of the round's own.
        home: folder of all files.
        arguments: flags of a sweep that is named `NAME`.
        bucket: URI of the output, or "".
    """
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(home / "disk")) if setting.disk else None
        server = stack.enter_context(mlflow_server(home / "server")) if setting.server else None
        proxy = stack.enter_context(losing_proxy(server.uri)) if server else None
        given, output = _output(setting, home, disk, bucket, environment)
        database = f"sqlite:///{(disk.folder if disk and setting.disk == 'mlflow' else home) / 'mlflow.db'}"
        seen = f"sqlite:///{disk.seen / 'mlflow.db'}" if disk and setting.disk == "mlflow" else database
        variables = dict(environment) | {"MLFLOW_TRACKING_URI": proxy.uri if proxy else database}
        sweeps = []
        for name in (NAME, OTHER) if setting.shared else (NAME,):
            folder = home / f"cwd-{name}"
            folder.mkdir()
            flags = [name if flag == NAME else flag for flag in arguments]
            within = disk.within if disk else ()
            sweeps.append(SoakSweep(name, variables, folder, output, flags, ["--output", given], within))
            stack.callback(sweeps[-1].close)
        others = sweeps[1:] or [None]
        uri = server.uri if server else seen
        yield SoakRound(setting, sweeps[0], others[0], output, bucket, uri, disk, server, proxy)


def _output(
    setting: Setting, home: Path, disk: Disk | None, bucket: str, environment: Mapping[str, str]
) -> tuple[str | Path, Path]:
    """Return `--output` and the folder of the output; the cache, or all but the cache, may be on the disk."""
    if bucket:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", environment["HOME"])
            return bucket, open_storage(bucket).folder
    on_disk = disk is not None and setting.disk == "study"
    output, seen = (disk.folder / "outputs", disk.seen / "outputs") if on_disk else [home / "outputs"] * 2
    seen.mkdir()
    if disk is not None and setting.disk in ("cache", "study"):
        # The paths are those for the sweep, which may be in a mount namespace of its own.
        cache, cache_seen = [home / "cache"] * 2 if on_disk else (disk.folder / "cache", disk.seen / "cache")
        cache_seen.mkdir()
        (seen / "cache").symlink_to(cache)
    return output, seen
