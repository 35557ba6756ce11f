"""A sweep's records on their way between machines."""

from __future__ import annotations

import sqlite3

import pytest

from ikd_ray.analysis.evaluation_data import tokens_folder
from ikd_ray.data.task_file import TASK_FILE
from ikd_ray.records import (
    SweepRecord,
    TrialRecord,
    read_sweep,
    read_trials,
    trial_folder,
    write_sweep,
    write_trial,
)
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage
from ikd_ray.sweep.sync import SweepSync, pull_students, pull_sweep, pull_sweeps

METRICS = {"dev/mcc": 0.5}
DATA = {"fingerprint": "f00d", "max_length": 48}


class Machine:
    """One of several that use an output."""

    def __init__(self, uri: str) -> None:
        self.messages: list[str] = []
        self.output = RemoteStorage(uri)
        self.sweep = self.output.folder / "sweep"
        self.sync = SweepSync(self.output, self.sweep, self.messages.append)

    def trial(self, number: int, status: str = "finished", **facts: object) -> str:
        name = f"t{number:03d}"
        record = TrialRecord(name, number, {"regime": "kd"}, [2], status, METRICS, **facts)
        write_trial(self.sweep, record, lambda folder: (folder / "model.safetensors").write_text("weights"))
        return name


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine("a")`: from now on this is that machine."""

    def become(name: str, uri: str = f"file://{tmp_path}/remote") -> Machine:
        monkeypatch.setenv("HOME", str(tmp_path / name))
        return Machine(uri)

    return become


@pytest.fixture
def left(machine):
    """A machine has run a sweep of two trials."""
    first = machine("first")
    names = [first.trial(number) for number in range(2)]
    objectives = {"dev/mcc": "max"}
    write_sweep(
        first.sweep, SweepRecord("sweep", "cola", 0, 2, "", "", DATA, {"key": "k"}, objectives, {"id": "x"})
    )
    (first.sweep / TASK_FILE).write_text("name: own\n")
    with sqlite3.connect(first.sweep / "study.db") as study:
        study.execute("create table told (number)")
    with store.staging_dir(first.output.folder / "cache" / "teachers" / "k") as folder:
        (folder / "tokenizer.json").write_text("{}")
    first.output.upload(first.output.folder / "cache" / "teachers" / "k")
    first.sync.push()
    assert not first.messages
    return names


def test_a_machine_gets_what_it_needs_to_go_on_and_no_student(left, machine):
    second = machine("second")
    pull_sweeps(second.output)
    assert [trial.id for trial in read_trials(second.sweep)] == left
    assert all(store.is_intact(trial_folder(second.sweep, name)) for name in left)
    assert not list(second.output.folder.rglob("model.safetensors"))
    assert (second.sweep / TASK_FILE).read_text() == "name: own\n"
    with sqlite3.connect(second.sweep / "study.db") as study:
        assert study.execute("select name from sqlite_master").fetchall() == [("told",)]


def test_students_come_when_they_are_asked_for(left, machine):
    second = machine("second")
    pull_sweep(second.output, second.sweep)
    pull_students(second.output, second.sweep, read_trials(second.sweep))
    assert (trial_folder(second.sweep, "t000") / "student" / "model.safetensors").read_text() == "weights"
    assert (second.output.folder / "cache" / "teachers" / "k" / "tokenizer.json").exists()


def test_examples_come_where_models_are_to_be_measured(left, machine):
    first = machine("first")
    folder = tokens_folder(first.output.folder, read_sweep(first.sweep))
    with store.staging_dir(folder) as new:
        (new / "dev.ids.npy").write_text("ids")
    first.output.upload(folder)
    second = machine("second")
    pull_sweep(second.output, second.sweep)
    there = tokens_folder(second.output.folder, read_sweep(second.sweep))
    pull_students(second.output, second.sweep, read_trials(second.sweep))
    assert not there.exists()
    pull_students(second.output, second.sweep, read_trials(second.sweep)[:1], tokens=True)
    assert store.is_intact(there)


def test_records_without_students_go_nowhere(left, machine):
    """What a machine has only in part replaces nothing there."""
    second = machine("second")
    pull_sweep(second.output, second.sweep)
    second.sync.push()
    third = machine("third")
    pull_sweep(third.output, third.sweep)
    pull_students(third.output, third.sweep, read_trials(third.sweep))
    assert (trial_folder(third.sweep, "t000") / "student" / "model.safetensors").exists()


def test_a_damaged_record_here_comes_anew(left, machine):
    second = machine("second")
    pull_sweep(second.output, second.sweep)
    (trial_folder(second.sweep, "t000") / "trial.json").write_text("{")
    second.sync.pull()
    assert [trial.id for trial in read_trials(second.sweep)] == left


def test_a_trial_that_is_to_run_again_is_forgotten_everywhere(left, machine):
    second = machine("second")
    pull_sweep(second.output, second.sweep)
    second.sync.delete_trial("t000")
    second.sync.pull()
    assert [trial.id for trial in read_trials(second.sweep)] == ["t001"]
    second.trial(0, reason="anew")
    second.sync.push_trial("t000")
    third = machine("third")
    pull_sweep(third.output, third.sweep)
    assert read_trials(third.sweep)[0].reason == "anew"


def test_where_the_uri_is_away_the_user_is_told_and_it_is_made_up_for(machine, tmp_path):
    (tmp_path / "way").write_text("a file, where a folder is to be")
    first = machine("first", f"file://{tmp_path}/way/remote")
    first.trial(0)
    first.sync.push_trial("t000")
    first.sync.push()
    assert first.messages
    assert all("cannot be reached" in line for line in first.messages)
    (tmp_path / "way").unlink()
    first.sync.push()
    second = machine("second", f"file://{tmp_path}/way/remote")
    pull_sweep(second.output, second.sweep)
    assert [trial.id for trial in read_trials(second.sweep)] == ["t000"]
