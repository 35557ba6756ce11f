"""Faults that a running sweep must survive, each struck at a random moment."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from tests.helpers.process_tree import AGENTS, TITLES, title
from tests.helpers.soak_sweep import Setting, SoakRound

KILLED = -signal.SIGKILL
HALTED, USAGE, INTERRUPTED = 1, 2, 130  # exit statuses of a sweep
FIND_S = 120.0  # seconds to wait for the process that a fault is meant for: Ray Train starts workers late
OTHERS = re.compile(r"ray::IDLE|.*/(monitor|dashboard)\.py ")  # processes of Ray that no trial needs
# Debian's 0.9.10 breaks `time.sleep` of Python 3.11; newer ones are built from github.com/wolfcw/libfaketime.
FAKETIME = ("/usr/local/lib/faketime/libfaketime.so.1", "/usr/lib/*/faketime/libfaketime.so.1")


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: its name in the table.
        strike: strikes a round's first sweep; returns what was struck, "" where there was nothing to strike.
        statuses: exit statuses that the sweep may have because of it, besides 0.
        applies: whether it is possible in a setting.
        spreads: whether the sweep that shares the cache and MLflow may end by it as well.
        keeps_epochs: whether every saved epoch must still be there, and no trial may have a warning.
    """

    name: str
    strike: Callable[[SoakRound, random.Random], str]
    statuses: Collection[int] = ()
    applies: Callable[[Setting], bool] = lambda setting: True
    spreads: bool = False
    keeps_epochs: bool = True


def all_faults() -> list[Fault]:
    """Return every kind of fault."""
    return [
        Fault("SIGKILL of the driver", _kill_driver, {KILLED}),
        Fault("SIGKILL of a trial", _kill(TITLES["trial"]), (), _has_one_worker),
        Fault(
            "SIGKILL of a worker", _kill(TITLES["worker"]), (), lambda setting: not _has_one_worker(setting)
        ),
        Fault("SIGKILL of Ray's raylet", _kill(TITLES["raylet"]), {HALTED}),
        Fault("SIGKILL of Ray's gcs_server", _kill(re.compile(r"\S*/gcs_server ")), {HALTED}),
        Fault("SIGKILL of Ray's agents", _kill(AGENTS), {HALTED}),
        Fault("SIGKILL of Ray's other processes", _kill(OTHERS), {HALTED}),
        Fault("SIGTERM, SIGHUP or SIGINT", _terminate, {INTERRUPTED}),
        Fault("SIGSTOP of any process", _suspend),
        Fault("MLflow answers 503 or not", _make_proxy_fail, {USAGE}, _has_server, True),
        Fault("MLflow's server is killed", _kill_server, {USAGE}, _has_server, True),
        Fault("MLflow's server hangs", _hang_server, {USAGE}, _has_server, True),
        Fault("full disk of the cache", _fill, {HALTED}, _has_disk("cache"), True, keeps_epochs=False),
        Fault("full disk of study and trials", _fill, {HALTED}, _has_disk("study"), True),
        Fault("full disk of MLflow", _fill, {HALTED, USAGE}, _has_disk("mlflow"), True),
        Fault("cache deleted", _delete_cache, {HALTED}, spreads=True, keeps_epochs=False),
        Fault("clock set back an hour", _set_clock_back, {KILLED}, lambda setting: bool(find_faketime())),
    ]


@cache
def find_faketime() -> Path | None:
    """Return a libfaketime with which Python's clock goes back and its `sleep` works, if there is one."""
    for pattern in FAKETIME:
        for library in Path("/").glob(pattern.lstrip("/")):
            code = "import time; time.sleep(0.01); print(time.time())"
            variables = os.environ | _faketime_variables(library)
            done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
            if done.returncode == 0 and float(done.stdout) < time.time() - 3000:
                return library
    return None


def _faketime_variables(library: Path) -> dict[str, str]:
    keep = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    return {"LD_PRELOAD": str(library), "FAKETIME": "-1h"} | keep


def _has_one_worker(setting: Setting) -> bool:
    return setting.workers == 1


def _has_server(setting: Setting) -> bool:
    return setting.server


def _has_disk(place: str) -> Callable[[Setting], bool]:
    return lambda setting: setting.disk == place


def _kill_driver(round: SoakRound, rng: random.Random) -> str:
    return _send(psutil.Process(round.sweep.process.process.pid), signal.SIGKILL)


def _kill(titles: re.Pattern[str]) -> Callable[[SoakRound, random.Random], str]:
    """Return a strike that kills one of the processes whose title begins as the pattern says."""

    def strike(round: SoakRound, rng: random.Random) -> str:
        end = time.monotonic() + FIND_S
        while True:
            alive = round.sweep.process.tree.alive()
            found = [process for process in alive if titles.match(title(process))]
            if found:
                return _send(rng.choice(found), signal.SIGKILL)
            if round.sweep.has_ended or time.monotonic() > end:
                return ""
            time.sleep(0.05)

    return strike


def _terminate(round: SoakRound, rng: random.Random) -> str:
    number, group = (
        rng.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]),
        rng.random() < 0.5,
    )
    with suppress(ProcessLookupError):
        round.sweep.process.interrupt(group, number)
        return f"{number.name} to the {'group' if group else 'driver'}"
    return ""


def _suspend(round: SoakRound, rng: random.Random) -> str:
    if not (alive := round.sweep.process.tree.alive()):
        return ""
    process, seconds = rng.choice(alive), rng.uniform(1, 8)
    struck = _send(process, signal.SIGSTOP)
    time.sleep(seconds)
    with suppress(psutil.Error):
        process.send_signal(signal.SIGCONT)
    return struck and f"{struck} for {seconds:.1f} s"


def _send(process: psutil.Process, number: signal.Signals) -> str:
    words = title(process).split() or [""]
    name = next((word for word in words if word.endswith(".py")), words[0]).rpartition("/")[2]
    with suppress(psutil.Error):
        process.send_signal(number)
        return f"{number.name} to {process.pid} {name}"
    return ""


def _make_proxy_fail(round: SoakRound, rng: random.Random) -> str:
    every, seconds = rng.randint(2, 5), rng.uniform(2, 10)
    for path in ("runs/create", "runs/log-batch", "runs/update"):
        round.proxy.lose(path, *rng.sample(range(1, 9), 3))
    round.proxy.refuse_every = every
    round.sweep.wait(seconds)
    round.proxy.refuse_every = 0
    return f"one call in {every} refused for {seconds:.1f} s, up to 9 answers lost"


def _kill_server(round: SoakRound, rng: random.Random) -> str:
    outage = _strike_for(rng.uniform(0, 8), round, round.server.kill, round.server.start)
    return f"{outage}, and until it had started"


def _hang_server(round: SoakRound, rng: random.Random) -> str:
    return _strike_for(rng.uniform(2, 15), round, round.server.hang, round.server.go_on)


def _fill(round: SoakRound, rng: random.Random) -> str:
    seconds = rng.choice([rng.uniform(1, 8), 60.0])
    return f"up to {_strike_for(seconds, round, round.disk.fill, round.disk.release)}"


def _strike_for(seconds: float, round: SoakRound, begin: Callable[[], None], end: Callable[[], None]) -> str:
    """Let a fault last for some seconds, at most until the sweep's process ends; return how long."""
    begin()
    round.sweep.wait(seconds)
    end()
    return f"{seconds:.1f} s"


def _delete_cache(round: SoakRound, rng: random.Random) -> str:
    found = list((round.output / "cache").glob("*"))
    for path in found:
        shutil.rmtree(path, ignore_errors=True)
    for sweep in round.sweeps:
        sweep.forget_saved_epochs()
    return ", ".join(sorted(path.name for path in found))


def _set_clock_back(round: SoakRound, rng: random.Random) -> str:
    round.sweep.variables_once = _faketime_variables(find_faketime())
    return _kill_driver(round, rng)
