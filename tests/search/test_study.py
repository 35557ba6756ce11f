"""The study on disk, in folders of any name, and what it shows in optuna-dashboard."""

from __future__ import annotations

import math

import optuna
import pytest

from ikd_ray.records import STUDY_FILE
from ikd_ray.search.study import (
    EARLIER_NAME,
    Outcome,
    Sample,
    StudyWriter,
    TrialState,
    load_study,
    open_database,
    open_storage,
    rebuild_study,
)

OBJECTIVES = {"dev/mcc": "max", "student/latency_ms": "min"}


@pytest.mark.parametrize("name", ["what?", "a?mode=memory", "50%20x", "a#b&c", "{x}", "a b", "ü", "file:x"])
def test_the_study_is_in_its_folder_whatever_the_name(tmp_path, name):
    sweep = tmp_path / name / "sweep"
    sweep.mkdir(parents=True)
    writer = StudyWriter(sweep, {"dev/mcc": "max"}, [""])
    writer.append("", Sample({}, {}))
    writer.tell(0, Outcome(TrialState.COMPLETE, [0.5]), {})
    assert len(StudyWriter(sweep, {"dev/mcc": "max"}, [""]).read_samples()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [sweep / STUDY_FILE]
    assert len(open_database(sweep / STUDY_FILE).get_all_studies()) == 1


def test_the_study_has_the_sweeps_name_and_names_its_objectives(tmp_path):
    sweep = tmp_path / "cola-24"
    sweep.mkdir()
    StudyWriter(sweep, OBJECTIVES, [""])
    storage = open_database(sweep / STUDY_FILE)
    assert optuna.get_all_study_names(storage) == ["cola-24"]
    assert load_study("cola-24", storage).metric_names == ["dev/mcc", "student/latency_ms"]


def test_an_ended_trial_has_its_metrics_as_attributes(tmp_path):
    writer = StudyWriter(tmp_path, OBJECTIVES, [""])
    metrics = {"dev/mcc": 0.5, "student/latency_ms": 4.0, "dev/attention_kl": 0.3, "dev/teacher_kl": math.nan}
    for _ in range(3):
        writer.append("", Sample({}, {}))
    writer.tell(0, Outcome(TrialState.COMPLETE, [0.5, 4.0]), metrics)
    writer.tell(0, Outcome(TrialState.COMPLETE, [0.6, 4.0]), metrics | {"dev/attention_kl": 9.0})
    writer.tell(1, Outcome(TrialState.FAIL, None), {})
    trials = load_study(tmp_path.name, open_storage(tmp_path)).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "RUNNING"]
    assert trials[0].values == [0.5, 4.0]
    assert [trial.user_attrs for trial in trials] == [{"dev/attention_kl": 0.3}, {}, {}], "no objective"


@pytest.mark.parametrize("name", [EARLIER_NAME, "name-before-it-was-renamed"])
def test_a_study_of_another_name_goes_on(tmp_path, name):
    directions = ["maximize", "minimize"]
    earlier = optuna.create_study(study_name=name, storage=open_storage(tmp_path), directions=directions)
    earlier.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING))
    writer = StudyWriter(tmp_path, OBJECTIVES, [""])
    assert len(writer.read_samples()) == 1
    writer.tell(0, Outcome(TrialState.COMPLETE, [0.5, 4.0]), {"dev/attention_kl": 0.3})
    storage = open_storage(tmp_path)
    assert optuna.get_all_study_names(storage) == [name]
    [trial] = load_study(tmp_path.name, storage).trials
    assert (trial.values, trial.user_attrs) == ([0.5, 4.0], {"dev/attention_kl": 0.3})
    rebuild_study(tmp_path, OBJECTIVES)
    assert optuna.get_all_study_names(open_storage(tmp_path)) == [tmp_path.name]
