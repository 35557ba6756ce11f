"""Synchronization of a sweep's records between machines."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from ikd_ray.analysis.evaluation_data import tokens_folder
from ikd_ray.data.task_file import TASK_FILE
from ikd_ray.records import (
    TrialRecord,
    read_sweep,
    read_trials,
    trial_folder,
    write_sweep,
    write_test_metrics,
    write_trial,
)
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage
from ikd_ray.sweep.sync import SweepSync, pull_students, pull_sweep, pull_sweeps
from tests.helpers.mlflow_sweeps import sweep_record

METRICS = {"dev/mcc": 0.5}


class Machine:
    """One of several machines with the same output URI."""

    def __init__(self, uri: str) -> None:
        self.messages: list[str] = []
        self.output = RemoteStorage(uri)
        self.sweep = self.output.folder / "sweep"
        self.teacher = self.output.folder / "cache" / "teachers" / "key"
        self.sync = SweepSync(self.output, self.sweep, self.messages.append)

    def trial(self, number: int, status: str = "finished", **facts: object) -> str:
        name = f"t{number:03d}"
        record = TrialRecord(name, number, {"regime": "kd"}, [2], status, METRICS, **facts)
        write_trial(self.sweep, record, lambda folder: (folder / "model.safetensors").write_text("weights"))
        return name

    def pull_records(self) -> list[TrialRecord]:
        pull_sweep(self.output, self.sweep)
        return read_trials(self.sweep)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that turns this process into the machine of a name."""

    def switch(name: str, uri: str = f"file://{tmp_path}/remote") -> Machine:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        return Machine(uri)

    return switch


@pytest.fixture
def trials(machine):
    """Run a sweep of two trials on a first machine, and return the trials' ids."""
    first = machine("first")
    names = [first.trial(number) for number in range(2)]
    write_sweep(first.sweep, sweep_record("x", trials=2))
    (first.sweep / TASK_FILE).write_text("name: own\n")
    with sqlite3.connect(first.sweep / "study.db") as study:
        study.execute("create table trials (number)")
    with store.staging_dir(first.teacher) as folder:
        (folder / "tokenizer.json").write_text("{}")
    first.output.upload(first.teacher)
    first.sync.push()
    assert not first.messages
    return names


def test_records_are_pulled_without_students(trials, machine):
    second = machine("second")
    pull_sweeps(second.output)
    assert [trial.id for trial in read_trials(second.sweep)] == trials
    assert all(store.is_intact(trial_folder(second.sweep, name)) for name in trials)
    assert not list(second.output.folder.rglob("model.safetensors"))
    assert (second.sweep / TASK_FILE).read_text() == "name: own\n"
    with sqlite3.connect(second.sweep / "study.db") as study:
        assert study.execute("select name from sqlite_master").fetchall() == [("trials",)]


def test_students_are_pulled_on_request(trials, machine):
    second = machine("second")
    pull_students(second.output, second.sweep, second.pull_records())
    assert (trial_folder(second.sweep, "t000") / "student" / "model.safetensors").read_text() == "weights"
    assert (second.teacher / "tokenizer.json").exists()


def test_metrics_on_the_test_set_are_pulled_and_kept_when_students_are(trials, machine):
    first = machine("first")
    tested = [replace(trial, metrics=METRICS | {"test/mcc": 0.25}) for trial in read_trials(first.sweep)[:1]]
    write_test_metrics(first.sweep, tested)
    first.sync.push()
    second = machine("second")
    assert [trial.metrics.get("test/mcc") for trial in second.pull_records()] == [0.25, None]
    pull_students(second.output, second.sweep, read_trials(second.sweep))
    assert read_trials(second.sweep)[:1] == tested


def test_tokens_are_pulled_on_request(trials, machine):
    first = machine("first")
    folder = tokens_folder(first.output.folder, read_sweep(first.sweep))
    with store.staging_dir(folder) as new:
        (new / "dev.ids.npy").write_text("ids")
    first.output.upload(folder)
    second = machine("second")
    records = second.pull_records()
    tokens = tokens_folder(second.output.folder, read_sweep(second.sweep))
    pull_students(second.output, second.sweep, records)
    assert not tokens.exists()
    pull_students(second.output, second.sweep, records[:1], tokens=True)
    assert store.is_intact(tokens)


def test_records_without_students_are_not_pushed(trials, machine):
    """Incomplete folders of a machine replace nothing at the URI."""
    second = machine("second")
    second.pull_records()
    second.sync.push()
    third = machine("third")
    pull_students(third.output, third.sweep, third.pull_records())
    assert (trial_folder(third.sweep, "t000") / "student" / "model.safetensors").exists()


def test_a_damaged_record_is_pulled_again(trials, machine):
    second = machine("second")
    second.pull_records()
    (trial_folder(second.sweep, "t000") / "trial.json").write_text("{")
    second.sync.pull()
    assert [trial.id for trial in read_trials(second.sweep)] == trials


def test_a_deleted_trial_is_deleted_everywhere(trials, machine):
    second = machine("second")
    second.pull_records()
    second.sync.delete_trial("t000")
    second.sync.pull()
    assert [trial.id for trial in read_trials(second.sweep)] == ["t001"]
    second.trial(0, reason="anew")
    second.sync.push_trial("t000")
    assert machine("third").pull_records()[0].reason == "anew"


def test_an_outage_is_reported_and_made_up_for(machine, tmp_path):
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    first = machine("first", f"file://{tmp_path}/blocked/remote")
    first.trial(0)
    first.sync.push_trial("t000")
    first.sync.push()
    assert first.messages
    assert all("cannot be reached" in line for line in first.messages)
    (tmp_path / "blocked").unlink()
    first.sync.push()
    second = machine("second", f"file://{tmp_path}/blocked/remote")
    assert [trial.id for trial in second.pull_records()] == ["t000"]
