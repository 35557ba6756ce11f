"""Sweeps as a user starts them, with real Ray, Optuna, MLflow and transformers: one worker, two, and resumed."""

from __future__ import annotations

import csv
import math

import pytest
from sklearn.metrics import matthews_corrcoef
from transformers import pipeline

from ikd_ray.analysis.training_costs import compute_savings
from ikd_ray.records import read_sweep
from tests.helpers.consistency import (
    assert_consistent,
    assert_same_students,
    damaged_entries,
    lasting,
    metric_history,
    mlflow_runs,
    saved_epochs,
)

EVERY_PARAM = {
    "regime", "lambda", "temperature", "epochs_per_layer", "cosine_threshold", "soft_labels", "internal_losses",
    "internal_weight", "top_trains", "student_layers", "student_init", "layer_map", "learning_rate", "batch_size",
    "seed",
}  # fmt: skip
EVERY_EPOCH = {"train/loss", "dev/mcc", "stage", "time/epoch_s"} | {
    f"dev/layer_{layer}/{loss}" for layer in (1, 2) for loss in ("kl", "cos")
}
FINAL = {
    "student/params", "student/encoder_params", "student/size_mb", "student/latency_ms", "dev/attention_kl",
    "dev/teacher_agreement", "dev/nll", "dev/teacher_kl",
}  # fmt: skip
LOCAL = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.mark.parametrize("fixture", ["one_worker", "two_workers", "resumed"])
def test_a_sweep_ends_well_and_leaves_nothing_behind(fixture, request):
    swept = request.getfixturevalue(fixture)
    ended = swept.exits[-1]
    assert (ended.status, ended.errors) == (0, ""), ended.text
    assert (ended.processes, ended.folders) == ([], set())
    assert not list(swept.folder.glob(".*"))


@pytest.mark.parametrize("fixture", ["one_worker", "two_workers"])
def test_servers_listen_on_this_machine_alone(fixture, request):
    """`two_workers` needs Ray's API server, too."""
    sockets = request.getfixturevalue(fixture).sockets
    assert {"gcs_server", "raylet"} <= {process for process, _ in sockets}
    assert [entry for entry in sockets if entry[1] not in LOCAL] == []


def test_a_cluster_has_a_token_which_its_owner_alone_can_read(one_worker):
    assert one_worker.auth_modes == {"token"}
    assert (one_worker.home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_a_trial_that_diverges_fails_alone(one_worker):
    [failed] = [trial for trial in one_worker.trials if trial.status == "failed"]
    assert failed.params["temperature"] == 1e-38
    assert "became nan in stage C, epoch 1" in failed.reason
    assert failed.reason in one_worker.exits[0].output
    [run] = [run for run in one_worker.runs("trial") if run.info.status == "FAILED"]
    assert run.data.tags["ikd.trial"] == failed.id
    assert run.data.tags["ikd.reason"] == failed.reason


def test_the_terminal_is_quiet_and_says_what_matters(one_worker):
    text = one_worker.exits[0].output
    for words in (
        "GLUE folder glue (CoLA, 96 train / 40 dev)",
        "teacher epoch 1/2",
        "Pareto front",
        "mlflow ui",
        "/runs?workflowType=machine_learning&viewStateShareKey=ikd-students",
        "sweeps/export.py --task cola --name whole",
    ):
        assert words in text
    assert len(text.splitlines()) < 80


def test_runs_say_what_they_were_made_from(one_worker):
    [parent], [teacher], trials = (one_worker.runs(kind) for kind in ("sweep", "teacher", "trial"))
    # Two epochs, and the best one's at the end.
    assert len(metric_history(one_worker.client, teacher, "dev/mcc")) == 3
    for run in (parent, teacher, *trials):
        assert run.data.tags["ikd.data_source"] == "folder"
        assert run.data.tags["ikd.teacher"] == "teacher"
        assert run.data.tags["ikd.code_version"]
    record = read_sweep(one_worker.folder)
    assert record.teacher["hub_name"] == ""
    assert len(record.data["example"]) == 1
    for run in (parent, *trials):
        [given] = run.inputs.dataset_inputs
        digest = record.data["fingerprint"][: len(given.dataset.digest)]
        assert (given.dataset.name, given.dataset.digest) == ("cola", digest)
    assert parent.data.metrics["front/students"] >= 1
    assert parent.data.tags["ikd.champion"] in {trial.id for trial in one_worker.trials}


def test_every_finished_trial_has_all_params_and_metrics(one_worker):
    client = one_worker.client
    finished = [run for run in one_worker.runs("trial") if run.info.status == "FINISHED"]
    for run in finished:
        assert set(run.data.params) >= EVERY_PARAM
        assert run.data.params["layer_map"] == "[2, 4]"
        assert set(run.data.metrics) >= EVERY_EPOCH | FINAL
        assert all(math.isfinite(value) for value in run.data.metrics.values())
        epochs = len(metric_history(client, run, "stage"))
        assert len(metric_history(client, run, "dev/layer_1/kl")) >= epochs - 1
    longest_last = sorted(finished, key=lambda run: int(run.data.params["epochs_per_layer"]))
    by_regime = {run.data.params["regime"]: run for run in longest_last}
    trained = {"train/layer_1/kl", "train/layer_2/cos", "train/soft", "train/hard"}
    assert set(by_regime["id"].data.metrics) >= trained
    # Two stages of two epochs, then two epochs of classification.
    stages = [value for _, value in metric_history(client, by_regime["pid"], "stage")]
    assert stages == [1, 1, 2, 2, 3, 3]
    assert len(metric_history(client, by_regime["sid"], "train/layer_1/cos")) == 4
    assert len(metric_history(client, by_regime["pid"], "train/layer_1/cos")) == 2
    assert "train/soft" not in by_regime["hard"].data.metrics


@pytest.mark.parametrize("fixture", ["one_worker", "resumed"])
def test_disk_study_and_mlflow_agree(fixture, request):
    swept = request.getfixturevalue(fixture)
    failed = [trial.number for trial in swept.trials if trial.params["temperature"] == 1e-38]
    assert_consistent(swept.folder, swept.uri, trials=8, failed=failed)


@pytest.mark.parametrize("fixture", ["one_worker", "resumed", "two_workers"])
def test_report_check_finds_no_difference(fixture, request, call):
    swept = request.getfixturevalue(fixture)
    result = call("report", "--check", swept.name, cwd=swept.home)
    assert result.stdout.endswith("; 0 differences\n")


def test_the_table_has_every_trial(one_worker):
    with open(one_worker.folder / "trials.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    assert one_worker.front


def test_the_front_is_logged_as_models_that_can_be_registered(one_worker, call):
    runs = {run.data.tags["ikd.trial"]: run for run in one_worker.runs("trial")}
    marked = {name: run for name, run in runs.items() if run.data.tags.get("ikd.front")}
    assert set(marked) == {member["id"] for member in one_worker.front}
    models = {name: run.outputs.model_outputs[0].model_id for name, run in marked.items()}
    flags = ("--task", "cola", "--name", "whole", "--pick", "best", "--to", "best", "--register", "judge")
    result = call("export", *flags, cwd=one_worker.home)
    [version] = one_worker.client.search_model_versions("name = 'judge'")
    best = version.tags["ikd.trial"]
    assert models[best] in version.source
    assert f"{best}: version 1 of judge, models:/judge/1" in result.stdout
    assert "champion: version 1, models:/judge@champion" in result.stdout
    assert [folder.name.rpartition("-")[2] for folder in (one_worker.home / "best").iterdir()] == [best]


def test_exports_score_what_was_recorded(one_worker, call, inputs):
    call("export", "--task", "cola", "--name", "whole", "--to", "exports", cwd=one_worker.home)
    rows = [line.split("\t") for line in (inputs / "glue/CoLA/dev.tsv").read_text().splitlines()]
    gold = [int(row[1]) for row in rows]
    folders = sorted((one_worker.home / "exports").iterdir())
    assert len(folders) == len(one_worker.front)
    for member in one_worker.front:
        [folder] = [folder for folder in folders if folder.name.endswith(member["id"])]
        classify = pipeline("text-classification", str(folder), device="cpu")
        labels = [answer["label"] for answer in classify([row[3] for row in rows])]
        assert set(labels) <= {"unacceptable", "acceptable"}
        predicted = [int(label == "acceptable") for label in labels]
        assert matthews_corrcoef(gold, predicted) == pytest.approx(member["metrics"]["dev/mcc"], abs=1e-12)


def test_ctrl_c_ends_a_sweep_and_says_how_to_resume_it(resumed):
    cut, rest = resumed.exits
    assert cut.status == 130, cut.text
    assert cut.seconds < 30  # 10 where nothing else runs: see tests/faults/test_ctrl_c.py
    assert cut.tells_to_resume("--resume cut")
    assert "Traceback" not in cut.text
    assert (cut.processes, cut.folders) == ([], set())
    assert rest.status == 0, rest.text
    assert "fine-tuning" not in cut.text + rest.text, "the teacher was there already"


def test_a_resumed_and_sharing_sweep_equals_one_left_alone(one_worker, resumed):
    """Its seed decides: neither Ctrl-C, nor another number of trials asked for, nor epochs of other trials."""
    assert_same_students(one_worker.folder, resumed.folder, trials=8)


def test_no_epoch_is_trained_twice(one_worker, resumed):
    """Each internal stage is trained for its longest stay, once for each state that it can start from."""
    # PID and SID have the first layer's stage in common: 2 epochs. The second one starts from either epoch's state,
    # and lasts as long: 1 + 2 epochs, of one layer in PID and of two in SID.
    found = compute_savings(resumed.trials)
    assert found.internal_trained == 2 + 3 * 1 + 3 * 2
    assert found.internal_total == (2 + 4) + (3 + 6)
    assert found.classification_trained == found.classification_total == 2 * 7
    assert compute_savings(one_worker.trials).saved_s == 0
    assert damaged_entries(one_worker.home / "outputs") == []


def test_what_sharing_saved_is_shown(resumed):
    assert "sharing: internal stages: 11 of 15 layer-epochs trained (1.4x fewer)" in resumed.exits[-1].output
    [parent] = resumed.runs("sweep")
    assert parent.data.metrics["sharing/internal_layer_epochs_trained"] == 11
    assert parent.data.metrics["sharing/internal_layer_epochs"] == 15
    trials = {trial.id: trial for trial in resumed.trials if trial.status == "finished"}
    assert any(trial.reused_from for trial in trials.values())
    for run in resumed.runs("trial"):
        if trial := trials.get(run.data.tags["ikd.trial"]):
            latest = run.data.metrics
            assert latest["reused_epochs"] + latest["trained_epochs"] == len(trial.history)
            assert (latest["reused_epochs"] > 0) == bool(trial.reused_from)


def test_two_workers_train_what_one_does(one_worker, two_workers):
    [together] = two_workers.trials
    [alone] = [trial for trial in one_worker.trials if trial.params == together.params]
    assert together.reused_from == [], "epochs of one worker are others"
    assert alone.metrics.keys() == together.metrics.keys()
    for one, two in zip(alone.history, together.history, strict=True):
        assert lasting(one).keys() == lasting(two).keys()
    for name, value in alone.history[0].items():
        if name.startswith("train/"):
            assert together.history[0][name] == pytest.approx(value, rel=0.02)
    assert len(saved_epochs(two_workers.home / "outputs")) > len(together.history)
    assert len(mlflow_runs(two_workers.client, "two")["teacher"]) == 1, "one teacher for all sweeps"
