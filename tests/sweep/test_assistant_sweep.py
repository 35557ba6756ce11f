"""A sweep with teacher assistants, as a user starts it: real Ray, Optuna, MLflow and transformers, a tiny teacher."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from ikd_ray.distill.teacher import load_teacher, open_teacher
from ikd_ray.records import read_sweep, read_trials
from tests.helpers.run_command import sweep_flags

pytestmark = pytest.mark.slow

SPACE = """
sampler: grid
params:
  regime: {choice: [kd, id]}
  student_layers: {choice: [1, 2]}
  assistant_layers: {choice: [0, 2], when: {student_layers: 1}}
  epochs: 1
  batch_size: 16
teacher: {epochs: 1}
assistant: {regime: id, epochs: 2, learning_rate: 1.0e-3}
"""


@pytest.fixture(scope="module")
def swept(inputs, command, tmp_path_factory):
    """Students of one layer with and without an assistant of two, and students of two: half of them, then the rest."""
    home = tmp_path_factory.mktemp("assisted")
    (home / "space.yaml").write_text(SPACE)
    done = command("run", *sweep_flags(inputs, home / "space.yaml", "first"), "--trials", 3, cwd=home)
    assert done.returncode == 0, done.stderr
    folder = home / "outputs" / "first"
    sweep = read_sweep(folder)
    resumed = command("run", "--resume", "first", "--trials", 6, cwd=home)
    assert resumed.returncode == 0, resumed.stderr
    return SimpleNamespace(home=home, done=done, resumed=resumed, folder=folder, sweep=sweep)


def runs(swept, kind):
    client = MlflowClient(f"sqlite:///{swept.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    return client, client.search_runs([experiment], f"tags.`ikd.kind` = '{kind}'")


def test_every_trial_finishes_and_is_compared_with_the_teacher(swept):
    trials = read_trials(swept.folder)
    depths = [(trial.params["student_layers"], trial.params["assistant_layers"]) for trial in trials]
    assert sorted(depths) == [(1, 0), (1, 0), (1, 2), (1, 2), (2, 0), (2, 0)]
    assert {trial.status for trial in trials} == {"finished"}
    assert {tuple(trial.layer_map) for trial in trials} == {(4,), (2, 4)}
    assert all("dev/layer_1/kl" in trial.metrics for trial in trials)
    for regime in ("kd", "id"):
        plain, helped = (
            next(
                trial
                for trial in trials
                if trial.params["regime"] == regime
                and (trial.params["student_layers"], trial.params["assistant_layers"]) == (1, layers)
            )
            for layers in (0, 2)
        )
        assert not {*helped.reused_from} & {plain.id}
        assert helped.metrics["train/loss"] != plain.metrics["train/loss"]


def test_the_record_and_the_cache_have_the_assistant(swept):
    [(depth, found)] = swept.sweep.teacher["assistants"].items()
    assert depth == "2"
    record = open_teacher(swept.home / "outputs" / "cache" / "teachers" / found["key"])
    assert record.metrics == found["metrics"]
    assert found["name"].startswith("2L of ")
    assert "dev/mcc" in found["metrics"]
    assert len(load_teacher(record.folder).layers) == 2
    teacher = swept.home / "outputs" / "cache" / "teachers" / swept.sweep.teacher["key"]
    assert len(load_teacher(teacher).layers) == 4
    assert len(list((swept.home / "outputs" / "cache" / "targets").glob("[!.]*"))) == 2


def test_the_terminal_tells_of_it(swept):
    text = swept.done.stdout
    for words in (
        "distilling a 2-layer assistant (id)",
        "2-layer assistant epoch 2/2",
        "storing the 2-layer assistant's targets",
        "assistant: 2 layers, dev/mcc ",
    ):
        assert words in text, text


def test_it_has_a_run_of_its_own(swept):
    client, [run] = runs(swept, "assistant")
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("assistant 2L of ")
    assert "mlflow.parentRunId" not in run.data.tags
    asked = {
        "regime": "id",
        "epochs": "2",
        "learning_rate": "0.001",
        "student_layers": "2",
        "layer_map": "[2, 4]",
    }
    assert run.data.params.items() >= asked.items()
    assert [m.step for m in client.get_metric_history(run.info.run_id, "dev/mcc")] == [1, 2]
    known = swept.sweep.teacher["assistants"]["2"]["metrics"]
    assert {name: run.data.metrics[name] for name in known} == known
    assert len(runs(swept, "teacher")[1]) == 1
    trials = runs(swept, "trial")[1]
    assert sorted(run.data.params["assistant_layers"] for run in trials) == ["0"] * 4 + ["2"] * 2


def test_it_goes_on_with_the_same_one(swept):
    assert "distilling" in swept.done.stdout
    assert "distilling" not in swept.resumed.stdout
    assert read_sweep(swept.folder).teacher == swept.sweep.teacher
    assert len(runs(swept, "assistant")[1]) == 1


def test_its_records_tell_one_story(swept, command):
    checked = command("report", "--check", "first", cwd=swept.home)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout == "first: 6 of 6 trials have ended, 6 of them finished; 0 differences\n"


def test_its_students_are_exported_and_reported(swept, command):
    done = command("export", "--task", "cola", "--name", "first", cwd=swept.home)
    assert done.returncode == 0, done.stderr
    made = [json.loads(path.read_text()) for path in (swept.home / "exports").glob("*/ikd.json")]
    assert made
    for facts in made:
        assert ("assistant" in facts) == (facts["params"]["assistant_layers"] == 2)
    done = command("report", "--task", "cola", cwd=swept.home)
    assert done.returncode == 0, done.stderr


def test_the_plan_counts_it(inputs, command, tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    done = command("run", *sweep_flags(inputs, tmp_path / "space.yaml", "planned"), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "assistant: 2 layers, id, at most 2 epochs, once; for students of depth 1" in done.stdout
    assert re.search(r"GB of teacher layers 2, 4; \S+ GB of 2-layer assistant layers 2\n", done.stdout)
    assert "assistants and theirs " in done.stdout
