"""The client of MLflow's store: errors without passwords, and calls that are repeated."""

from __future__ import annotations

import itertools
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import quote

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from requests import HTTPError
from sqlalchemy import event
from sqlalchemy.pool import Pool

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.errors import StoreError
from ikd_ray.records import TrialRecord, read_sweep, read_trials
from ikd_ray.tracking import models, store_client
from ikd_ray.tracking.models import publish_front
from ikd_ray.tracking.reconcile import find_differences, repair
from ikd_ray.tracking.tracker import Tracker
from tests.helpers.mlflow_sweeps import trial_runs
from tests.helpers.sample_sweep import make_sweep

PASSWORD = "Ne7er@Sh0wn"
SECRET_URI = f"http://ann:{quote(PASSWORD, safe='')}@mlflow.example"


class FailingClient:
    """MLflow client whose calls with the given numbers (from 0) fail with an error that shows the password."""

    def __init__(
        self, client, *numbers: int, code: int = TEMPORARILY_UNAVAILABLE, lost: bool = False
    ) -> None:
        self._client, self._numbers, self._code, self._lost = client, numbers, code, lost
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments, **options):
            self.calls.append(name)
            fails = len(self.calls) - 1 in self._numbers
            if fails and not self._lost:
                raise MlflowException(f"GET {SECRET_URI}/{name}: 503, password {PASSWORD}", self._code)
            answer = getattr(self._client, name)(*arguments, **options)
            if fails:
                raise MlflowException(f"{name} failed with exception: {PASSWORD}")
            return answer

        return call


@pytest.fixture
def sweep(tmp_path):
    """Return a small sweep's folder, its record and those of its trials."""
    folder = make_sweep(tmp_path / "outputs", 3)
    record = read_sweep(folder)
    settings = record.settings | {"id": "an-id", "space": "space.yaml"}
    return folder, replace(record, settings=settings), [count_epochs(trial) for trial in read_trials(folder)]


def count_epochs(trial: TrialRecord) -> TrialRecord:
    """Return a trial's record with the counts by which the tracker knows how many epochs a run has."""
    counts = [
        {"trained_epochs": float(n), "reused_epochs": 0.0} for n, _ in enumerate(trial.history, start=1)
    ]
    history = [metrics | count for metrics, count in zip(trial.history, counts, strict=True)]
    return replace(trial, history=history, metrics=trial.metrics | counts[-1])


@pytest.fixture
def open_tracker(uri, request, tmp_path, monkeypatch):
    """`open_tracker(...)`: a tracker with an experiment of its own, whose client fails as `FailingClient` does."""
    monkeypatch.chdir(tmp_path)  # a new experiment's artifacts are below the working directory
    monkeypatch.setattr(store_client, "FIRST_RETRY_S", 0.001)
    number = itertools.count()

    def save_quickly(
        exported: Path, saved: Path, name: str, texts: object, model_id: str, run_id: str
    ) -> None:
        saved.mkdir()
        (saved / "MLmodel").write_text(f"model_id: {model_id}\n")

    monkeypatch.setattr(models, "_save_model", save_quickly)

    def make(*numbers: int, **options) -> Tracker:
        tracker = Tracker(uri, f"{request.node.name}-{next(number)}")
        tracker.uri = tracker.client._uri = SECRET_URI
        tracker.client._client = FailingClient(tracker.client._client, *numbers, **options)
        return tracker

    return make


def deliver(tracker: Tracker, folder, sweep, trials) -> None:
    """Do everything that the end of a sweep and `--check` do with a store."""
    tracker.start_sweep(sweep)
    tracker.finish_sweep(folder, sweep, trials)
    publish_front(tracker, folder, sweep, trials)
    repair(tracker, folder, sweep, trials, find_differences(tracker, sweep, trials))


def test_whatever_call_fails_no_password_is_shown(open_tracker, sweep):
    whole = open_tracker()
    deliver(whole, *sweep)
    calls = whole.client._client.calls
    for number in sorted(map(calls.index, set(calls))):  # of each method its first call
        tracker = open_tracker(number, code=INVALID_PARAMETER_VALUE)
        with pytest.raises(StoreError) as error:
            deliver(tracker, *sweep)
        shown = "".join(traceback.format_exception(error.value))
        assert "Ne7er" not in shown
        assert "Sh0wn" not in shown


@pytest.mark.parametrize("lost", [False, True])
def test_a_store_that_fails_now_and_then_gets_everything_once(open_tracker, sweep, lost):
    tracker = open_tracker(*range(0, 10_000, 3), lost=lost)
    deliver(tracker, *sweep)
    _, record, trials = sweep
    tracker.client._client._numbers = ()
    assert not find_differences(tracker, record, trials)
    assert len(trial_runs(tracker)) == len(trials)
    logged = tracker.client.search_logged_models([tracker.experiment_id])
    runs = trial_runs(tracker)
    assert sorted(model.source_run_id for model in logged) == sorted(
        runs[trial.id].info.run_id for trial in pareto_front(trials, record.objectives)
    )


def test_a_call_that_the_store_refuses_is_not_repeated(open_tracker):
    tracker = open_tracker(0, code=INVALID_PARAMETER_VALUE)
    with pytest.raises(StoreError) as error:
        tracker.client.get_run("none")
    assert (error.value.code, error.value.is_transient) == ("INVALID_PARAMETER_VALUE", False)
    assert tracker.client._client.calls == ["get_run"]


def test_patience_ends(open_tracker):
    tracker = open_tracker(*range(1000))
    tracker.client.patience_s = 0.05
    with pytest.raises(StoreError) as error:
        tracker.client.search_experiments()
    assert error.value.is_transient
    assert 2 < len(tracker.client._client.calls) < 60


def test_passwords_of_the_environment_are_hidden(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-of-ann")
    assert "t0ken" not in store_client.redact_error(RuntimeError("401 for t0ken-of-ann"), SECRET_URI)


def test_the_epochs_of_an_ended_trial_are_one_call(open_tracker, sweep):
    tracker = open_tracker()
    deliver(tracker, *sweep)
    calls = tracker.client._client.calls
    # Of each trial its parameters, its epochs and its tags; of the sweep its parameters and its sums; of the
    # front's student the link to its metrics.
    assert calls.count("log_batch") <= 3 * len(sweep[2]) + 4


@pytest.mark.parametrize(("status", "is_transient"), [(503, True), (429, True), (403, False)])
def test_an_artifact_that_an_overloaded_server_refuses_is_sent_again(open_tracker, status, is_transient):
    tracker = open_tracker()
    refused = HTTPError(f"{status} Server Error", response=SimpleNamespace(status_code=status))
    upload = Mock(side_effect=[refused, None])
    tracker.client._client = SimpleNamespace(log_artifact=upload)
    with nullcontext() if is_transient else pytest.raises(StoreError):
        tracker.client.log_artifact("run", "file")
    assert upload.call_count == 1 + is_transient


def test_a_full_database_is_told_in_one_line(tmp_path, capfd):
    client = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "cola").client
    run = client.create_run(client.create_experiment("filled"))

    def limit(connection, *_) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite takes the size that the file has

    def fill() -> None:
        for step in range(1000):
            metrics = [Metric(f"{name}" * 50, 1.0, 0, step) for name in range(100)]
            client.log_batch(run.info.run_id, metrics=metrics)

    event.listen(Pool, "checkout", limit)
    try:
        with pytest.raises(StoreError) as error:
            fill()
    finally:
        event.remove(Pool, "checkout", limit)
    assert "database or disk is full" in str(error.value)
    assert capfd.readouterr() == ("", "")
