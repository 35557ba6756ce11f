"""A trial of several workers, one of which is killed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ikd_ray.records import TrialRecord, read_trials
from tests.helpers.run_command import (
    SweepProcess,
    damaged_entries,
    run_sweep_process,
    saved_epochs,
    sweep_flags,
    write_inputs,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

SPACE = """
params: {regime: id, student_layers: 2, epochs: 4, batch_size: 16}
teacher: {epochs: 1}
"""


def arguments(inputs: Path, home: Path, name: str) -> list[object]:
    (home / "space.yaml").write_text(SPACE)
    return [*sweep_flags(inputs, home / "space.yaml", name), "--trials", 1, "--workers-per-trial", 2]


def train_workers(sweep: SweepProcess) -> list[psutil.Process]:
    """The processes of Ray Train that train; what a process of Ray is busy with is its name."""
    return [process for process in sweep.processes() if "RayTrainWorker" in " ".join(process.cmdline())]


def only_trial(home: Path, name: str) -> TrialRecord:
    [trial] = read_trials(home / "outputs" / name)
    assert trial.status == "finished", trial.reason
    return trial


@pytest.mark.parametrize("rank", [0, 1])
def test_the_trial_goes_on_from_its_last_epoch(environment, command, tmp_path, rank):
    write_inputs(tmp_path, train=4000, dev=500)
    outputs = tmp_path / "outputs"
    with run_sweep_process(environment, tmp_path, arguments(tmp_path, tmp_path, "cut")) as sweep:
        sweep.wait_for("started: ")
        sweep.wait_until(lambda: saved_epochs(outputs))  # the second one runs
        before, workers = saved_epochs(outputs), train_workers(sweep)
        assert len(before) == 1
        assert len(workers) == 2, [process.cmdline() for process in sweep.processes()]
        sorted(workers, key=lambda process: process.pid)[rank].kill()
        ended = sweep.end(timeout=300)
    assert ended.status == 0, ended.output + ended.errors
    assert (ended.processes, ended.folders) == ([], set())
    assert "Traceback" not in ended.output + ended.errors
    trial = only_trial(tmp_path, "cut")
    assert len(trial.history) == 4
    assert before.items() <= saved_epochs(outputs).items()
    assert [trial.history[0]["time/epoch_s"]] == list(before.values()), "the first epoch was trained again"
    assert damaged_entries(outputs) == []

    done = command("run", *arguments(tmp_path, tmp_path, "whole"), "--no-share", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = only_trial(tmp_path, "whole")
    for one, other in zip(trial.history, whole.history, strict=True):
        for name in one:
            if name.startswith(("train/", "dev/")):
                assert one[name] == pytest.approx(other[name], abs=1e-4), name
