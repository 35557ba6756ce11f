"""Sweeps on a machine whose memory somebody takes."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.helpers.run_command import (
    SweepProcess,
    damaged_entries,
    run_sweep_process,
    saved_epochs,
    sweep_flags,
    trial_metrics,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

SPACE = """
sampler: grid
params: {regime: {choice: [id, kd]}, student_layers: 2, epochs: 4, batch_size: 16}
teacher: {epochs: 1}
"""
ROOM, TAKEN = (
    3 << 30,
    5 << 30,
)  # bytes: what Ray is told that there is besides what is in use, and what is taken
WARNED = "the machine ran out of memory; trials that ran go on from their last saved epoch"


@contextmanager
def memory_taken(enough: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Page after page, until all is taken or it is enough; given back when the block ends."""
    with mmap.mmap(-1, TAKEN) as block:
        for page in range(0, TAKEN, mmap.PAGESIZE):
            block[page] = 1  # which may take a while
            if page % (1 << 24) == 0 and enough():
                break
        yield


@pytest.fixture
def with_room(environment):
    """The environment of a sweep whose machine has no more than `ROOM`."""
    memory = psutil.virtual_memory()
    if memory.available < 2 * TAKEN:
        pytest.skip("too little memory to take some")
    threshold = (memory.total - memory.available + ROOM) / memory.total
    return environment | {"RAY_memory_usage_threshold": str(threshold)}


def arguments(inputs, home, name: str) -> list[object]:
    (home / "space.yaml").write_text(SPACE)
    return [*sweep_flags(inputs, home / "space.yaml", name), "--concurrent", 1]


def run_until_an_epoch_is_saved(sweep: SweepProcess, home) -> None:
    sweep.wait_for("started: ")
    sweep.wait_until(lambda: saved_epochs(home / "outputs"))


def test_trials_go_on_where_they_were(large, with_room, command, tmp_path):
    with run_sweep_process(with_room, tmp_path, arguments(large, tmp_path, "cut")) as sweep:
        run_until_an_epoch_is_saved(sweep, tmp_path)
        before = saved_epochs(tmp_path / "outputs")
        with memory_taken(enough=lambda: sweep.has_said("its process died") or sweep.has_said(WARNED)):
            sweep.wait_for("its process died", WARNED)  # by what Ray calls it
        ended = sweep.end(timeout=300)
    assert ended.status == 0, ended.output + ended.errors
    assert "Traceback" not in ended.output + ended.errors
    assert (ended.processes, ended.folders) == ([], set())
    assert before.items() <= saved_epochs(tmp_path / "outputs").items()
    assert damaged_entries(tmp_path / "outputs") == []
    done = command("run", *arguments(large, tmp_path, "whole"), "--no-share", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert trial_metrics(tmp_path / "outputs/cut") == trial_metrics(tmp_path / "outputs/whole")


def test_memory_that_stays_away_is_told_in_a_line(large, with_room, command, tmp_path):
    with run_sweep_process(with_room, tmp_path, arguments(large, tmp_path, "cut")) as sweep:
        run_until_an_epoch_is_saved(sweep, tmp_path)
        with memory_taken():
            ended = sweep.end(timeout=300)
    assert ended.status == 1, ended.output + ended.errors
    assert "Traceback" not in ended.output + ended.errors
    assert "the machine ran out of memory" in ended.output + ended.errors
    assert "--resume cut" in ended.output
    done = command("run", "--resume", "cut", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
