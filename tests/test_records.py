"""A sweep's records on disk."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ikd_ray import records
from ikd_ray.data.task_file import load_task
from ikd_ray.errors import UsageError
from ikd_ray.records import TrialRecord
from ikd_ray.storage import store
from tests.helpers.sample_records import sweep_record

TRIAL = TrialRecord("t003", 3, {"regime": "kd", "student_layers": 2}, [2, 4], "finished", {"dev/mcc": 0.1})


def test_a_record_is_read_as_it_was_written(tmp_path):
    trial = replace(TRIAL, history=[{"dev/mcc": 0.1}], times=[1.5], method="KD", retrained=True, seeds=3)
    records.write_trial(tmp_path, trial)
    assert records.read_trials(tmp_path) == [trial]


def test_the_keys_and_values_of_trial_json_stay(tmp_path):
    records.write_trial(tmp_path, replace(TRIAL, metrics={"dev/mcc": math.nan, "student/params": 5}))
    content = json.loads((tmp_path / "trials" / "t003" / "trial.json").read_text())
    assert list(content) == [
        *("id", "number", "params", "layer_map", "status", "metrics", "history", "times", "reason", "died"),
        *("duration_s", "reused_from", "warnings", "precision", "method", "again", "seeds"),
    ]
    assert content["again"] is False
    assert math.isnan(content["metrics"]["dev/mcc"])
    assert isinstance(content["metrics"]["student/params"], int)
    assert math.isnan(records.read_trial(tmp_path, "t003").metrics["dev/mcc"])


def test_metrics_on_the_test_set_are_added_to_the_record_that_they_are_of(tmp_path):
    trials = [replace(TRIAL, id=f"t{number:03}", number=number, times=[1.5]) for number in range(3)]
    for trial in trials:
        records.write_trial(tmp_path, trial)
    content = records.trial_folder(tmp_path, "t000") / "trial.json"
    before = content.read_bytes()
    tested = [replace(t, metrics=t.metrics | {"test/mcc": 0.1 * t.number}) for t in trials[:2]]
    records.write_test_metrics(tmp_path, [*tested, trials[2]])
    assert records.read_trials(tmp_path) == [*tested, trials[2]]
    assert records.read_trial(tmp_path, "t001") == tested[1]
    assert records.load_intact_trials(tmp_path) == ([*tested, trials[2]], [])
    assert content.read_bytes() == before, "a trial's folder does not change"
    path = tmp_path / "test.json"
    assert json.loads(path.read_text())["t001"] == {"ended": 1.5, "metrics": {"test/mcc": 0.1}}
    store.discard(tmp_path / "trials" / "t001")  # damaged, say, and made again
    again = replace(trials[1], times=[2.5])
    records.write_trial(tmp_path, again)
    assert records.read_trials(tmp_path) == [tested[0], again, trials[2]]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"t003": {"ended": 0}}', '{"t003": {"ended": 0, "metrics": {"a": "b"}}}']
)
def test_a_damaged_file_of_test_metrics_counts_as_missing(tmp_path, content):
    records.write_trial(tmp_path, TRIAL)
    (tmp_path / "test.json").write_text(content)
    assert records.read_trials(tmp_path) == [TRIAL]
    (tmp_path / "test.json").write_text(
        '{"t003": {"ended": 0, "metrics": {"dev/mcc": 0.9, "test/mcc": 0.2}}}'
    )
    assert records.read_trial(tmp_path, "t003").metrics == {"dev/mcc": 0.1, "test/mcc": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"metrics": {"dev/mcc": "0.1"}}, "metrics.dev/mcc: "), ({"id": "t004"}, "id: it is 't004'")],
)
def test_a_record_with_wrong_values_is_refused(tmp_path, change, message):
    records.write_trial(tmp_path, TRIAL)
    path = tmp_path / "trials" / "t003" / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=message) as error:
        records.read_trial(tmp_path, "t003")
    assert str(error.value).startswith(f"{path}: cannot be read (")
    assert records.load_intact_trials(tmp_path) == ([], [tmp_path / "damaged" / "t003"])


def test_pending_trials_are_counted_within_the_sweep():
    ended = [replace(TRIAL, id=f"t{number:03}", number=number) for number in (0, 1, 3)]
    assert not sweep_record(trials=3).is_complete(ended)
    assert sweep_record(trials=2).is_complete(ended)
    assert sweep_record(trials=8).count(3) == "3 of 8 trials"


def test_a_trial_that_died_has_ended_and_is_left_to_resume():
    ended = [replace(TRIAL, number=0), replace(TRIAL, number=1, status="failed", died=True)]
    sweep = sweep_record(trials=2)
    assert sweep.is_complete(ended)
    assert sweep.has_trials_left(ended)
    assert not sweep.has_trials_left([ended[0], replace(ended[1], died=False)])


def test_time_alone_completes_an_open_ended_sweep():
    sweep = sweep_record(trials=1, settings={"open_ended": True})
    assert not sweep.is_complete([replace(TRIAL, number=0)])
    assert replace(sweep, settings=sweep.settings | {"time_is_up": True}).is_complete([])
    assert (sweep.count(1), sweep.count(2)) == ("1 trial", "2 trials")


def test_a_sweep_of_an_earlier_version_has_its_scores_as_the_tables_do(tmp_path):
    text = "name: mine\ntext: text\nlabel: score\nrange: [0, 100]\nmetric: pearson\n"
    (tmp_path / "task.yaml").write_text(text)
    task = load_task(tmp_path / "task.yaml")
    unscaled = replace(task, training_range=task.score_range)
    for recorded, expected in ((task, (0, 5)), (unscaled, (0, 100))):
        records.write_sweep(tmp_path, sweep_record(task="mine", data={"task": records.task_digest(recorded)}))
        assert records.read_task(tmp_path).training_range == expected
    assert records.read_task(tmp_path).scale_scores(np.array([60.0])).tolist() == [60]
    (tmp_path / "task.yaml").write_text(text.replace("100", "50"))
    records.write_sweep(tmp_path, sweep_record(task="mine", data={"task": records.task_digest(task)}))
    with pytest.raises(UsageError, match="not what the sweep began with"):
        records.read_task(tmp_path)
