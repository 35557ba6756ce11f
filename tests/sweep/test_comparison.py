"""Methods compared with equal budgets and several seeds, as a user does it: cut off, gone on with, looked at."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from ikd_ray.records import read_sweep, read_trials
from tests.helpers.run_command import start_sweep, sweep_flags, trial_metrics

pytestmark = pytest.mark.slow

SPACE = """\
selection: holdout
objectives: {dev/metric: max}
best_seeds: 2
methods:
  Hard labels: {regime: hard}
  KD: {regime: kd}
  "KD by <an> assistant": {regime: kd, assistant_layers: 3}
params:
  student_layers: 2
  learning_rate: {float: [1.0e-3, 2.0e-2], log: true}
  batch_size: 16
  epochs: 1
teacher: {epochs: 2, learning_rate: 1.0e-2}
assistant: {epochs: 1, learning_rate: 1.0e-2}
"""
METHODS = ["Hard labels", "KD", "KD by <an> assistant"]
TRIALS = 3 * 2 + 3 * 2


@pytest.fixture(scope="module")
def story(inputs, command, environment, tmp_path_factory):
    """Ctrl-C after the third trial and again among the best ones' seeds; the same sweep left alone; a report."""
    home = tmp_path_factory.mktemp("comparison")
    (home / "space.yaml").write_text(SPACE)
    arguments = [*sweep_flags(inputs, home / "space.yaml", "cut"), "--trials", "2"]
    for last, more in ((3, arguments), (4, ["--resume", "cut"])):  # counted of those that are left
        process = start_sweep(environment, home, more)
        for line in process.stdout:
            if f" {last} of " in line:
                process.send_signal(signal.SIGINT)
                break
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 130, rest
    done = {
        "longer": command("run", "--resume", "cut", "--trials", "3", cwd=home),
        "rest": command("run", "--resume", "cut", cwd=home),
        "check": command("report", "--check", "cut", cwd=home),
    }
    arguments[arguments.index("cut")] = "whole"
    done["whole"] = command("run", *arguments, "--no-share", cwd=home)
    done["report"] = command("report", "--task", "cola", "--name", "cut", cwd=home)
    return SimpleNamespace(home=home, folder=home / "outputs" / "cut", **done)


def test_it_goes_on_as_if_it_had_never_stopped(story):
    for done in (story.rest, story.whole):
        assert done.returncode == 0, done.stderr
    assert len(trial_metrics(story.folder)) == TRIALS
    assert trial_metrics(story.folder) == trial_metrics(story.home / "outputs" / "whole")


def test_every_method_has_as_many_trials_and_its_best_comes_again(story):
    trials = read_trials(story.folder)
    metric = "holdout/mcc"
    assert read_sweep(story.folder).objectives == {metric: "max"}
    for method in METHODS:
        own = [trial for trial in trials if trial.method == method]
        searched, again = ([t for t in own if t.retrained == side] for side in (False, True))
        assert len(searched) == len(again) == 2
        assert [trial.params["seed"] for trial in again] == [1, 2]
        best = max(searched, key=lambda trial: (trial.metrics[metric], -trial.number))
        assert all(trial.params == best.params | {"seed": trial.params["seed"]} for trial in again)


def test_mlflow_knows_whose_each_trial_is(story):
    client = MlflowClient(f"sqlite:///{story.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.sweep` = 'cut' and tags.`ikd.kind` = 'trial'")
    told = {run.data.tags["ikd.trial"]: (run.data.params["method"], run.data.params["again"]) for run in runs}
    assert told == {trial.id: (trial.method, str(trial.retrained)) for trial in read_trials(story.folder)}


def test_records_study_and_mlflow_tell_one_story(story):
    assert story.check.returncode == 0, story.check.stdout + story.check.stderr


def test_another_number_of_trials_would_have_another_best(story):
    assert story.longer.returncode == 2
    assert story.longer.stderr.startswith(
        "error: --resume cut: --trials cannot change, as best_seeds of its space"
    )


def test_the_table_of_trials_names_methods(story):
    [header, *rows] = (story.folder / "trials.csv").read_text().splitlines()
    assert {"method", "again"} <= set(header.split(","))
    assert len(rows) == TRIALS


def test_the_report_compares_them(story):
    assert story.report.returncode == 0, story.report.stderr
    page = (story.folder / "report" / "report.html").read_text()
    assert "KD by &lt;an&gt; assistant" in page
    assert "KD by <an> assistant" not in page
    table = (story.folder / "report" / "methods.md").read_text()
    assert all(name.split("<")[0] in table for name in METHODS)


def test_the_front_has_whose_it_is(story):
    [member] = json.loads((story.folder / "pareto.json").read_text())["front"]
    assert member["method"] in METHODS
