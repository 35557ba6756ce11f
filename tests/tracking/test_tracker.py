"""Runs that a tracker writes to MLflow's own SQLite store."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ikd_ray.distill.teacher import TeacherRecord
from ikd_ray.errors import UsageError
from ikd_ray.tracking.local_store import absolute_uri
from ikd_ray.tracking.tracker import Tracker
from tests.helpers.consistency import metric_history
from tests.helpers.mlflow_sweeps import (
    PARAMS,
    epoch_metrics,
    sweep_record,
    trial_record,
    trial_runs,
)


def log_trials(tracker, *records):
    for record in records:
        tracker.log_trial(record)


def test_trials_are_nested_and_tagged(tracker):
    tracker.start_trial("t000", PARAMS)
    tracker.log_epoch("t000", {"dev/mcc": 0.1}, 1)
    tracker.log_epoch("t000", {"dev/mcc": 0.3}, 2)
    run = trial_runs(tracker)["t000"]
    assert run.info.status == "RUNNING"
    assert run.data.tags["mlflow.parentRunId"] == tracker.parent_run_id
    assert run.data.tags["ikd.kind"] == "trial"
    assert run.data.tags["ikd.data_source"] == "folder"
    assert run.data.params == {key: str(value) for key, value in PARAMS.items()}
    assert metric_history(tracker.client, run, "dev/mcc") == [(1, 0.1), (2, 0.3)]


def test_records_complete_runs_that_the_driver_missed(tracker):
    """One trial ended unheard while it ran, one was never seen, one failed; a repetition changes nothing."""
    tracker.start_trial("t000", PARAMS)
    tracker.log_epoch("t000", epoch_metrics(1, 0.1), 1, at=1001.5)
    for _ in range(2):
        log_trials(tracker, trial_record(0), trial_record(1), trial_record(2, "failed"))
    runs = trial_runs(tracker)
    statuses = {name: run.info.status for name, run in runs.items()}
    assert statuses == {"t000": "FINISHED", "t001": "FINISHED", "t002": "FAILED"}
    for name in ("t000", "t001"):
        assert metric_history(tracker.client, runs[name], "dev/mcc") == [(1, 0.1), (2, 0.2)]
        assert runs[name].data.metrics["student/params"] == 5.0
    assert runs["t002"].data.tags["ikd.reason"] == "loss became nan"


def test_a_trial_that_the_store_has_missed_takes_four_calls(tracker, monkeypatch):
    calls = []

    class Counting:
        def __init__(self, client):
            self._client = client

        def __getattr__(self, name):
            calls.append(name)
            return getattr(self._client, name)

    monkeypatch.setattr(tracker.client, "_client", Counting(tracker.client._client))
    log_trials(tracker, replace(trial_record(0), warnings=["disk full"], precision="bfloat16"))
    assert calls == ["create_run", "log_inputs", "log_batch", "set_terminated"]
    run = trial_runs(tracker)["t000"]
    assert run.data.params["regime"] == "kd"
    assert run.data.tags["ikd.warnings"] == "disk full"
    assert run.data.tags["ikd.precision"] == "bfloat16"
    assert metric_history(tracker.client, run, "dev/mcc") == [(1, 0.1), (2, 0.2)]


def logged_dataset(run):
    """Return the data set and the context of a run's one input."""
    [given] = run.inputs.dataset_inputs
    return given.dataset, {tag.key: tag.value for tag in given.tags}


def test_the_data_are_an_input_of_the_sweep_and_its_trials_once(tracker, uri, request):
    """Also of a run that the store has missed, and after the sweep was resumed."""
    tracker.start_trial("t000", PARAMS)
    for _ in range(2):
        log_trials(tracker, trial_record(0), trial_record(1))
    resumed = Tracker(uri, request.node.name)
    resumed.start_sweep(sweep_record(request.node.name))
    resumed.start_trial("t002", PARAMS)
    runs = [tracker.client.get_run(tracker.parent_run_id), *trial_runs(resumed).values()]
    assert len(runs) == 4
    for run in runs:
        dataset, tags = logged_dataset(run)
        assert (dataset.name, dataset.digest) == ("cola", "f00d")
        assert tags == {"mlflow.data.context": "training"}


@pytest.mark.parametrize(
    ("source", "settings", "kind", "content"),
    [
        ("hub", {}, "hugging_face", {"path": "nyu-mll/glue", "config_name": "cola"}),
        ("folder", {"data_dir": "/home/ann/glue"}, "local", {"uri": "glue"}),
        ("embedded", {}, "code", {"tags": {"mlflow.source.name": "ikd_ray.data.corpus"}}),
    ],
)
def test_the_source_of_the_data_is_one_that_mlflow_reads(uri, request, source, settings, kind, content):
    name = request.node.name
    record = sweep_record(name, source=source, generated=source == "embedded", fingerprint="f" * 64)
    record.settings.update(settings)
    record.data["examples"] = {"train": 8551, "evaluation": 1043, "unlabelled": 0}
    tracker = Tracker(uri, name)
    tracker.start_sweep(record)
    dataset, _ = logged_dataset(tracker.client.get_run(tracker.parent_run_id))
    assert (dataset.digest, dataset.source_type) == ("f" * 36, kind)
    assert json.loads(dataset.profile)["train"] == 8551
    read = mlflow.data.get_source(dataset).to_dict()
    assert {key: read[key] for key in content} == content
    assert "/home/ann" not in str(tracker.client.get_run(tracker.parent_run_id).to_dictionary())


def test_a_resumed_sweep_continues_its_runs(tracker, uri, request):
    """It finds its parent run by the run's id, which old sweeps kept, or by its own."""
    log_trials(tracker, trial_record(0))
    tracker.start_trial("t001", PARAMS)
    tracker.log_epoch("t001", epoch_metrics(1, 0.1), 1)
    before = {name: run.info.run_id for name, run in trial_runs(tracker).items()}
    for run_id in (tracker.parent_run_id, ""):
        resumed = Tracker(uri, request.node.name)
        resumed.start_sweep(sweep_record(request.node.name, run_id))
        assert resumed.parent_run_id == tracker.parent_run_id
        resumed.start_trial("t001", PARAMS)
        for epoch in (1, 2):
            resumed.log_epoch("t001", epoch_metrics(epoch, 0.1 * epoch), epoch)
        runs = trial_runs(resumed)
        assert {name: run.info.run_id for name, run in runs.items()} == before
        assert metric_history(resumed.client, runs["t001"], "dev/mcc") == [(1, 0.1), (2, 0.2)]
        resumed.terminate("KILLED")
        statuses = {name: run.info.status for name, run in trial_runs(resumed).items()}
        assert statuses == {"t000": "FINISHED", "t001": "KILLED"}


def test_of_two_runs_of_a_trial_the_longer_one_stays(tracker):
    """The store created one, and its answer was lost."""
    tracker.start_trial("t000", PARAMS)
    tracker.log_epoch("t000", epoch_metrics(1, 0.1), 1)
    tracker._runs.clear()
    tracker.start_trial("t000", PARAMS)
    tracker.refresh_runs()
    [run] = tracker.find_trial_runs(tracker.parent_run_id)
    assert metric_history(tracker.client, run, "dev/mcc") == [(1, 0.1)]


def test_runs_are_found_on_every_page_of_a_search(tracker, uri, request, monkeypatch):
    log_trials(tracker, *(trial_record(number) for number in range(8)))
    for name in ("t008", "t009"):
        tracker.start_trial(name, PARAMS)
    tracker.terminate("KILLED")
    resumed = Tracker(uri, request.node.name)
    search_runs = resumed.client.search_runs
    monkeypatch.setattr(resumed.client, "search_runs", partial(search_runs, max_results=4))
    resumed.start_sweep(sweep_record(request.node.name))
    log_trials(resumed, *(trial_record(number) for number in range(10)))
    runs = resumed.find_trial_runs(tracker.parent_run_id)
    assert sorted(run.data.tags["ikd.trial"] for run in runs) == [f"t{number:03d}" for number in range(10)]


def test_a_store_that_does_not_answer_gets_no_second_parent_run(tracker, monkeypatch):
    def fail(run_id):
        raise MlflowException("API request failed")

    monkeypatch.setattr(tracker.client, "get_run", fail)
    with pytest.raises(MlflowException):
        tracker.start_sweep(sweep_record("another", tracker.parent_run_id))


def test_a_trial_that_paused_continues_in_its_run(tracker):
    tracker.start_trial("t000", PARAMS, at=1000.0)
    tracker.log_epoch("t000", {"dev/mcc": 0.1}, 1)
    tracker.start_trial("t000", PARAMS, at=1500.0)
    tracker.log_epoch("t000", {"dev/mcc": 0.3}, 2)
    [run] = tracker.find_trial_runs(tracker.parent_run_id)
    assert run.info.start_time == 1_000_000
    assert metric_history(tracker.client, run, "dev/mcc") == [(1, 0.1), (2, 0.3)]


def test_runs_are_tagged_with_reused_trials_and_warnings(tracker):
    for name in ("t001", "t002"):
        tracker.start_trial(name, PARAMS)
    tracker.tag_trial("t001", ["t007"], ["/cache/1: damaged; trained anew"])
    tracker.tag_trial("t001", reused_from=["t007", "t003", "t007"])
    tracker.tag_trial("t001", warnings=["/cache/1: damaged; trained anew", "disk full"])
    tracker.tag_trial("t002")
    log_trials(tracker, replace(trial_record(3), reused_from=["t002", "t001"], warnings=["disk full"]))
    runs = trial_runs(tracker)
    assert runs["t001"].data.tags["ikd.reused_from"] == "t003, t007"
    assert runs["t001"].data.tags["ikd.warnings"] == "/cache/1: damaged; trained anew; disk full"
    assert not {"ikd.reused_from", "ikd.warnings"} & set(runs["t002"].data.tags)
    assert runs["t003"].data.tags["ikd.reused_from"] == "t001, t002"
    assert runs["t003"].data.tags["ikd.warnings"] == "disk full"


def test_tags_name_no_folder_of_the_user(tracker, tmp_path, monkeypatch):
    (tmp_path / "ann" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "ann" / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    tracker.start_trial("t000", PARAMS)
    tracker.tag_trial(
        "t000", warnings=[f"{Path.cwd()}/outputs/cache/1: damaged"], reason=f"{Path.home()}/x: full"
    )
    tags = trial_runs(tracker)["t000"].data.tags
    assert (tags["ikd.warnings"], tags["ikd.reason"]) == ("./outputs/cache/1: damaged", "~/x: full")


def test_long_tags_are_cut_to_what_the_store_takes(tracker):
    tracker.start_trial("t000", PARAMS)
    tracker.tag_trial("t000", [f"t{number:05d}" for number in range(3000)], ["disk full"] * 3000)
    tags = trial_runs(tracker)["t000"].data.tags
    assert tags["ikd.reused_from"].startswith("t00000, t00001, ")
    for name in ("ikd.reused_from", "ikd.warnings"):
        assert len(tags[name]) == 1000
        assert tags[name].endswith("…")


def test_a_finished_sweep_has_its_sums_files_and_status(tracker, request, tmp_path):
    (tmp_path / "trials.csv").write_text("id\n")
    sweep = sweep_record(request.node.name)  # of three trials
    client, parent = tracker.client, tracker.parent_run_id
    tracker.finish_sweep(tmp_path, sweep, [trial_record(0)])
    assert client.get_run(parent).info.status == "KILLED", "it can be resumed"
    tracker.finish_sweep(tmp_path, sweep, [trial_record(number) for number in range(3)])
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.metrics["sharing/classification_epochs"] == 6.0
    assert [file.path for file in client.list_artifacts(parent)] == ["trials.csv"]
    tracker.finish_sweep(tmp_path, sweep, [trial_record(number, "failed") for number in range(3)])
    assert client.get_run(parent).info.status == "FAILED"


def test_a_finished_sweep_has_the_main_numbers_of_its_front(tracker, request, tmp_path):
    objectives = {"student/params": "min", "dev/mcc": "max"}
    sweep = replace(sweep_record(request.node.name), objectives=objectives)
    small, large = trial_record(0), trial_record(1)
    large.metrics.update({"dev/mcc": 0.3, "student/params": 9.0, "student/latency_ms": 7.0})
    tracker.finish_sweep(tmp_path, sweep, [small, large, trial_record(2, "failed")])
    run = tracker.client.get_run(tracker.parent_run_id)
    assert run.data.tags["ikd.champion"] == "t001"
    found = {name: value for name, value in run.data.metrics.items() if not name.startswith(("time", "shar"))}
    assert found == {
        "front/students": 2.0,
        "champion/dev/mcc": 0.3,
        "champion/student/params": 9.0,
        "champion/student/latency_ms": 7.0,
        "teacher/dev/mcc": 0.41,
    }


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("http://ann:secret@host:5000/mlflow", "http://host:5000/mlflow"),
        ("sqlite:////tmp/runs.db", "http://127.0.0.1:5000"),
        ("postgresql://ann@host/runs", "http://127.0.0.1:5000"),
        ("databricks", ""),
    ],
)
def test_a_link_opens_the_students_as_an_experiment_of_model_training(uri, server, monkeypatch):
    tracker = Tracker.__new__(Tracker)
    tracker.uri, tracker.experiment_id = uri, "7"
    page = "#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=ikd-students"
    assert tracker.students_link == (f"{server}/{page}" if server else "")


def test_metrics_on_the_test_set_are_logged_once_when_the_runs_have_ended(tracker, request, tmp_path):
    metrics = {"test/mcc": 0.3}
    record, other = trial_record(0), trial_record(1)
    tested, late = (replace(each, metrics=each.metrics | metrics) for each in (record, other))
    log_trials(tracker, record)
    end = trial_runs(tracker)["t000"].info.end_time
    teacher = TeacherRecord(tmp_path, "MiniLM", request.node.name, {"dev/mcc": 0.4}, {}, [])
    tracker.log_teacher(teacher)
    about = {"name": "MiniLM", "key": teacher.key, "metrics": teacher.metrics | {"test/mcc": 0.5}}
    for _ in range(2):  # the store has seen the first trial to its end, and missed the second one
        tracker.finish_sweep(tmp_path, sweep_record(request.node.name, teacher=about), [tested, late])
    runs = trial_runs(tracker)
    for run in runs.values():
        assert metric_history(tracker.client, run, "test/mcc") == [(2, 0.3)]
        assert metric_history(tracker.client, run, "dev/mcc") == [(1, 0.1), (2, 0.2)]
        assert run.info.status == "FINISHED"
    assert runs["t000"].info.end_time == end
    parent = tracker.client.get_run(tracker.parent_run_id)
    assert parent.data.metrics["teacher/test/mcc"] == 0.5, (
        "the teacher's own run belongs to other sweeps, too"
    )


def test_runs_have_the_times_of_the_events(tracker):
    """Not those of the calls, which may come later."""
    tracker.start_trial("t000", PARAMS, at=1000.0)
    tracker.log_epoch("t000", epoch_metrics(1, 0.1), 1, at=1001.0)
    log_trials(tracker, trial_record(0), trial_record(1))
    runs = trial_runs(tracker)
    assert (runs["t000"].info.start_time, runs["t000"].info.end_time) == (1_000_000, 1_002_500)
    assert (runs["t001"].info.start_time, runs["t001"].info.end_time) == (1_001_500, 1_002_500)
    for name, first in (("t000", 1_001_000), ("t001", 1_001_500)):
        history = tracker.client.get_metric_history(runs[name].info.run_id, "dev/mcc")
        assert [metric.timestamp for metric in history] == [first, 1_002_500]


@pytest.mark.parametrize(("kind", "steps"), [("teacher", [0.4, 0.3, 0.4]), ("assistant", [0.4, 0.3])])
def test_a_teacher_is_logged_once(tracker, kind, steps):
    """Also after a driver was killed while it logged it. A teacher is its best epoch, an assistant its last."""
    history = [{"dev/mcc": 0.4}, {"dev/mcc": 0.3}]
    teacher = TeacherRecord(Path(), "MiniLM", kind, {"dev/mcc": steps[-1]}, {"epochs": 2}, history)
    for status in ("RUNNING", "FINISHED", "FINISHED"):
        tracker.log_teacher(teacher, kind)
        [run] = tracker.client.search_runs([tracker.experiment_id], f"tags.`ikd.kind` = '{kind}'")
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"{kind} MiniLM"
        assert run.data.params == {"epochs": "2"}
        assert metric_history(tracker.client, run, "dev/mcc") == list(enumerate(steps, start=1))
        tracker.client.update_run(run.info.run_id, status=status)


def all_at_once(actions: list[Callable[[], Any]]) -> list[Any]:
    """Call functions at the same moment, each in a thread of its own, and return their results."""
    start = Barrier(len(actions))
    with ThreadPoolExecutor(len(actions)) as pool:
        return [
            future.result() for future in [pool.submit(lambda a=a: (start.wait(), a())[1]) for a in actions]
        ]


@pytest.mark.parametrize("same_machine", [True, False])
def test_sweeps_that_start_at_once_log_their_teacher_once(same_machine, uri, monkeypatch):
    teacher = TeacherRecord(Path(), "MiniLM", "one", {"dev/mcc": 0.4}, {"epochs": 1}, [{"dev/mcc": 0.4}])
    trackers = [Tracker(uri, f"together-{same_machine}") for _ in range(4)]
    for number, tracker in enumerate(trackers):
        tracker.start_sweep(sweep_record(f"sweep-{number}"))
    if not same_machine:
        monkeypatch.setattr("ikd_ray.tracking.tracker.process_lock", nullcontext)
        monkeypatch.setattr(Tracker, "_create_run", create_together(Tracker._create_run, len(trackers)))
    all_at_once([partial(tracker.log_teacher, teacher) for tracker in trackers])
    [run] = trackers[0].client.search_runs([trackers[0].experiment_id], "tags.`ikd.kind` = 'teacher'")
    assert run.info.status == "FINISHED"
    assert metric_history(trackers[0].client, run, "dev/mcc") == [(1, 0.4), (2, 0.4)]


def test_an_older_run_that_appears_late_replaces_a_finished_one(uri, monkeypatch):
    """Another machine logs the teacher wholly between the start time and the creation of this one's run."""
    teacher = TeacherRecord(Path(), "MiniLM", "one", {"dev/mcc": 0.4}, {"epochs": 1}, [{"dev/mcc": 0.4}])
    late, early = (Tracker(uri, "late") for _ in range(2))
    for number, tracker in enumerate((late, early)):
        tracker.start_sweep(sweep_record(f"sweep-{number}"))
    create_run = late._create_run

    def create_late(name: str, tags: dict[str, str]) -> str:
        early.log_teacher(teacher)
        return create_run(name, tags, at=1000.0)

    monkeypatch.setattr("ikd_ray.tracking.tracker.process_lock", nullcontext)
    monkeypatch.setattr(late, "_create_run", create_late)
    late.log_teacher(teacher)
    [run] = late.client.search_runs([late.experiment_id], "tags.`ikd.kind` = 'teacher'")
    assert run.info.start_time == 1_000_000
    assert run.info.status == "FINISHED"
    assert metric_history(late.client, run, "dev/mcc") == [(1, 0.4), (2, 0.4)]


def create_together(create_run: Callable[..., str], number: int) -> Callable[..., str]:
    """Wrap a method that creates a run: nobody creates one before all have seen that there is none."""
    seen = Barrier(number, timeout=60)

    def create(*args: Any) -> str:
        seen.wait()
        return create_run(*args)

    return create


def test_sweeps_that_start_at_once_share_an_experiment(uri):
    for attempt in range(5):
        found = all_at_once([partial(Tracker, uri, f"new-{attempt}")] * 4)
        assert len({tracker.experiment_id for tracker in found}) == 1


def test_a_deleted_experiment_is_a_usage_error(uri):
    tracker = Tracker(uri, "gone")
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UsageError, match=r"ikd-gone is deleted; .* bring it back with: ") as error:
        Tracker(uri, "gone")
    run_advised(error)
    assert Tracker(uri, "gone").experiment_id == tracker.experiment_id


def run_advised(error: pytest.ExceptionInfo) -> None:
    """Run the command of MLflow with which a message ends, in a shell."""
    scripts = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = str(error.value).rpartition(": ")[2]
    done = subprocess.run(command, shell=True, env=os.environ | scripts, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_database_of_another_version_is_to_be_upgraded(tmp_path):
    Tracker(f"sqlite:///{tmp_path}/new.db", "cola")
    with closing(sqlite3.connect(tmp_path / "new.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'other'")
    (tmp_path / "new.db").rename(tmp_path / "a b.db")  # MLflow keeps what it has opened
    with pytest.raises(UsageError) as error:
        Tracker(f"sqlite:///{tmp_path}/a b.db", "cola")
    assert str(error.value).endswith(f"run: mlflow db upgrade 'sqlite:///{tmp_path}/a b.db'")


def test_an_old_folder_of_runs_is_brought_over_as_the_message_says(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    MlflowClient(str(Path("mlruns").absolute())).create_experiment("mine")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    with pytest.raises(UsageError, match="MLflow no longer writes to folders such as mlruns") as error:
        Tracker(None, "cola")
    run_advised(error)
    uri = f"sqlite:///{tmp_path}/a b/mlflow.db"
    assert f"give --tracking-uri '{uri}'" in str(error.value)
    assert Tracker(uri, "cola").client.get_experiment_by_name("mine")


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_an_unavailable_store_is_a_usage_error_without_its_password(monkeypatch, given):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    uri = f"http://ann:secret@127.0.0.1:{port}"
    if given == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UsageError) as error:
        Tracker(uri if given == "argument" else None, "cola")
    source = {"argument": "--tracking-uri", "environment": "MLFLOW_TRACKING_URI"}[given]
    assert str(error.value).startswith(f"{source} http://127.0.0.1:{port}: no MLflow store there")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["argument", "environment", "default"])
def test_a_store_is_the_same_from_any_working_folder(tmp_path, monkeypatch, given):
    here, elsewhere = tmp_path / "a b", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    first = Tracker("sqlite:///runs.db" if given == "argument" else None, "cola")
    monkeypatch.chdir(elsewhere)
    assert Tracker(first.uri, "cola").client.get_experiment(first.experiment_id).name == "ikd-cola"
    name = "mlflow.db" if given == "default" else "runs.db"
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.db")) == [Path("a b", name)]
    assert {path.name for path in tmp_path.iterdir()} == {"a b", "elsewhere"}, "MLflow made another folder"


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///runs.db", "sqlite:///{}/runs.db"),
        ("sqlite:///../runs.db?timeout=9", "sqlite:///{}/../runs.db?timeout=9"),
        ("sqlite+pysqlite:///a%20b.db", "sqlite+pysqlite:///{}/a b.db"),
        ("sqlite:////x/50%25%3F.db", "sqlite:////x/50%25%3F.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("mlruns", "{}/mlruns"),
        ("sqlite:///~/runs.db", "sqlite:///{}/runs.db"),
        ("~/mlruns", "{}/mlruns"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("postgresql://ann@host/runs", "postgresql://ann@host/runs"),
        ("databricks", "databricks"),
    ],
)
def test_relative_paths_in_uris_become_absolute(tmp_path, monkeypatch, uri, absolute):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    expected = absolute.format(tmp_path / "here").replace("here/../", "")
    assert absolute_uri(uri) == expected
    assert absolute_uri(expected) == expected


def test_a_malformed_uri_is_one_line():
    with pytest.raises(UsageError, match=r"^--tracking-uri http://\[::1: not a URI \("):
        absolute_uri("http://[::1")


def test_a_complete_run_is_not_read_again(tracker, monkeypatch):
    log_trials(tracker, trial_record(0))
    monkeypatch.setattr(tracker, "client", None)
    log_trials(tracker, trial_record(0))
