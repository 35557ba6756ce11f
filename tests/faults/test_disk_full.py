"""Sweeps whose disk is full: one clear line, nothing damaged, and they go on once there is room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ikd_ray.records import read_trials
from tests.helpers.consistency import assert_no_epoch_lost, damaged_entries, saved_epochs, trial_metrics
from tests.helpers.run_command import SweepExit, run_sweep_process, sweep_flags, wait_for_epochs
from tests.helpers.small_disk import Disk, small_disk

pytestmark = pytest.mark.slow

SPACE = """
sampler: grid
params: {regime: {choice: [id, kd]}, student_layers: 2, epochs: 4, batch_size: 16}
teacher: {epochs: 2}
"""


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        yield disk


def arguments(inputs: Path, home: Path, name: str, output: Path) -> list[object]:
    return sweep_flags(inputs, home, name, SPACE, "--concurrent", 1, "--output", output)


@pytest.fixture(scope="module")
def whole(large, command, tmp_path_factory):
    """Return the output folder of a sweep whose disk had room."""
    home = tmp_path_factory.mktemp("whole")
    command("run", *arguments(large, home, "whole", home / "outputs"), cwd=home)
    return home / "outputs"


@pytest.fixture
def prepared(whole, disk) -> Disk:
    """Return a disk with the teacher and its targets, but no epoch of a trial."""
    ignored = shutil.ignore_patterns("stages")
    shutil.copytree(whole / "cache", disk.seen / "outputs" / "cache", ignore=ignored)
    return disk


def assert_reported(ended: SweepExit, name: str | None) -> None:
    """Assert status 1, one line on stderr that names the reason, and a line that says how to go on."""
    assert ended.status == 1, ended.text
    [line] = ended.errors.splitlines()
    assert line.startswith("error: ")
    assert "no space left on device" in line.lower()
    [hint] = [line for line in ended.output.splitlines() if line.startswith("go on: ")]
    assert (f"--resume {name}" if name else "the same command") in hint
    assert "Traceback" not in ended.output
    assert (ended.processes, ended.folders) == ([], set())


def assert_finishes(environment, disk: Disk, home: Path, given: list[object], whole: Path) -> None:
    """Assert that the sweep goes on to the numbers of one whose disk had room."""
    with run_sweep_process(environment, home, given, within=disk.within) as sweep:
        sweep.end(timeout=200, status=0)
    assert trial_metrics(disk.seen / "outputs" / "full") == trial_metrics(whole / "whole")
    assert damaged_entries(disk.seen / "outputs") == []


def test_full_in_mid_epoch(large, environment, whole, prepared, tmp_path):
    """From a moment in the second epoch on nothing can be written."""
    given = arguments(large, tmp_path, "full", prepared.folder / "outputs")
    with run_sweep_process(environment, tmp_path, given, within=prepared.within) as sweep:
        wait_for_epochs(sweep, prepared.seen / "outputs")
        prepared.fill()
        ended = sweep.end()
    assert "epochs cannot be shared" in ended.output
    assert_reported(ended, "full")
    prepared.release()
    assert damaged_entries(prepared.seen / "outputs") == []
    before = saved_epochs(prepared.seen / "outputs")
    assert before
    resume = ["--resume", "full", "--output", prepared.folder / "outputs"]
    assert_finishes(environment, prepared, tmp_path, resume, whole)
    assert_no_epoch_lost(prepared.seen / "outputs" / "full", before)


def test_full_for_a_while(large, environment, whole, prepared, tmp_path):
    """An epoch that cannot be saved is no more than a warning."""
    given = arguments(large, tmp_path, "full", prepared.folder / "outputs")
    with run_sweep_process(environment, tmp_path, given, within=prepared.within) as sweep:
        wait_for_epochs(sweep, prepared.seen / "outputs")
        prepared.fill()
        sweep.wait_for("t000: epochs cannot be shared")
        prepared.release()
        assert sweep.end(status=0).errors == ""
    first = read_trials(prepared.seen / "outputs/full")[0]
    assert any("no space left" in warning.lower() for warning in first.warnings)
    assert trial_metrics(prepared.seen / "outputs/full") == trial_metrics(whole / "whole")
    assert damaged_entries(prepared.seen / "outputs") == []


def test_full_during_preparation(large, environment, whole, disk, tmp_path):
    """In each phase in turn; the same command goes on."""
    given = arguments(large, tmp_path, "full", disk.folder / "outputs")
    made = disk.seen / "outputs/full/sweep.json"
    for words in (
        "tokenizing ...",
        "teacher epoch 1/",
        "storing the teacher's targets ...",
        "measuring students' latency ...",
        "measuring students' latency: done",
    ):
        with run_sweep_process(environment, tmp_path, given, within=disk.within) as sweep:
            sweep.wait_for(words, "sweep: full")  # the phase may have been over before the disk was full
            disk.fill()
            ended = sweep.end()
        assert_reported(ended, "full" if made.exists() else None)
        disk.release()
        if made.exists():  # it was prepared by then
            given = ["--resume", "full", "--output", disk.folder / "outputs"]
            break
    assert_finishes(environment, disk, tmp_path, given, whole)
