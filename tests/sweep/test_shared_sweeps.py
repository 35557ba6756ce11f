"""Sweeps whose trials share epochs, as a user starts them, against sweeps whose trials do not."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch
from filelock import FileLock
from mlflow import MlflowClient
from safetensors.torch import load_file

from ikd_ray.analysis.savings import compute_savings
from ikd_ray.records import read_trials
from tests.helpers.run_command import start_sweep, sweep_flags

pytestmark = pytest.mark.slow

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


def arguments(inputs, folder, name, *more):
    (folder / "space.yaml").write_text(SPACE)
    return [*sweep_flags(inputs, folder / "space.yaml", name), *more]


def numbers(trial):
    """All that was measured, without what says when and by whom it was trained."""
    return [
        {key: value for key, value in epoch.items() if not key.startswith("time/") and "_epochs" not in key}
        for epoch in trial.history
    ]


def weights(folder, trial):
    return load_file(folder / "trials" / trial.id / "student" / "model.safetensors")


def assert_same(folder, other):
    mine, theirs = read_trials(folder), read_trials(other)
    assert len(mine) == len(theirs) == TRIALS
    for one, two in zip(mine, theirs, strict=True):
        assert one.params == two.params
        assert numbers(one) == numbers(two), one.params
        first, second = weights(folder, one), weights(other, two)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), one.params


@pytest.fixture(scope="module")
def alone(inputs, command, tmp_path_factory):
    """A sweep every trial of which trains all its epochs."""
    home = tmp_path_factory.mktemp("alone")
    done = command("run", *arguments(inputs, home, "alone", "--no-share"), cwd=home)
    assert done.returncode == 0, done.stderr
    assert not (home / "outputs" / "cache" / "stages").exists()
    assert compute_savings(read_trials(home / "outputs" / "alone")).saved_s == 0
    return home


def with_cache_of(alone, home):
    """The teacher and its targets, so that nobody has to wait for them again."""
    shutil.copytree(alone / "outputs" / "cache", home / "outputs" / "cache")
    return home


@pytest.fixture(scope="module")
def shared(inputs, command, alone, tmp_path_factory):
    home = with_cache_of(alone, tmp_path_factory.mktemp("shared"))
    done = command("run", *arguments(inputs, home, "shared"), cwd=home)
    assert done.returncode == 0, done.stderr
    return home, done.stdout


def test_sharing_changes_no_number_and_no_weight(alone, shared):
    assert_same(alone / "outputs" / "alone", shared[0] / "outputs" / "shared")


def test_no_epoch_is_trained_twice(shared):
    """Of each internal stage the longest stay is trained, once for each state that it can start from."""
    found = compute_savings(read_trials(shared[0] / "outputs" / "shared"))
    # PID and SID have the first layer's stage in common: 2 epochs. The second one starts from either epoch's
    # state, and lasts as long: 1 + 2 epochs, of one layer in PID and of two in SID.
    assert found.internal_trained == 2 + 3 * 1 + 3 * 2
    assert found.internal_total == 4 * (2 + 4) + 2 * (3 + 6)
    assert found.classification_trained == found.classification_total == 2 * TRIALS


def test_the_user_sees_what_was_saved(shared):
    home, text = shared
    assert "sharing: internal stages: 11 of 42 layer-epochs trained (3.8x fewer)" in text
    assert "epochs reused" in text
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = {run.data.tags["ikd.kind"]: [] for run in client.search_runs([experiment])}
    for run in client.search_runs([experiment]):
        runs[run.data.tags["ikd.kind"]].append(run)
    [parent] = runs["sweep"]
    assert parent.data.metrics["sharing/internal_layer_epochs_trained"] == 11
    assert parent.data.metrics["sharing/internal_layer_epochs"] == 42
    records = {trial.id: trial for trial in read_trials(home / "outputs" / "shared")}
    assert any(trial.reused_from for trial in records.values())
    for run in runs["trial"]:
        record = records[run.data.tags["ikd.trial"]]
        latest = run.data.metrics
        assert latest["reused_epochs"] + latest["trained_epochs"] == len(record.history)
        assert (latest["reused_epochs"] > 0) == bool(record.reused_from)
        assert run.data.tags.get("ikd.reused_from", "") == ", ".join(record.reused_from)
        assert len(client.get_metric_history(run.info.run_id, "dev/mcc")) == len(record.history)


def test_another_sweep_takes_it_all(inputs, command, shared, tmp_path):
    home = tmp_path
    shutil.copytree(shared[0] / "outputs", home / "outputs")
    done = command("run", *arguments(inputs, home, "again"), cwd=home)
    assert done.returncode == 0, done.stderr
    again = read_trials(home / "outputs" / "again")
    assert sum(trial.metrics["trained_epochs"] for trial in again) == 0
    assert {trial.reused_from[0].partition("/")[0] for trial in again} == {"shared"}
    assert_same(home / "outputs" / "shared", home / "outputs" / "again")


def read_until(process, words, count):
    seen = 0
    for line in process.stdout:
        seen += words in line
        if seen == count:
            return
    raise AssertionError(f"ended after {seen} lines with {words!r}")


def test_trials_that_wait_leave_their_place_and_come_again(inputs, command, environment, shared, tmp_path):
    """Somebody is at the first layer's stage, which PID and SID need: the other trials end meanwhile, Ctrl-C is
    heard when there is nothing left but to wait, and what has waited goes on as if it never had."""
    shutil.copytree(shared[0] / "outputs", tmp_path / "outputs")
    stages = tmp_path / "outputs" / "cache" / "stages"
    cards = {card: json.loads(card.read_text())["about"]["stage"] for card in stages.glob("*/*/epoch.json")}
    [first] = {card.parents[1] for card, stage in cards.items() if stage == "1"}
    for epoch in first.iterdir():
        shutil.rmtree(epoch)
    with FileLock(stages / ".locks" / first.name):
        process = start_sweep(environment, tmp_path, arguments(inputs, tmp_path, "waits"))
        read_until(process, "waits for epoch 1", 10)  # the search looks no further ahead
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
    assert [trial.params["regime"] for trial in read_trials(tmp_path / "outputs" / "waits")] == [
        "hard",
        "kd",
        "id",
    ]
    again = command("run", "--resume", "waits", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same(tmp_path / "outputs" / "shared", tmp_path / "outputs" / "waits")
    assert compute_savings(read_trials(tmp_path / "outputs" / "waits")).internal_trained == 2
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.sweep` = 'waits' and tags.`ikd.kind` = 'trial'")
    assert len({run.data.tags["ikd.trial"] for run in runs}) == len(runs) == TRIALS
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_sweep_that_was_killed_goes_on_where_it_was(inputs, command, environment, alone, tmp_path):
    """SIGKILL for the driver, in the middle of trials; then --resume."""
    home = with_cache_of(alone, tmp_path)
    process = start_sweep(environment, home, arguments(inputs, home, "cut"))
    read_until(process, "finished in", 6)
    process.kill()
    process.wait()
    again = command("run", "--resume", "cut", cwd=home)
    assert again.returncode == 0, again.stdout + again.stderr
    assert_same(alone / "outputs" / "alone", home / "outputs" / "cut")
