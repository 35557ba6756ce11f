"""MLflow's own SQLite store, written as a sweep writes it."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch
from students import student, write_tokenizer

from ikd_ray.errors import UsageError
from ikd_ray.report import records
from ikd_ray.report.records import SweepRecord, TrialRecord
from ikd_ray.report.tracking.gallery import register, show_front
from ikd_ray.report.tracking.tracker import Tracker

PARAMS = {"regime": "kd", "student_layers": 2, "lambda": 0.2}


def epoch(number: int, mcc: float) -> dict[str, float]:
    return {"dev/mcc": mcc, "stage": 1.0, "trained_epochs": float(number - 1), "reused_epochs": 1.0}


def sweep(identity: str, run_id: str = "") -> SweepRecord:
    return SweepRecord(
        name="sweep",
        task="cola",
        seed=0,
        trials=3,
        command="",
        code_version="1",
        data={
            "source": "folder",
            "description": "a [folder]",
            "fingerprint": "f00d",
            "generated": False,
            "max_length": 48,
        },
        teacher={"name": "MiniLM", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}},
        objectives={"dev/mcc": "max"},
        settings={"id": identity, "run_id": run_id, "space": "spaces/space.yaml"},
    )


def record(number: int, status: str = "finished") -> TrialRecord:
    history = [epoch(1, 0.1), epoch(2, 0.2)]
    whole = status == "finished"
    return TrialRecord(
        id=f"t{number:03d}",
        number=number,
        params=PARAMS,
        layer_map=[2, 4],
        status=status,
        metrics=history[-1] | {"student/params": 5.0} if whole else {},
        history=history if whole else [],
        times=[1001.5, 1002.5] if whole else [],
        reason="" if whole else "loss became nan",
    )


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def tracker(uri, request):
    tracker = Tracker(uri, request.node.name)
    tracker.start(sweep(request.node.name))
    return tracker


def settle(tracker, *records):
    for trial in records:
        tracker.settle(trial)


def children(tracker):
    client = tracker.client
    experiment = client.get_experiment_by_name(tracker.experiment).experiment_id
    runs = client.search_runs([experiment], "tags.`ikd.kind` = 'trial'")
    return {run.data.tags["ikd.trial"]: run for run in runs}


def values(tracker, run, metric):
    return [(m.step, m.value) for m in tracker.client.get_metric_history(run.info.run_id, metric)]


def test_trials_are_nested_and_tagged(tracker):
    tracker.trial_started("t000", PARAMS)
    tracker.trial_epoch("t000", {"dev/mcc": 0.1}, 1)
    tracker.trial_epoch("t000", {"dev/mcc": 0.3}, 2)
    run = children(tracker)["t000"]
    assert run.info.status == "RUNNING"
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent
    assert run.data.tags["ikd.data_source"] == "folder"
    assert run.data.params == {key: str(value) for key, value in PARAMS.items()}
    assert values(tracker, run, "dev/mcc") == [(1, 0.1), (2, 0.3)]


def test_what_the_driver_missed_is_filled_in_once(tracker):
    """One trial ended unheard while it ran, one was never seen, one failed; a second look changes nothing."""
    tracker.trial_started("t000", PARAMS)
    tracker.trial_epoch("t000", epoch(1, 0.1), 1, at=1001.5)
    for _ in range(2):
        settle(tracker, record(0), record(1), record(2, "failed"))
    runs = children(tracker)
    assert {name: run.info.status for name, run in runs.items()} == {
        "t000": "FINISHED",
        "t001": "FINISHED",
        "t002": "FAILED",
    }
    for name in ("t000", "t001"):
        assert values(tracker, runs[name], "dev/mcc") == [(1, 0.1), (2, 0.2)]
        assert runs[name].data.metrics["student/params"] == 5.0
    assert runs["t002"].data.tags["ikd.reason"] == "loss became nan"


def test_a_sweep_that_goes_on_does_so_in_its_runs(tracker, uri, request):
    """Also where the id of its own run was not kept: it was killed before it could."""
    settle(tracker, record(0))
    tracker.trial_started("t001", PARAMS)
    tracker.trial_epoch("t001", epoch(1, 0.1), 1)
    before = {name: run.info.run_id for name, run in children(tracker).items()}
    for run_id in (tracker.parent, ""):
        again = Tracker(uri, request.node.name)
        again.start(sweep(request.node.name, run_id))
        assert again.parent == tracker.parent
        again.trial_started("t001", PARAMS)
        for number in (1, 2):
            again.trial_epoch("t001", epoch(number, 0.1 * number), number)
        runs = children(again)
        assert {name: run.info.run_id for name, run in runs.items()} == before
        assert values(again, runs["t001"], "dev/mcc") == [(1, 0.1), (2, 0.2)]
        again.finish("KILLED")
        assert {name: run.info.status for name, run in children(again).items()} == {
            "t000": "FINISHED",
            "t001": "KILLED",
        }


def test_of_a_run_made_twice_the_one_with_more_stays(tracker):
    """The store made one, and its answer was lost."""
    tracker.trial_started("t000", PARAMS)
    tracker.trial_epoch("t000", epoch(1, 0.1), 1)
    tracker._runs.clear()
    tracker.trial_started("t000", PARAMS)
    tracker.take_stock()
    [run] = tracker.search(f"tags.`mlflow.parentRunId` = '{tracker.parent}'")
    assert values(tracker, run, "dev/mcc") == [(1, 0.1)]


def test_a_sweep_of_several_pages_goes_on_without_a_run_twice(tracker, uri, request, monkeypatch):
    settle(tracker, *(record(number) for number in range(8)))
    for name in ("t008", "t009"):
        tracker.trial_started(name, PARAMS)
    tracker.finish("KILLED")
    again = Tracker(uri, request.node.name)
    search_runs = again.client.search_runs
    monkeypatch.setattr(again.client, "search_runs", partial(search_runs, max_results=4))
    again.start(sweep(request.node.name))
    settle(again, *(record(number) for number in range(10)))
    runs = list(again.search(f"tags.`mlflow.parentRunId` = '{tracker.parent}'"))
    assert sorted(run.data.tags["ikd.trial"] for run in runs) == [f"t{number:03d}" for number in range(10)]


def test_a_store_that_does_not_answer_is_no_store_without_the_run(tracker, monkeypatch):
    """Or the sweep would begin a second one in it."""
    from mlflow.exceptions import MlflowException

    def away(run_id):
        raise MlflowException("API request failed")

    monkeypatch.setattr(tracker.client, "get_run", away)
    with pytest.raises(MlflowException):
        tracker.start(sweep("another", tracker.parent))


def test_a_trial_that_starts_again_goes_on_in_its_run(tracker):
    """It waited for another trial's epochs, and had ended for Ray Tune alone."""
    tracker.trial_started("t000", PARAMS, at=1000.0)
    tracker.trial_epoch("t000", {"dev/mcc": 0.1}, 1)
    tracker.trial_started("t000", PARAMS, at=1500.0)
    tracker.trial_epoch("t000", {"dev/mcc": 0.3}, 2)
    [run] = tracker.search(f"tags.`mlflow.parentRunId` = '{tracker.parent}'")
    assert run.info.start_time == 1_000_000
    assert values(tracker, run, "dev/mcc") == [(1, 0.1), (2, 0.3)]


def test_a_run_says_whose_epochs_it_has_and_what_went_wrong(tracker):
    for name in ("t001", "t002"):
        tracker.trial_started(name, PARAMS)
    tracker.trial_reused("t001", ["t007"])
    tracker.trial_reused("t001", ["t007", "t003", "t007"])
    tracker.trial_warned("t001", ["/cache/1: damaged; trained anew"])
    tracker.trial_warned("t001", ["/cache/1: damaged; trained anew", "disk full"])
    tracker.trial_reused("t002", [])
    tracker.trial_warned("t002", [])
    runs = children(tracker)
    assert runs["t001"].data.tags["ikd.reused_from"] == "t003, t007"
    assert runs["t001"].data.tags["ikd.warnings"] == "/cache/1: damaged; trained anew; disk full"
    assert not {"ikd.reused_from", "ikd.warnings"} & set(runs["t002"].data.tags)


def test_tags_fit_the_store_however_much_there_is_to_say(tracker):
    tracker.trial_started("t000", PARAMS)
    tracker.trial_reused("t000", [f"t{number:05d}" for number in range(3000)])
    tracker.trial_warned("t000", ["disk full"] * 3000)
    tags = children(tracker)["t000"].data.tags
    assert tags["ikd.reused_from"].startswith("t00000, t00001, ")
    for name in ("ikd.reused_from", "ikd.warnings"):
        assert len(tags[name]) == 1000
        assert tags[name].endswith("…")


def test_a_run_filled_in_later_has_its_tags_too(tracker):
    reused = replace(record(0), reused_from=["t002", "t001"], warnings=["disk full"])
    settle(tracker, reused, record(1))
    runs = children(tracker)
    assert runs["t000"].data.tags["ikd.reused_from"] == "t001, t002"
    assert runs["t000"].data.tags["ikd.warnings"] == "disk full"
    assert not {"ikd.reused_from", "ikd.warnings"} & set(runs["t001"].data.tags)


def test_a_sweep_is_concluded_with_what_all_of_it_came_to(tracker, request, tmp_path):
    (tmp_path / "trials.csv").write_text("id\n")
    asked = sweep(request.node.name)  # for three trials
    tracker.conclude(tmp_path, asked, [record(0)])
    assert tracker.client.get_run(tracker.parent).info.status == "KILLED", "it can go on"
    tracker.conclude(tmp_path, asked, [record(number) for number in range(3)])
    run = tracker.client.get_run(tracker.parent)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["sharing/classification_epochs"] == 6.0
    assert [file.path for file in tracker.client.list_artifacts(tracker.parent)] == ["trials.csv"]
    tracker.conclude(tmp_path, asked, [record(number, "failed") for number in range(3, 6)])
    assert tracker.client.get_run(tracker.parent).info.status == "FAILED"


@pytest.fixture
def folder(tmp_path, request):
    """A sweep's, with a student in it."""
    write_tokenizer(tmp_path / "cache" / "teachers" / "key")
    records.write_trial(tmp_path / "sweep", record(0), student(2).save_pretrained)
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
    records.write_trial(folder, better, student(2).save_pretrained)
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
    expected = student(2)
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


def test_runs_have_the_times_of_what_happened(tracker):
    """Not those of the writing, which may come later."""
    tracker.trial_started("t000", PARAMS, at=1000.0)
    tracker.trial_epoch("t000", epoch(1, 0.1), 1, at=1001.0)
    settle(tracker, record(0), record(1))
    runs = children(tracker)
    assert (runs["t000"].info.start_time, runs["t000"].info.end_time) == (1_000_000, 1_002_500)
    assert (runs["t001"].info.start_time, runs["t001"].info.end_time) == (1_001_500, 1_002_500)
    for name, first in (("t000", 1_001_000), ("t001", 1_001_500)):
        history = tracker.client.get_metric_history(runs[name].info.run_id, "dev/mcc")
        assert [metric.timestamp for metric in history] == [first, 1_002_500]


def test_a_teacher_is_recorded_once(tracker):
    """Also where a killed driver has told half of it."""
    client = tracker.client
    experiment = client.get_experiment_by_name(tracker.experiment).experiment_id
    told = "MiniLM", "key", {"epochs": 2}, [{"dev/mcc": 0.4}, {"dev/mcc": 0.3}], {"dev/mcc": 0.4}
    for status in ("RUNNING", "FINISHED", "FINISHED"):
        tracker.teacher(*told)
        [run] = client.search_runs([experiment], "tags.`ikd.kind` = 'teacher'")
        assert run.info.status == "FINISHED"
        assert values(tracker, run, "dev/mcc") == [(1, 0.4), (2, 0.3), (3, 0.4)]
        client.update_run(run.info.run_id, status=status)


def test_a_deleted_experiment_is_a_usage_error(uri):
    tracker = Tracker(uri, "gone")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(
        UsageError, match="ikd-gone is deleted; bring it back with 'mlflow experiments restore"
    ):
        Tracker(uri, "gone")


def test_no_store_there_is_a_usage_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UsageError) as error:
        Tracker(f"http://ann:secret@127.0.0.1:{port}", "cola")
    assert f"http://127.0.0.1:{port}: no MLflow store there" in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_whole_is_not_looked_up_again(tracker, monkeypatch):
    """A thousand runs are not read back to find that nothing is missing."""
    settle(tracker, record(0))
    monkeypatch.setattr(tracker, "client", None)
    settle(tracker, record(0))


def test_students_are_versions_of_a_registered_model(tracker, request, folder):
    asked, trials = sweep(request.node.name), [record(0), record(1)]
    records.write_trial(folder, record(1), student(2).save_pretrained)
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
