"""A sweep's front, models, versions and repaired runs in MLflow's own SQLite store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from ikd_ray import records
from ikd_ray.errors import UsageError
from ikd_ray.tracking.description import literal, sweep_description
from ikd_ray.tracking.models import publish_front, register_students
from ikd_ray.tracking.reconcile import find_differences, repair
from tests.helpers.consistency import metric_history
from tests.helpers.mlflow_sweeps import PARAMS, sweep_record, trial_record, trial_runs
from tests.helpers.sample_students import make_student, write_teacher_tokenizer


@pytest.fixture
def sweep(request):
    return sweep_record(request.node.name)


@pytest.fixture
def folder(tmp_path, sweep):
    """Return the sweep's folder, with the student of t000."""
    write_teacher_tokenizer(tmp_path / "cache" / "teachers" / "key")
    records.write_trial(tmp_path / "sweep", trial_record(0), make_student(2).save_pretrained)
    records.write_sweep(tmp_path / "sweep", sweep)
    return tmp_path / "sweep"


@pytest.fixture
def default_store(tracker):
    """Make the tracker's store the one that `mlflow` itself uses."""
    mlflow.set_tracking_uri(tracker.uri)
    yield
    mlflow.set_tracking_uri(None)


def test_the_front_is_published(tracker, sweep, folder):
    client, trials = tracker.client, [trial_record(number) for number in range(3)]
    tracker.finish_sweep(folder, sweep, trials)
    end_times = {trial: run.info.end_time for trial, run in trial_runs(tracker).items()}
    for _ in range(2):  # the second time there is nothing to do
        publish_front(tracker, folder, sweep, trials)
    runs = trial_runs(tracker)
    assert {trial: run.data.tags.get("ikd.front") for trial, run in runs.items()} == {
        "t000": "true",  # of equals the first
        "t001": None,
        "t002": None,
    }
    assert {trial: run.info.end_time for trial, run in runs.items()} == end_times
    assert sorted(run.info.run_name for run in runs.values()) == [f"kd-2L-t00{n}" for n in range(3)]
    note = client.get_run(tracker.parent_run_id).data.tags["mlflow.note.content"]
    assert "- kd-2L-t000: dev/mcc 0.2" in note
    assert r"a \[folder\]" in note
    assert metric_history(tracker.client, runs["t000"], "dev/mcc") == [(1, 0.1), (2, 0.2)], "each value once"
    better = replace(trial_record(1), metrics=trial_record(1).metrics | {"dev/mcc": 0.3})
    records.write_trial(folder, better, make_student(2).save_pretrained)
    publish_front(tracker, folder, sweep, [trial_record(0), better])
    tags = {trial: run.data.tags.get("ikd.front") for trial, run in trial_runs(tracker).items()}
    assert (tags["t000"], tags["t001"]) == ("false", "true")


def test_a_student_is_a_model(tracker, sweep, folder, default_store):
    client = tracker.client
    tracker.finish_sweep(folder, sweep, [trial_record(0)])
    publish_front(tracker, folder, sweep, [trial_record(0)])
    run_id = trial_runs(tracker)["t000"].info.run_id
    (output,) = client.get_run(run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert model.status == "READY"
    assert model.source_run_id == run_id
    assert model.params["regime"] == "kd"
    assert {metric.key: metric.value for metric in model.metrics} == {"dev/mcc": 0.2, "student/params": 5.0}
    loaded = mlflow.transformers.load_model(f"models:/{output.model_id}")
    tokens = loaded.tokenizer("the cat sat .", return_tensors="pt")
    torch.testing.assert_close(loaded.model(**tokens).logits, make_student(2)(**tokens).logits)
    assert loaded.model.config.id2label == {0: "unacceptable", 1: "acceptable"}
    artifacts = Path(mlflow.artifacts.download_artifacts(f"models:/{output.model_id}"))
    assert not (artifacts / "LICENSE.txt").exists(), "it would link to a page of the hub that does not exist"
    assert "sweep `sweep`" in (artifacts / "model_card.md").read_text()


def test_a_damaged_student_is_no_model(tracker, sweep, folder):
    tracker.finish_sweep(folder, sweep, [trial_record(0)])
    (folder / "trials" / "t000" / "student" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="damaged"):
        publish_front(tracker, folder, sweep, [trial_record(0)])
    assert tracker.client.search_logged_models([tracker.experiment_id]) == []


def test_differences_from_the_records_are_found_and_repaired(tracker, sweep, folder):
    client, trials = tracker.client, [trial_record(number) for number in range(3)]

    def differences():
        return sorted(difference.what for difference in find_differences(tracker, sweep, trials))

    tracker.finish_sweep(folder, sweep, trials)
    assert differences() == ["t000 is on the front, and its run had no model"]
    publish_front(tracker, folder, sweep, trials)
    assert differences() == []
    runs = trial_runs(tracker)
    ids = [runs[f"t00{number}"].info.run_id for number in range(3)]
    client.update_run(ids[0], status="RUNNING")
    client.log_metric(ids[1], "dev/mcc", 0.9, step=2)
    client.log_metric(ids[2], "stage", 1.0, step=2)
    tracker.start_trial("t007", PARAMS)
    client.update_run(tracker.parent_run_id, status="RUNNING")
    assert differences() == [
        "t000 was RUNNING",
        "t001 had not the metrics of its record, each once",
        "t002 had not the metrics of its record, each once",
        "t007 was RUNNING, and has no record",
        "the sweep was RUNNING",
    ]
    repair(tracker, folder, sweep, trials, find_differences(tracker, sweep, trials))
    assert differences() == []
    assert trial_runs(tracker)["t000"].info.run_id == ids[0]


def test_students_are_versions_of_a_registered_model(tracker, sweep, folder, default_store):
    trials = [trial_record(0), trial_record(1)]
    records.write_trial(folder, trial_record(1), make_student(2).save_pretrained)
    tracker.finish_sweep(folder, sweep, trials)
    publish_front(tracker, folder, sweep, trials)  # t001 equals t000 and is not on it
    assert register_students(tracker, folder, sweep, trials, "judge") == {"t000": "1", "t001": "2"}
    assert register_students(tracker, folder, sweep, trials[::-1], "judge") == {"t001": "2", "t000": "1"}
    versions = {v.version: v for v in tracker.client.search_model_versions("name = 'judge'")}
    assert sorted(versions) == [1, 2], "once each"
    assert versions[1].description == "kd-2L-t000 of sweep sweep: dev/mcc 0.2. Teacher: MiniLM."
    assert versions[1].run_id == trial_runs(tracker)["t000"].info.run_id
    loaded = mlflow.transformers.load_model("models:/judge/2")
    assert loaded("the cat sat .")[0]["label"] in ("unacceptable", "acceptable")


def test_a_trial_without_a_run_is_not_registered(tracker, sweep, folder):
    with pytest.raises(UsageError, match=r"has no run of t000; `ikd report --check sweep .*` delivers it"):
        register_students(tracker, folder, sweep, [trial_record(0)], "judge-of-none")
    assert tracker.client.search_registered_models("name = 'judge-of-none'") == []


def test_descriptions_show_outside_text_literally():
    text = r"my_teacher_x *a* <b> | ~~c~~ \d `e` [f](g) {h} &amp; @user $i$"
    assert literal(text) == (
        r"my\_teacher\_x \*a\* &#60;b&#62; \| \~\~c\~\~ \\d \`e\` \[f\](g) \{h\} &#38;amp; &#64;user $i$"
    )
    command = "python sweeps/run.py --task my_task.yaml --teacher 'a`b'"
    note = sweep_description(sweep_record("", command=command), [], "1")
    assert f"\n\n    {command}\n\n" in note  # a block of code, in which nothing is escaped
