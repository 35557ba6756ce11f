"""A sweep that chooses on a held-out part of the training set, of students that see shares of the rest."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import hold_out
from ikd_ray.records import read_sweep, read_trials
from ikd_ray.tasks import get_task
from tests.helpers.run_command import sweep_flags, trial_metrics

pytestmark = pytest.mark.slow

SPACE = """\
sampler: grid
selection: holdout
params:
  train_fraction: {choice: [0.5, 1.0]}
  regime: kd
  student_layers: 1
  epochs: 2
  learning_rate: 1.0e-2
teacher: {epochs: 2, learning_rate: 1.0e-2}
"""


@pytest.fixture(scope="module")
def story(command, inputs, tmp_path_factory):
    """The grid's first trial; then the sweep goes on with the second one; check; export of the best."""
    home = tmp_path_factory.mktemp("holdout")
    (home / "space.yaml").write_text(SPACE)
    asked = sweep_flags(inputs, home / "space.yaml", "held")
    done = {
        "first": command("run", *asked, "--trials", 1, "--concurrent", 1, cwd=home),
        "second": command("run", "--resume", "held", "--trials", 2, cwd=home),
        "check": command("report", "--check", "held", cwd=home),
        "export": command("export", "--task", "cola", "--pick", "best", cwd=home),
    }
    return SimpleNamespace(home=home, done=done, sweep=home / "outputs" / "held")


def test_it_runs_goes_on_and_is_whole(story):
    for name, done in story.done.items():
        assert done.returncode == 0, (name, done.stdout, done.stderr)
    assert "0 differences" in story.done["check"].stdout
    assert "holdout mcc" in story.done["first"].stdout
    assert [trial.params["train_fraction"] for trial in read_trials(story.sweep)] == [0.5, 1.0]


def test_its_records_say_what_chose(story, inputs):
    sweep = read_sweep(story.sweep)
    dataset = hold_out(load_dataset(get_task("cola"), inputs / "glue"))
    assert (sweep.data["selection"], sweep.data["fingerprint"]) == ("holdout", dataset.fingerprint)
    assert sweep.objectives == {"holdout/mcc": "max", "student/params": "min"}
    assert {"dev/mcc", "holdout/mcc"} == set(sweep.teacher["metrics"])
    for trial in trial_metrics(story.sweep).values():
        found = set(trial["metrics"])
        for name in ("mcc", "attention_kl", "teacher_agreement", "layer_1/kl"):
            assert {f"dev/{name}", f"holdout/{name}"} <= found


def test_the_exported_student_is_the_one_that_the_held_out_part_chose(story):
    trials = read_trials(story.sweep)
    best = max(trials, key=lambda trial: (trial.metrics["holdout/mcc"], -trial.number))
    (folder,) = (story.home / "exports").glob("cola-*")
    facts = json.loads((folder / "ikd.json").read_text())
    assert facts["trial"]["id"] == best.id
    assert "held out to choose by" in (folder / "README.md").read_text()


def test_mlflow_has_both(story):
    client = MlflowClient(f"sqlite:///{story.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.kind` = 'trial'")
    assert len(runs) == 2
    for run in runs:
        assert {"dev/mcc", "holdout/mcc"} <= set(run.data.metrics)
    assert {run.data.params["train_fraction"] for run in runs} == {"0.5", "1.0"}
