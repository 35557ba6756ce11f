"""Folders deleted while a sweep runs: one line, no trial that failed for good, and the named command goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ikd_ray.records import read_trials
from tests.helpers.consistency import trial_metrics
from tests.helpers.run_command import SweepExit, run_sweep_process, sweep_flags

pytestmark = pytest.mark.slow  # five sweeps

SPACE = """
params:
  regime: {choice: [kd, pid, sid]}
  student_layers: 2
  epochs: 2
  batch_size: 16
teacher: {epochs: 2}
"""
TRIALS = 4


@pytest.fixture(scope="module")
def whole(large, command, tmp_path_factory) -> dict:
    """Return the metrics of a sweep whose folders stayed."""
    home = tmp_path_factory.mktemp("whole")
    command("run", *arguments(large, home), cwd=home)
    return trial_metrics(home / "outputs" / "cut")


def arguments(large: Path, home: Path) -> list[object]:
    return sweep_flags(large, home, "cut", SPACE, "--trials", TRIALS, "--concurrent", 1)


def assert_one_line(ended: SweepExit, words: str, hint: str) -> None:
    assert ended.status == 1, ended.text
    assert "Traceback" not in ended.text
    [line] = ended.errors.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert ended.tells_to_resume(hint)
    assert (ended.processes, ended.folders) == ([], set())


def test_a_cache_deleted_between_trials_fails_none(large, environment, command, whole, tmp_path):
    with run_sweep_process(environment, tmp_path, arguments(large, tmp_path)) as sweep:
        sweep.wait_for("finished in")
        shutil.rmtree(tmp_path / "outputs" / "cache", ignore_errors=True)
        ended = sweep.end()
    assert_one_line(ended, "No such file or directory", "--resume cut")
    folder = tmp_path / "outputs" / "cut"
    assert {trial.status for trial in read_trials(folder)} == {"finished"}
    command("run", "--resume", "cut", cwd=tmp_path)
    assert trial_metrics(folder) == whole


def test_a_cache_deleted_during_preparation_is_one_line(large, environment, command, whole, tmp_path):
    given = arguments(large, tmp_path)
    with run_sweep_process(environment, tmp_path, given) as sweep:
        sweep.wait_for("teacher epoch 1/")
        shutil.rmtree(tmp_path / "outputs" / "cache", ignore_errors=True)
        ended = sweep.end()
    if ended.status:  # what was deleted may have been made again in time
        recorded = (tmp_path / "outputs" / "cut" / "sweep.json").exists()
        assert_one_line(
            ended, "No such file or directory", "--resume cut" if recorded else "the same command"
        )
        command("run", *(["--resume", "cut"] if recorded else given), cwd=tmp_path)
    assert trial_metrics(tmp_path / "outputs" / "cut") == whole


def test_a_deleted_sweep_is_told_and_its_command_starts_it_again(
    large, environment, command, whole, tmp_path
):
    given, folder = arguments(large, tmp_path), tmp_path / "outputs" / "cut"
    with run_sweep_process(environment, tmp_path, given) as sweep:
        sweep.wait_for("finished in")
        shutil.rmtree(folder, ignore_errors=True)
        ended = sweep.end()
    assert_one_line(ended, "", "the same command")
    assert not folder.exists()
    command("run", *given, cwd=tmp_path)
    assert trial_metrics(folder) == whole
