"""MLflow's own SQLite store, written as a sweep writes it."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.tracking.tracker import Tracker
from tests.helpers.mlflow_sweeps import PARAMS, children, epoch, record, settle, sweep, values


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
    tracker.conclude(tmp_path, asked, [record(number, "failed") for number in range(3)])
    assert tracker.client.get_run(tracker.parent).info.status == "FAILED"


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
