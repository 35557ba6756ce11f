"""Whole sweeps, as a user starts them: real Ray, Optuna, MLflow and transformers, a tiny teacher."""

from __future__ import annotations

import csv
import json
import math
import signal
from types import SimpleNamespace

import optuna
import pytest
from mlflow import MlflowClient

from ikd_ray.records import read_trials
from tests.helpers.run_command import start_sweep, sweep_flags, trial_metrics

pytestmark = pytest.mark.slow

TABLE = """
sampler: grid
params:
  regime: {choice: [hard, kd, id, pid, sid]}
  student_layers: 2
  temperature: {choice: [2.0, 1.0e-38], when: {regime: kd}}
  batch_size: 16
teacher: {epochs: 2}
"""
SEARCH = """
params:
  regime: {choice: [kd, id, pid]}
  student_layers: {int: [1, 3]}
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  epochs: 1
teacher: {epochs: 2}
"""
CONTRACT_PARAMS = {
    "regime", "lambda", "temperature", "epochs_per_layer", "cosine_threshold", "soft_labels", "internal_losses",
    "internal_weight", "top_trains", "student_layers", "student_init", "layer_map", "learning_rate", "batch_size",
    "seed",
}  # fmt: skip
EVERY_EPOCH = {"train/loss", "dev/mcc", "stage", "time/epoch_s"} | {
    f"dev/layer_{layer}/{loss}" for layer in (1, 2) for loss in ("kl", "cos")
}
FINAL = {
    "student/params", "student/encoder_params", "student/size_mb", "student/latency_ms", "dev/attention_kl",
    "dev/teacher_agreement",
}  # fmt: skip


@pytest.fixture(scope="module")
def table(inputs, command, tmp_path_factory):
    """A grid of every regime, one of whose trials diverges."""
    home = tmp_path_factory.mktemp("table")
    (home / "table.yaml").write_text(TABLE)
    done = command("run", *sweep_flags(inputs, home / "table.yaml", "first"), cwd=home)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = {kind: [] for kind in ("sweep", "teacher", "trial")}
    for run in client.search_runs([experiment]):
        runs[run.data.tags["ikd.kind"]].append(run)
    return SimpleNamespace(
        home=home, done=done, client=client, folder=home / "outputs" / "first", runs=SimpleNamespace(**runs)
    )


def history(table, run, metric):
    return [m.value for m in table.client.get_metric_history(run.info.run_id, metric)]


def test_a_failed_trial_fails_alone(table):
    assert table.done.returncode == 0, table.done.stderr
    trials = read_trials(table.folder)
    assert [trial.status for trial in trials].count("finished") == 5
    [failed] = [trial for trial in trials if trial.status == "failed"]
    assert failed.params["temperature"] == 1e-38
    assert "became nan in stage C, epoch 1" in failed.reason
    assert failed.reason in table.done.stdout
    [run] = [run for run in table.runs.trial if run.info.status == "FAILED"]
    assert run.data.tags["ikd.trial"] == failed.id
    assert run.data.tags["ikd.reason"] == failed.reason


def test_the_terminal_is_quiet_and_says_what_matters(table):
    assert table.done.stderr == ""
    text = table.done.stdout
    for words in (
        "GLUE folder glue (CoLA, 96 train / 40 dev)",
        "teacher epoch 1/2",
        "Pareto front",
        "mlflow ui",
    ):
        assert words in text
    assert "python sweeps/export.py --task cola --name first" in text
    assert len(text.splitlines()) < 80


def test_runs_are_nested_under_their_sweep(table):
    [parent] = table.runs.sweep
    assert parent.info.status == "FINISHED"
    assert len(table.runs.trial) == 6
    assert {run.data.tags["mlflow.parentRunId"] for run in table.runs.trial} == {parent.info.run_id}
    [teacher] = table.runs.teacher
    assert len(history(table, teacher, "dev/mcc")) == 3  # two epochs, and the best one's at the end
    for run in (parent, teacher, *table.runs.trial):
        assert run.data.tags["ikd.data_source"] == "folder"
        assert run.data.tags["ikd.teacher"].endswith("teacher")
        assert run.data.tags["ikd.code_version"]


def test_every_trial_has_the_params_and_metrics_of_the_contract(table):
    finished = [run for run in table.runs.trial if run.info.status == "FINISHED"]
    assert len(finished) == 5
    for run in finished:
        assert set(run.data.params) >= CONTRACT_PARAMS
        assert run.data.params["layer_map"] == "[2, 4]"
        assert set(run.data.metrics) >= EVERY_EPOCH | FINAL
        assert all(math.isfinite(value) for value in run.data.metrics.values())
        stages = history(table, run, "stage")
        assert len(history(table, run, "dev/layer_1/kl")) >= len(stages) - 1
    by_regime = {run.data.params["regime"]: run for run in finished}
    assert {"train/layer_1/kl", "train/layer_2/cos", "train/soft", "train/hard"} <= set(
        by_regime["id"].data.metrics
    )
    # Two stages of two epochs, then three of classification; the last epoch is logged once more with the sizes.
    assert sorted(set(history(table, by_regime["pid"], "stage"))) == [1, 2, 3]
    assert len(history(table, by_regime["sid"], "train/layer_1/cos")) == 4
    assert len(history(table, by_regime["pid"], "train/layer_1/cos")) == 2
    assert "train/soft" not in by_regime["hard"].data.metrics


def test_disk_study_and_mlflow_tell_the_same_story(table):
    study = optuna.load_study(study_name="ikd", storage=f"sqlite:///{table.folder / 'study.db'}")
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    runs = {run.data.tags["ikd.trial"]: run for run in table.runs.trial}
    for trial in read_trials(table.folder):
        state = study.trials[trial.number]
        assert state.state.name == ("COMPLETE" if trial.status == "finished" else "FAIL")
        if trial.status == "finished":
            assert state.values == [trial.metrics["dev/mcc"], trial.metrics["student/params"]]
            latest = runs[trial.id].data.metrics  # earlier stages' losses too
            assert {name: latest[name] for name in trial.metrics} == trial.metrics


def test_artifacts_of_the_sweep(table):
    [parent] = table.runs.sweep
    names = {file.path for file in table.client.list_artifacts(parent.info.run_id)}
    assert names == {"pareto.png", "pareto.json", "trials.csv", "space.yaml"}
    with open(table.folder / "trials.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    front = json.loads((table.folder / "pareto.json").read_text())["front"]
    assert front
    assert not list(table.folder.glob(".*"))


def test_the_front_is_models_and_can_be_registered(table, command):
    [parent] = table.runs.sweep
    front = [member["id"] for member in json.loads((table.folder / "pareto.json").read_text())["front"]]
    marked = {run.data.tags["ikd.trial"]: run for run in table.runs.trial if run.data.tags.get("ikd.front")}
    assert set(marked) == set(front)
    models = {name: run.outputs.model_outputs[0].model_id for name, run in marked.items()}
    assert all(table.client.get_logged_model(model).status == "READY" for model in models.values())
    note = table.client.get_run(parent.info.run_id).data.tags["mlflow.note.content"]
    assert all(name in note for name in front)
    done = command(
        *("export", "--task", "cola", "--pick", "best", "--to", "best", "--register", "judge"), cwd=table.home
    )
    assert done.returncode == 0, done.stderr
    [version] = table.client.search_model_versions("name = 'judge'")
    assert models[version.tags["ikd.trial"]] in version.source
    assert f"{version.tags['ikd.trial']}: version 1 of judge" in done.stdout
    assert [folder.name.rpartition("-")[2] for folder in (table.home / "best").iterdir()] == [
        version.tags["ikd.trial"]
    ]


def test_exports_score_what_mlflow_recorded(table, command, inputs):
    from sklearn.metrics import matthews_corrcoef
    from transformers import pipeline

    done = command("export", "--task", "cola", "--to", "exports", cwd=table.home)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in (inputs / "glue/CoLA/dev.tsv").read_text().splitlines()]
    gold = [int(row[1]) for row in rows]
    front = json.loads((table.folder / "pareto.json").read_text())["front"]
    folders = sorted((table.home / "exports").iterdir())
    assert len(folders) == len(front)
    for member in front:
        [folder] = [folder for folder in folders if folder.name.endswith(member["id"])]
        classify = pipeline("text-classification", str(folder))
        labels = [answer["label"] for answer in classify([row[3] for row in rows])]
        assert set(labels) <= {"unacceptable", "acceptable"}
        predicted = [int(label == "acceptable") for label in labels]
        assert matthews_corrcoef(gold, predicted) == pytest.approx(member["metrics"]["dev/mcc"], abs=1e-12)


def test_the_same_seed_gives_the_same_sweep_also_when_it_was_interrupted(
    inputs, command, environment, tmp_path
):
    """Ctrl-C after the first trial; --resume runs the rest; a sweep left alone has the same numbers."""
    (tmp_path / "search.yaml").write_text(SEARCH)
    arguments = [*sweep_flags(inputs, tmp_path / "search.yaml", "cut"), "--trials", "4"]
    process = start_sweep(environment, tmp_path, arguments)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "finished in" in line:
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    hint = "".join([*seen, rest])
    assert "--resume cut" in hint
    ended = len(read_trials(tmp_path / "outputs" / "cut"))
    assert 1 <= ended <= 4

    again = command("run", "--resume", "cut", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    arguments[arguments.index("cut")] = "whole"
    whole = command("run", *arguments, "--no-share", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "fine-tuning" not in whole.stdout, "the teacher is there already"
    cut = trial_metrics(tmp_path / "outputs" / "cut")
    assert len(cut) == 4
    assert cut == trial_metrics(tmp_path / "outputs" / "whole")

    longer = command("run", "--resume", "cut", "--trials", "5", cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    extended = trial_metrics(tmp_path / "outputs" / "cut")
    assert {key: extended[key] for key in cut} == cut
    assert len(extended) == 5
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.sweep` = 'cut' and tags.`ikd.kind` = 'trial'")
    assert sorted(run.data.tags["ikd.trial"] for run in runs) == sorted(extended)
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_two_workers_train_what_one_does(inputs, command, tmp_path):
    space = "params: {regime: id, student_layers: 2, epochs: 2, batch_size: 16}\nteacher: {epochs: 1}\n"
    (tmp_path / "space.yaml").write_text(space)
    common = [*sweep_flags(inputs, tmp_path / "space.yaml", "one"), "--trials", "1"]
    one = command("run", *common, cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    common[common.index("one")] = "two"
    two = command("run", *common, "--workers-per-trial", "2", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    common[common.index("two")] = "three"
    three = command("run", *common, "--workers-per-trial", "2", cwd=tmp_path)
    assert three.returncode == 0, three.stderr
    [alone], [together], [again] = (
        read_trials(tmp_path / "outputs" / name) for name in ("one", "two", "three")
    )
    assert (together.reused_from, again.reused_from) == ([], ["two/t000"]), "one worker's epochs are others"
    assert again.metrics["trained_epochs"] == 0
    for one_epoch, other in zip(together.history, again.history, strict=True):
        same = [name for name in one_epoch if "time/" not in name and "_epochs" not in name]
        assert {name: one_epoch[name] for name in same} == {name: other[name] for name in same}
    assert alone.metrics.keys() == together.metrics.keys()
    for name, value in alone.history[0].items():
        if name.startswith("train/"):
            assert together.history[0][name] == pytest.approx(value, rel=0.02)


def test_when_every_trial_fails_so_does_the_sweep(inputs, command, tmp_path):
    (tmp_path / "space.yaml").write_text(
        "params: {temperature: 1.0e-38, student_layers: 1}\nteacher: {epochs: 1}\n"
    )
    arguments = [*sweep_flags(inputs, tmp_path / "space.yaml", "bad"), "--trials", "2"]
    done = command("run", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("became nan") >= 2
