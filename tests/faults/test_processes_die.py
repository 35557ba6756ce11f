"""Processes of a trial die: a worker of several is killed, or memory runs out."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ikd_ray.records import TrialRecord, read_trials
from tests.helpers.consistency import assert_no_epoch_lost, damaged_entries, saved_epochs, trial_metrics
from tests.helpers.process_tree import title
from tests.helpers.run_command import run_sweep_process, sweep_flags, wait_for_epochs, write_inputs

pytestmark = pytest.mark.long

TWO_WORKERS = """
params: {regime: id, student_layers: 2, epochs: 4, batch_size: 16}
teacher: {epochs: 1}
"""
GRID = """
sampler: grid
params: {regime: {choice: [id, kd]}, student_layers: 2, epochs: 4, batch_size: 16}
teacher: {epochs: 1}
"""
ROOM = 3 << 30  # bytes that Ray is told it has besides those in use
TAKEN = 5 << 30  # bytes that the test takes
WARNING = "the machine ran out of memory; trials that ran go on from their last saved epoch"


@pytest.mark.parametrize("server", ["gcs_server ", "raylet/raylet "])
def test_a_server_of_ray_that_dies_while_ray_starts_is_told_in_one_line(
    environment, command, tmp_path, server
):
    write_inputs(tmp_path)
    arguments = sweep_flags(tmp_path, tmp_path, "cut", GRID, "--trials", 1)
    with run_sweep_process(environment, tmp_path, arguments) as sweep:
        end = time.monotonic() + 60
        while not (found := [process for process in sweep.tree.alive() if server in title(process)]):
            assert time.monotonic() < end
            time.sleep(0.005)
        found[0].kill()
        ended = sweep.end(timeout=120, status=1)
    print(ended.text)
    [line] = ended.errors.splitlines()
    assert line.startswith("error: ")
    assert "Ray" in line
    assert "Traceback" not in ended.text
    assert ended.tells_to_resume("the same command")
    assert (ended.processes, ended.folders) == ([], set())
    command("run", *arguments, cwd=tmp_path)
    only_trial(tmp_path, "cut")


@pytest.mark.parametrize("delay", [0.0, 0.2, 1.0])
def test_a_gcs_that_dies_while_trials_start_is_told_in_one_line(environment, command, tmp_path, delay):
    """At some moments the driver is in a call of Ray's, which blocks for a minute and then ends the process."""
    write_inputs(tmp_path, train=4000)
    arguments = sweep_flags(tmp_path, tmp_path, "cut", GRID)
    with run_sweep_process(environment, tmp_path, arguments) as sweep:
        sweep.wait_for(" started: ")
        time.sleep(delay)
        [server] = sweep.tree.find("gcs_server")
        server.kill()
        ended = sweep.end(timeout=55, status=1)
    [line] = ended.errors.splitlines()
    assert line.startswith("error: Ray's own processes died")
    assert ended.tells_to_resume("--resume cut")
    assert (ended.processes, ended.folders) == ([], set())
    command("run", "--resume", "cut", cwd=tmp_path)


def only_trial(home: Path, name: str) -> TrialRecord:
    [trial] = read_trials(home / "outputs" / name)
    assert trial.status == "finished", trial.reason
    return trial


@pytest.mark.parametrize("rank", [0, 1])
def test_a_trial_goes_on_from_its_last_epoch_when_a_worker_is_killed(environment, command, tmp_path, rank):
    write_inputs(tmp_path, train=4000, dev=500)
    outputs, more = tmp_path / "outputs", ("--trials", 1, "--workers-per-trial", 2)
    given = sweep_flags(tmp_path, tmp_path, "cut", TWO_WORKERS, *more)
    with run_sweep_process(environment, tmp_path, given) as sweep:
        wait_for_epochs(sweep, outputs)
        before, workers = saved_epochs(outputs), sweep.tree.find("worker")
        assert len(before) == 1
        assert len(workers) == 2
        workers[rank].kill()
        ended = sweep.end(timeout=300, status=0)
    assert (ended.processes, ended.folders) == ([], set())
    assert "Traceback" not in ended.text
    trial = only_trial(tmp_path, "cut")
    assert len(trial.history) == 4
    assert_no_epoch_lost(outputs / "cut", before)
    assert damaged_entries(outputs) == []

    command("run", *sweep_flags(tmp_path, tmp_path, "whole", TWO_WORKERS, *more, "--no-share"), cwd=tmp_path)
    for one, other in zip(trial.history, only_trial(tmp_path, "whole").history, strict=True):
        for name in one:
            if name.startswith(("train/", "dev/")):
                assert one[name] == pytest.approx(other[name], abs=1e-4), name


@contextmanager
def memory_taken(is_enough: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Take memory page by page until it is enough; it is given back when the block ends."""
    with mmap.mmap(-1, TAKEN) as block:
        for page in range(0, TAKEN, mmap.PAGESIZE):
            block[page] = 1
            if page % (1 << 24) == 0 and is_enough():
                break
        yield


@pytest.fixture
def little_memory(environment) -> dict[str, str]:
    """Return the environment of a sweep whose machine has no more than `ROOM` bytes left."""
    memory = psutil.virtual_memory()
    if memory.available < 2 * TAKEN:
        pytest.skip("too little memory to take some")
    threshold = (memory.total - memory.available + ROOM) / memory.total
    return environment | {"RAY_memory_usage_threshold": str(threshold)}


def test_trials_go_on_from_their_last_epoch_when_memory_ran_out(large, little_memory, command, tmp_path):
    given = sweep_flags(large, tmp_path, "cut", GRID, "--concurrent", 1)
    with run_sweep_process(little_memory, tmp_path, given) as sweep:
        wait_for_epochs(sweep, tmp_path / "outputs")
        before, words = saved_epochs(tmp_path / "outputs"), ("its process died", WARNING)
        with memory_taken(lambda: any(word in line for line in sweep.lines for word in words)):
            sweep.wait_for(*words)
        ended = sweep.end(timeout=300, status=0)
    assert "Traceback" not in ended.text
    assert (ended.processes, ended.folders) == ([], set())
    assert before.items() <= saved_epochs(tmp_path / "outputs").items()
    assert damaged_entries(tmp_path / "outputs") == []
    given = sweep_flags(large, tmp_path, "whole", GRID, "--concurrent", 1, "--no-share")
    command("run", *given, cwd=tmp_path)
    assert trial_metrics(tmp_path / "outputs/cut") == trial_metrics(tmp_path / "outputs/whole")


def test_memory_that_stays_away_ends_the_sweep_with_one_line(large, little_memory, command, tmp_path):
    given = sweep_flags(large, tmp_path, "cut", GRID, "--concurrent", 1)
    with run_sweep_process(little_memory, tmp_path, given) as sweep:
        wait_for_epochs(sweep, tmp_path / "outputs")
        with memory_taken():
            ended = sweep.end(timeout=300, status=1)
    assert "Traceback" not in ended.text
    assert "the machine ran out of memory" in ended.text
    assert ended.tells_to_resume("--resume cut")
    command("run", "--resume", "cut", cwd=tmp_path)
