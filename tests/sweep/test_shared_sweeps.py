"""Sweeps whose trials share epochs with other sweeps, or wait for them, against sweeps left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient

from ikd_ray.analysis.training_costs import compute_savings
from ikd_ray.records import read_trials
from tests.helpers.consistency import assert_same_students, lasting, mlflow_runs
from tests.helpers.run_command import run_sweep_process, sweep_flags

pytestmark = pytest.mark.slow  # a dozen sweeps

SPACE = """
sampler: grid
params:
  regime: {choice: [hard, kd, id, pid, sid]}
  student_layers: 2
  epochs_per_layer: {choice: [1, 2], when: {regime: [pid, sid]}}
  top_trains: {choice: [all, head], when: {regime: [pid, sid]}}
  lambda: {choice: [0.1, 0.5], when: {regime: pid}}
  epochs: 2
  batch_size: 16
teacher: {epochs: 1}
"""
TRIALS = 3 + 8 + 4


@pytest.fixture(scope="module")
def shared(inputs, command, tmp_path_factory) -> Path:
    """Return the home of a sweep that shares and of one, with the same teacher, that does not."""
    home = tmp_path_factory.mktemp("shared")
    command("run", *sweep_flags(inputs, home, "alone", SPACE, "--no-share"), cwd=home)
    command("run", *sweep_flags(inputs, home, "shared", SPACE), cwd=home)
    return home


def test_sharing_changes_no_number_and_no_weight(shared):
    assert_same_students(shared / "outputs/alone", shared / "outputs/shared", TRIALS)
    savings = compute_savings(read_trials(shared / "outputs/shared"))
    # As in `test_sweep.py`; lambda and what trains at the top belong to the classification stage alone.
    assert savings.internal_trained == 2 + 3 * 1 + 3 * 2
    assert savings.internal_total == 4 * (2 + 4) + 2 * (3 + 6)
    assert savings.classification_trained == savings.classification_total == 2 * TRIALS


def test_another_sweep_trains_nothing(inputs, command, shared, tmp_path):
    shutil.copytree(shared / "outputs", tmp_path / "outputs")
    command("run", *sweep_flags(inputs, tmp_path, "again", SPACE), cwd=tmp_path)
    again = read_trials(tmp_path / "outputs/again")
    assert sum(trial.metrics["trained_epochs"] for trial in again) == 0
    assert {trial.reused_from[0].partition("/")[0] for trial in again} == {"shared"}
    assert_same_students(shared / "outputs/shared", tmp_path / "outputs/again", TRIALS)


def test_trials_that_wait_make_way_and_are_resumed(inputs, command, environment, shared, tmp_path):
    """Another process holds the first layer's stage, which PID and SID need.

    The other trials end meanwhile, Ctrl-C is heeded while only waiting is left, and then the waiting trials run.
    """
    shutil.copytree(shared / "outputs", tmp_path / "outputs")
    stages = tmp_path / "outputs/cache/stages"
    cards = {card: json.loads(card.read_text())["about"]["stage"] for card in stages.glob("*/*/epoch.json")}
    [first] = {card.parents[1] for card, stage in cards.items() if stage == "1"}
    for epoch in first.iterdir():
        shutil.rmtree(epoch)
    with (
        FileLock(stages / ".locks" / first.name),
        run_sweep_process(environment, tmp_path, sweep_flags(inputs, tmp_path, "waits", SPACE)) as process,
    ):
        process.wait_for("waits for epoch 1", count=10)  # the search looks no further ahead
        process.interrupt()
        process.end(timeout=60, status=130)
    waits = tmp_path / "outputs/waits"
    assert [trial.params["regime"] for trial in read_trials(waits)] == ["hard", "kd", "id"]
    command("run", "--resume", "waits", cwd=tmp_path)
    assert_same_students(shared / "outputs/shared", waits, TRIALS)
    assert compute_savings(read_trials(waits)).internal_trained == 2
    runs = mlflow_runs(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), "waits")["trial"]
    assert len({run.data.tags["ikd.trial"] for run in runs}) == len(runs) == TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_trials_of_two_workers_share_with_each_other(inputs, command, tmp_path):
    space = "params: {regime: id, student_layers: 2, epochs: 2, batch_size: 16}\nteacher: {epochs: 1}\n"
    for name in ("one", "two"):
        flags = sweep_flags(inputs, tmp_path, name, space, "--trials", 1, "--workers-per-trial", 2)
        command("run", *flags, cwd=tmp_path)
    [one], [two] = (read_trials(tmp_path / "outputs" / name) for name in ("one", "two"))
    assert two.reused_from == ["one/t000"]
    assert two.metrics["trained_epochs"] == 0
    assert [lasting(epoch) for epoch in one.history] == [lasting(epoch) for epoch in two.history]
