"""SIGTERM and SIGHUP in every phase of a sweep: the same clean end as by Ctrl-C."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.consistency import damaged_entries, trial_metrics
from tests.helpers.run_command import SweepProcess, run_sweep_process, sweep_flags, wait_for_epochs

pytestmark = pytest.mark.slow  # ten sweeps, each ended and resumed

SPACE = """
sampler: grid
params: {regime: {choice: [id, kd]}, student_layers: 2, epochs: 3, batch_size: 16}
teacher: {epochs: 2}
"""
LIMIT_S = 20


def in_preparation(sweep: SweepProcess, output: Path) -> None:
    sweep.wait_for("teacher epoch 1/")


def in_a_trial(sweep: SweepProcess, output: Path) -> None:
    wait_for_epochs(sweep, output)


def between_trials(sweep: SweepProcess, output: Path) -> None:
    sweep.wait_for("finished in")


@pytest.fixture(scope="module")
def whole(large, command, tmp_path_factory) -> dict:
    """Return the metrics of a sweep that nobody ended."""
    home = tmp_path_factory.mktemp("whole")
    command("run", *sweep_flags(large, home, "whole", SPACE, "--concurrent", 1), cwd=home)
    return trial_metrics(home / "outputs" / "whole")


@pytest.mark.parametrize(
    ("wait", "number", "group"),
    [
        (in_preparation, signal.SIGTERM, False),
        (in_preparation, signal.SIGTERM, True),
        (in_a_trial, signal.SIGTERM, False),
        (in_a_trial, signal.SIGTERM, True),
        (in_a_trial, signal.SIGHUP, False),
        (in_a_trial, signal.SIGHUP, True),
        (between_trials, signal.SIGTERM, True),
    ],
)
def test_a_terminated_sweep_ends_cleanly_and_goes_on(
    large, environment, command, whole, tmp_path, wait, number, group
):
    output = tmp_path / "outputs"
    given = sweep_flags(large, tmp_path, "cut", SPACE, "--concurrent", 1)
    with run_sweep_process(environment, tmp_path, given) as sweep:
        wait(sweep, output)
        sweep.interrupt(group, number)
        ended = sweep.end(status=130)
    assert ended.seconds < LIMIT_S, ended.text
    assert ended.errors == "", "Ray prints a stack, MLflow a traceback"
    assert "Traceback" not in ended.output
    recorded = (output / "cut" / "sweep.json").exists()
    assert ended.tells_to_resume("--resume cut" if recorded else "the same command")
    assert (ended.processes, ended.folders) == ([], set())
    assert damaged_entries(output) == []
    command("run", *(["--resume", "cut"] if recorded else given), cwd=tmp_path)
    assert trial_metrics(output / "cut") == whole
