from __future__ import annotations

from dataclasses import replace

import pytest

from ikd_ray.analysis.student_selection import Pick, parse_pick, select_students
from ikd_ray.errors import UsageError
from ikd_ray.records import TrialRecord
from tests.helpers.sample_records import OBJECTIVES, sweep_record, trial_record


def trial(number: int, value: float | None, params: int, metric: str = "dev/mcc", **fields) -> TrialRecord:
    score = {} if value is None else {metric: value}
    return trial_record(number, {"student/params": params} | score, **fields)


VALUES = ((0.28, 30), (0.30, 50), (0.2799, 10), (0.25, 30), (0.28, 40))
TRIALS = [trial(number, *values) for number, values in enumerate(VALUES)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["best"], Pick()),
        (["smallest-within", "0.02"], Pick(within=0.02)),
        (["smallest-within 0.02"], Pick(within=0.02)),
        (["smallest-within=0.02"], Pick(within=0.02)),
        (["smallest-within", "0"], Pick()),
        (["fastest-within", "0.02"], Pick(within=0.02, by="student/latency_ms")),
        (["fastest-within=0.02"], Pick(within=0.02, by="student/latency_ms")),
        (["recommended"], Pick("recommended")),
        (["t003"], Pick("t003")),
    ],
)
def test_words_of_the_command_line_are_parsed(words, expected):
    assert parse_pick(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "give best"),
        ([" "], "give best"),
        (["best", "0.02"], "'best 0.02'"),
        (["t000 t001"], "'t000 t001'"),
        (["smallest-within"], "needs a number"),
        (["fastest-within", "soon"], "--pick fastest-within: needs a number"),
        (["smallest-within="], "needs a number"),
        (["smallest-within", "0.02", "0.03"], "got '0.02 0.03'"),
        (["smallest-within", "2%"], "got '2%'"),
        (["smallest-within", "-0.1"], "at least 0"),
        (["smallest-within", "nan"], "got 'nan'"),
        (["smallest-within", "inf"], "got 'inf'"),
    ],
)
def test_mistakes_say_what_to_give(words, message):
    with pytest.raises(UsageError, match="--pick") as error:
        parse_pick(words)
    assert message in str(error.value)


def picked(words: str | None, trials: list[TrialRecord] = TRIALS, **objectives: str) -> list[str]:
    """Return the ids of the students that are selected; no words stand for no `--pick`."""
    sweep = sweep_record(objectives=objectives or OBJECTIVES)
    pick = None if words is None else parse_pick(words.split())
    return [student.id for student in select_students(sweep, trials, pick)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (None, ["t002", "t000", "t001"]),  # the front
        ("best", ["t001"]),
        ("smallest-within 0.01", ["t001"]),
        ("smallest-within 0.02", ["t000"]),  # 0.30 - 0.28 is a little more than 0.02 in binary numbers
        ("smallest-within 0.03", ["t002"]),
        ("smallest-within 9", ["t002"]),
        ("t003", ["t003"]),  # off the front
    ],
)
def test_the_selected_students(words, expected):
    assert picked(words) == expected


def test_a_metric_to_minimise_is_best_where_it_is_least():
    trials = [trial(0, 0.5, 10, "dev/attention_kl"), trial(1, 0.1, 30, "dev/attention_kl")]
    objectives = {"student/latency_ms": "min", "dev/attention_kl": "min"}
    assert picked("best", trials, **objectives) == ["t001"]
    assert picked("smallest-within 0.4", trials, **objectives) == ["t000"]


def test_of_equals_the_smaller_then_the_better_then_the_earlier_one():
    assert picked("best", [trial(0, 0.3, 20), trial(1, 0.3, 10), trial(2, 0.3, 10)]) == ["t001"]
    near = [trial(0, 0.3, 20), trial(1, 0.28, 10), trial(2, 0.29, 10)]
    assert picked("smallest-within 0.1", near) == ["t002"]


def test_trials_that_failed_or_diverged_are_never_picked():
    failed = trial(3, 0.9, 5, status="failed", reason="out of memory")
    trials = [trial(0, 0.1, 10), trial(1, float("nan"), 5), trial(2, None, 5), failed]
    assert picked("smallest-within 1", trials) == ["t000"]
    for words, left, message in (
        ("t003", trials, "has failed"),
        ("t009", trials, "no trial of sweep"),
        ("best", trials[1:], "finite dev/mcc"),
    ):
        with pytest.raises(UsageError, match=message):
            picked(words, left)


def test_a_sweep_without_a_dev_objective_needs_an_id():
    with pytest.raises(UsageError, match="give a trial's id"):
        picked("best", **{"student/params": "min"})


def test_the_fastest_student_need_not_be_the_smallest():
    latencies = {0: 9.0, 1: 12.0, 2: 3.0, 3: 4.0, 4: 8.0}
    trials = [
        replace(each, metrics=each.metrics | {"student/latency_ms": latencies[each.number]})
        for each in TRIALS
    ]
    assert picked("smallest-within 0.02", trials) == ["t000"]
    assert picked("fastest-within 0.02", trials) == ["t004"]
    assert picked("fastest-within 0.05", trials) == ["t002"]


def test_the_recommended_student_is_that_of_the_rule():
    sweep = sweep_record()
    sweep.data["truncated"] = {"dev": {"truncated": 0, "examples": 1000}}  # a standard error of 0.029
    assert [student.id for student in select_students(sweep, TRIALS, parse_pick(["recommended"]))] == ["t002"]
    with pytest.raises(UsageError, match="--pick recommended: no student of first has a metric"):
        select_students(sweep_record(objectives={"train/loss": "min"}), TRIALS, parse_pick(["recommended"]))
