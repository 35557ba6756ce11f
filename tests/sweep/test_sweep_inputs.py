"""Sweeps with other inputs and outputs: a bucket, methods and assistants, a custom task, the embedded corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import pipeline

from ikd_ray.data.sources import load_dataset
from ikd_ray.data.splits import hold_out
from ikd_ray.data.task_file import find_task
from ikd_ray.distill.teacher import load_teacher, open_teacher
from ikd_ray.storage.remote import RemoteStorage
from tests.helpers.consistency import assert_consistent, metric_history
from tests.helpers.sample_students import is_whole_export
from tests.helpers.terminal import invoke
from tests.sweep.conftest import CLASSES, TASK, Swept

METHODS = ["KD", "KD by <an> assistant"]


@pytest.fixture
def bucket(on_s3, machine, monkeypatch) -> str:
    """Return the bucket's URI; commands called in this process run on a machine without any of its files."""
    monkeypatch.setenv("HOME", machine("second")["HOME"])
    return (on_s3.home / "bucket").read_text()


@pytest.fixture(scope="module")
def methods(on_s3, machine, command_line) -> Swept:
    """Return the sweep on S3 with its records downloaded to a second machine, where they agree with MLflow."""
    bucket = (on_s3.home / "bucket").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", machine("second")["HOME"])
        patch.chdir(on_s3.home)
        result = invoke(command_line("report"), "--check", "methods", "--output", bucket)
        folder = RemoteStorage(bucket).folder
    assert result.exit_code == 0, result.output
    assert result.stdout == "methods: 6 of 6 trials have ended, 6 of them finished; 0 differences\n"
    return Swept(on_s3.home, on_s3.name, on_s3.exits, output=folder)


@pytest.mark.parametrize("fixture", ["on_s3", "custom_task", "embedded_corpus"])
def test_a_sweep_ends_well_and_leaves_nothing_behind(fixture, request):
    for ended in request.getfixturevalue(fixture).exits:
        assert (ended.status, ended.errors) == (0, ""), ended.text
        assert (ended.processes, ended.folders) == ([], set())


def test_another_machine_gets_all_records_from_the_bucket(methods):
    assert [trial.status for trial in methods.trials] == ["finished"] * 6
    front = {member["id"] for member in methods.front}  # for the models in MLflow
    assert {path.parent.name for path in methods.folder.glob("trials/*/student")} <= front


def test_another_machine_exports_from_the_bucket(on_s3, bucket, call, tmp_path):
    call("export", "--task", "cola", "--output", bucket, "--to", tmp_path / "exports", cwd=on_s3.home)
    exported = list((tmp_path / "exports").iterdir())
    assert exported
    for folder in exported:
        assert is_whole_export(folder)
        facts = json.loads((folder / "ikd.json").read_text())
        assert ("assistant" in facts) == (facts["params"]["assistant_layers"] == 3)


def test_a_name_that_is_taken_in_the_bucket_is_refused(on_s3, bucket, inputs, call, machine, monkeypatch):
    monkeypatch.setenv("HOME", machine("third")["HOME"])
    flags = ("--task", "cola", "--teacher", inputs / "teacher", "--data-dir", inputs / "glue")
    arguments = (*flags, "--name", "methods", "--output", bucket)
    refused = call("run", *arguments, cwd=on_s3.home, status=2).stderr
    assert refused.count("\n") == 1
    assert "exists already" in refused
    assert "--resume methods" in refused


def test_every_method_has_as_many_trials_and_its_best_is_retrained(methods):
    assert methods.record.objectives == {"dev/mcc": "max"}
    for method in METHODS:
        own = [trial for trial in methods.trials if trial.method == method]
        searched, retrained = ([t for t in own if t.retrained == side] for side in (False, True))
        assert (len(searched), len(retrained)) == (2, 1)
        best = max(searched, key=lambda trial: (trial.metrics["dev/mcc"], -trial.number))
        assert [trial.params for trial in retrained] == [best.params | {"seed": 1}]


def test_the_method_of_each_trial_is_in_mlflow_the_table_and_the_front(methods):
    runs = methods.runs("trial")
    logged = {run.data.tags["ikd.trial"]: run.data.params for run in runs}
    for trial in methods.trials:
        expected = {"method": trial.method, "again": str(trial.retrained)}
        assert logged[trial.id].items() >= expected.items()
    [header, *rows] = (methods.folder / "trials.csv").read_text().splitlines()
    assert {"method", "again"} <= set(header.split(","))
    assert len(rows) == 6
    [member] = methods.front
    assert member["method"] in METHODS


def test_the_report_escapes_the_names_of_methods(methods, bucket, call):
    call("report", "--task", "cola", "--name", "methods", "--output", bucket, cwd=methods.home)
    page = (methods.folder / "report" / "report.html").read_text()
    assert "KD by &lt;an&gt; assistant" in page
    assert "KD by <an> assistant" not in page
    assert "KD by " in (methods.folder / "report" / "methods.md").read_text()


def test_the_record_and_the_cache_have_the_assistant(methods, bucket):
    [(depth, assistant)] = methods.record.teacher["assistants"].items()
    assert depth == "3"
    assert assistant["name"].startswith("3L of ")
    folder = methods.output / "cache" / "teachers" / assistant["key"]
    RemoteStorage(bucket).download(folder)
    found = open_teacher(folder)
    assert found.metrics == assistant["metrics"]
    assert "dev/mcc" in found.metrics
    assert len(load_teacher(found.folder).layers) == 3


def test_the_terminal_tells_of_the_assistant(methods):
    for words in (
        "distilling a 3-layer assistant (id)",
        "3-layer assistant epoch 2/2",
        "storing the 3-layer assistant's targets",
        "assistant: 3 layers, dev/mcc ",
    ):
        assert words in methods.exits[0].output


def test_the_assistant_has_a_run_of_its_own(methods):
    [run] = methods.runs("assistant")
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("assistant 3L of ")
    assert "mlflow.parentRunId" not in run.data.tags
    asked = {"regime": "id", "epochs": "2", "learning_rate": "0.001", "student_layers": "3"}
    assert run.data.params.items() >= asked.items()
    assert [step for step, _ in metric_history(methods.client, run, "dev/mcc")] == [1, 2]
    recorded = methods.record.teacher["assistants"]["3"]["metrics"]
    assert {name: run.data.metrics[name] for name in recorded} == recorded
    assert len(methods.runs("teacher")) == 1


def test_assisted_students_learn_from_it_and_are_compared_with_the_teacher(methods):
    for seed in {trial.params["seed"] for trial in methods.trials}:
        plain, assisted = (
            next(t for t in methods.trials if t.method == method and t.params["seed"] == seed)
            for method in METHODS
        )
        assert plain.layer_map == assisted.layer_map == [2, 4]
        assert not {*assisted.reused_from} & {plain.id}
        assert assisted.metrics["train/loss"] != plain.metrics["train/loss"]
        assert "dev/layer_1/kl" in assisted.metrics


def test_the_sweep_of_a_custom_task_is_consistent(custom_task):
    output = custom_task.exits[0].output
    assert "folder folder (reviews, 300 train / 60 dev)" in output
    assert "sweeps/export.py --task reviews --name held" in output
    assert "holdout macro_f1" in output
    assert_consistent(custom_task.folder, custom_task.uri, trials=2, task="reviews")
    assert (custom_task.folder / "task.yaml").read_text() == TASK


def test_a_custom_tasks_metrics_are_recorded_for_both_splits(custom_task):
    record, trials = custom_task.record, custom_task.trials
    assert record.objectives == {"holdout/macro_f1": "max", "student/params": "min"}
    assert set(record.teacher["metrics"]) == {
        f"{split}/{metric}" for split in ("dev", "holdout") for metric in ("accuracy", "macro_f1", "nll")
    }
    names = ("accuracy", "macro_f1", "nll", "teacher_kl", "attention_kl", "teacher_agreement", "layer_1/kl")
    for trial, run in zip(trials, custom_task.runs("trial")[::-1], strict=True):
        both = {f"{split}/{name}" for split in ("dev", "holdout") for name in names}
        assert both <= set(trial.metrics)
        assert both <= set(run.data.metrics)
        assert run.data.params["train_fraction"] in ("0.5", "1.0")
    assert [trial.params["train_fraction"] for trial in trials] == [0.5, 1.0]
    # The last epochs learned something: a broken column of labels would leave guesses.
    assert max(trial.metrics["dev/accuracy"] for trial in trials) > 0.5


def test_the_record_says_that_a_held_out_part_chose(custom_task):
    data = custom_task.record.data
    task = find_task(str(custom_task.home / "moved.yml"))
    dataset = hold_out(load_dataset(task, custom_task.home / "folder"))
    assert (data["selection"], data["fingerprint"]) == ("holdout", dataset.fingerprint)


@pytest.mark.parametrize("task", ["reviews", "moved.yml"])
def test_the_student_that_the_held_out_part_chose_is_exported(custom_task, call, tmp_path, task):
    call("export", "--task", task, "--pick", "best", "--to", tmp_path, cwd=custom_task.home)
    [folder] = tmp_path.glob("reviews-*")
    facts = json.loads((folder / "ikd.json").read_text())
    best = max(custom_task.trials, key=lambda trial: (trial.metrics["holdout/macro_f1"], -trial.number))
    assert facts["trial"]["id"] == best.id
    card = (folder / "README.md").read_text()
    assert "held out to choose by" in card
    assert "for the task reviews." in card
    assert "Labels: negative, neutral, positive." in card
    assert "GLUE" not in card
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {str(number): name for number, name in enumerate(CLASSES)}
    assert accuracy(folder, custom_task.dev) == facts["metrics"]["dev/accuracy"]


def accuracy(folder: Path, examples: list[tuple[str, str]]) -> float:
    """Return the share of (text, class) that an exported student gets right."""
    classify = pipeline("text-classification", str(folder), device="cpu")
    answers = classify([text for text, _ in examples])
    right = [answer["label"] == label for answer, (_, label) in zip(answers, examples, strict=True)]
    return sum(right) / len(right)


def test_the_embedded_corpus_is_announced_everywhere(embedded_corpus, call, tmp_path):
    output = embedded_corpus.exits[0].output
    assert "WARNING: GENERATED corpus (not CoLA)" in output
    assert embedded_corpus.record.data["generated"] is True
    for kind in ("sweep", "teacher", "trial"):
        assert {run.data.tags["ikd.generated"] for run in embedded_corpus.runs(kind)} == {"true"}
        assert {run.data.tags["ikd.data_source"] for run in embedded_corpus.runs(kind)} == {"embedded"}
    result = call("export", "--task", "cola", "--to", tmp_path / "exports", cwd=embedded_corpus.home)
    assert "GENERATED" in result.output
    [card] = (tmp_path / "exports").glob("*/README.md")
    assert "generated" in card.read_text().lower()


def test_a_sweep_on_the_embedded_corpus_is_consistent(embedded_corpus):
    assert_consistent(embedded_corpus.folder, embedded_corpus.uri, trials=1)
