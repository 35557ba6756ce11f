"""A sweep's front, models and versions in MLflow's own SQLite store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch

from ikd_ray import records
from ikd_ray.errors import UsageError
from ikd_ray.tracking.publish import register, show_front
from tests.helpers.mlflow_sweeps import PARAMS, children, record, sweep, values
from tests.helpers.sample_students import make_student, write_teacher_tokenizer


@pytest.fixture
def folder(tmp_path, request):
    """A sweep's, with a student in it."""
    write_teacher_tokenizer(tmp_path / "cache" / "teachers" / "key")
    records.write_trial(tmp_path / "sweep", record(0), make_student(2).save_pretrained)
    records.write_sweep(tmp_path / "sweep", sweep(request.node.name))
    return tmp_path / "sweep"


def test_the_front_is_shown(tracker, request, folder):
    asked, trials = sweep(request.node.name), [record(number) for number in range(3)]
    tracker.conclude(folder, asked, trials)
    times = {trial: run.info.end_time for trial, run in children(tracker).items()}
    for _ in range(2):  # the second time there is nothing to do
        show_front(tracker, folder, asked, trials)
    client, runs = tracker.client, children(tracker)
    assert {trial: run.data.tags.get("ikd.front") for trial, run in runs.items()} == {
        "t000": "true",  # of equals the first
        "t001": None,
        "t002": None,
    }
    assert {trial: run.info.end_time for trial, run in runs.items()} == times
    assert sorted(run.info.run_name for run in runs.values()) == [f"kd-2L-t00{n}" for n in range(3)]
    note = client.get_run(tracker.parent).data.tags["mlflow.note.content"]
    assert "- kd-2L-t000: dev/mcc 0.2" in note
    assert r"a \[folder\]" in note
    assert values(tracker, runs["t000"], "dev/mcc") == [(1, 0.1), (2, 0.2)], "each value once"
    better = replace(record(1), metrics=record(1).metrics | {"dev/mcc": 0.3})
    records.write_trial(folder, better, make_student(2).save_pretrained)
    show_front(tracker, folder, asked, [record(0), better])
    tags = {trial: run.data.tags.get("ikd.front") for trial, run in children(tracker).items()}
    assert (tags["t000"], tags["t001"]) == ("false", "true")


def test_a_student_is_a_model(tracker, request, folder):
    asked = sweep(request.node.name)
    tracker.conclude(folder, asked, [record(0)])
    show_front(tracker, folder, asked, [record(0)])
    run = children(tracker)["t000"]
    (found,) = tracker.client.get_run(run.info.run_id).outputs.model_outputs
    model = tracker.client.get_logged_model(found.model_id)
    assert model.status == "READY"
    assert model.source_run_id == run.info.run_id
    assert model.params["regime"] == "kd"
    assert {metric.key: metric.value for metric in model.metrics} == {"dev/mcc": 0.2, "student/params": 5.0}
    mlflow.set_tracking_uri(tracker.uri)
    loaded = mlflow.transformers.load_model(f"models:/{found.model_id}")
    expected = make_student(2)
    tokens = loaded.tokenizer("the cat sat .", return_tensors="pt")
    torch.testing.assert_close(loaded.model(**tokens).logits, expected(**tokens).logits)
    assert loaded.model.config.id2label == {0: "unacceptable", 1: "acceptable"}
    kept = Path(mlflow.artifacts.download_artifacts(f"models:/{found.model_id}"))
    assert not (kept / "LICENSE.txt").exists(), "it would name a hub's page that is not there"
    assert "sweep `sweep`" in (kept / "model_card.md").read_text()


def test_a_student_that_is_not_whole_is_no_model(tracker, request, folder):
    asked = sweep(request.node.name)
    tracker.conclude(folder, asked, [record(0)])
    (folder / "trials" / "t000" / "student" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="damaged"):
        show_front(tracker, folder, asked, [record(0)])
    assert tracker.client.search_logged_models([tracker.experiment_id]) == []


def test_what_differs_from_the_records_is_seen_and_mended(tracker, request, folder):
    asked, trials = sweep(request.node.name), [record(number) for number in range(3)]
    tracker.conclude(folder, asked, trials)
    assert [found.what for found in tracker.inspect(asked, trials)] == [
        "t000 is on the front, and its run had no model"
    ]
    show_front(tracker, folder, asked, trials)
    assert tracker.inspect(asked, trials) == []
    client, runs = tracker.client, children(tracker)
    ids = [runs[f"t00{number}"].info.run_id for number in range(3)]
    client.update_run(ids[0], status="RUNNING")
    client.log_metric(ids[1], "dev/mcc", 0.9, step=2)
    client.log_metric(ids[2], "stage", 1.0, step=2)
    tracker.trial_started("t007", PARAMS)
    client.update_run(tracker.parent, status="RUNNING")
    found = tracker.inspect(asked, trials)
    assert sorted(difference.what for difference in found) == [
        "t000 was RUNNING",
        "t001 had not the metrics of its record, each once",
        "t002 had not the metrics of its record, each once",
        "t007 was RUNNING, and has no record",
        "the sweep was RUNNING",
    ]
    for difference in found:
        tracker.give_up(difference)
    tracker.start(asked)
    tracker.conclude(folder, asked, trials)
    assert tracker.inspect(asked, trials) == []
    assert children(tracker)["t000"].info.run_id == ids[0]


def test_students_are_versions_of_a_registered_model(tracker, request, folder):
    asked, trials = sweep(request.node.name), [record(0), record(1)]
    records.write_trial(folder, record(1), make_student(2).save_pretrained)
    tracker.conclude(folder, asked, trials)
    show_front(tracker, folder, asked, trials)  # equals: the second is not on it
    assert register(tracker, folder, asked, trials, "judge") == {"t000": "1", "t001": "2"}
    assert register(tracker, folder, asked, trials[::-1], "judge") == {"t001": "2", "t000": "1"}, "once each"
    client = tracker.client
    versions = {v.version: v for v in client.search_model_versions("name = 'judge'")}
    assert sorted(versions) == [1, 2]
    assert versions[1].description == "kd-2L-t000 of sweep sweep: dev/mcc 0.2. Teacher: MiniLM."
    assert versions[1].run_id == children(tracker)["t000"].info.run_id
    mlflow.set_tracking_uri(tracker.uri)
    loaded = mlflow.transformers.load_model("models:/judge/2")
    assert loaded("the cat sat .")[0]["label"] in ("unacceptable", "acceptable")


def test_what_the_store_lacks_is_not_registered(tracker, request, folder):
    asked = sweep(request.node.name)
    with pytest.raises(UsageError, match=r"has no run of t000; sweeps/report.py --check sweep delivers it"):
        register(tracker, folder, asked, [record(0)], "judge-of-none")
    assert tracker.client.search_registered_models("name = 'judge-of-none'") == []
