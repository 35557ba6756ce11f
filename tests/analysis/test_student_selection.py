from __future__ import annotations

import pytest

from ikd_ray.analysis.student_selection import Pick, parse_pick, select_students
from ikd_ray.errors import UsageError
from ikd_ray.records import SweepRecord, TrialRecord


def sweep(**objectives: str) -> SweepRecord:
    return SweepRecord(
        "s", "cola", 0, 9, "", "", {}, {}, objectives or {"dev/mcc": "max", "student/params": "min"}
    )


def trial(number: int, value: float | None, params: int, metric: str = "dev/mcc", **fields) -> TrialRecord:
    metrics = {"student/params": params} | ({} if value is None else {metric: value})
    given = {"params": {"regime": "kd"}, "layer_map": [1], "status": "finished", "metrics": metrics} | fields
    return TrialRecord(f"t{number:03}", number, **given)


TRIALS = [
    trial(0, 0.28, 30),
    trial(1, 0.30, 50),
    trial(2, 0.2799, 10),
    trial(3, 0.25, 30),
    trial(4, 0.28, 40),
]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["best"], Pick()),
        (["smallest-within", "0.02"], Pick(within=0.02)),
        (["smallest-within 0.02"], Pick(within=0.02)),
        (["smallest-within=0.02"], Pick(within=0.02)),
        (["smallest-within", "0"], Pick()),
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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["best"], "t001"),
        (["smallest-within", "0.01"], "t001"),
        (["smallest-within", "0.02"], "t000"),  # 0.30 - 0.28 is a little more than 0.02 in binary numbers
        (["smallest-within", "0.03"], "t002"),
        (["smallest-within", "9"], "t002"),
        (["t003"], "t003"),  # off the front
    ],
)
def test_the_picked_student(words, expected):
    assert [student.id for student in select_students(sweep(), TRIALS, parse_pick(words))] == [expected]


def test_without_a_pick_the_front_is_selected():
    assert [student.id for student in select_students(sweep(), TRIALS, None)] == ["t002", "t000", "t001"]


def test_a_metric_to_minimise_is_best_where_it_is_least():
    trials = [trial(0, 0.5, 10, "dev/attention_kl"), trial(1, 0.1, 30, "dev/attention_kl")]
    about = sweep(**{"student/latency_ms": "min", "dev/attention_kl": "min"})
    assert [student.id for student in select_students(about, trials, parse_pick(["best"]))] == ["t001"]
    assert [
        student.id for student in select_students(about, trials, parse_pick(["smallest-within", "0.4"]))
    ] == ["t000"]


def test_of_equals_the_smaller_then_the_better_then_the_earlier_one():
    equal = [trial(0, 0.3, 20), trial(1, 0.3, 10), trial(2, 0.3, 10)]
    assert select_students(sweep(), equal, parse_pick(["best"]))[0].id == "t001"
    near = [trial(0, 0.3, 20), trial(1, 0.28, 10), trial(2, 0.29, 10)]
    assert select_students(sweep(), near, parse_pick(["smallest-within", "0.1"]))[0].id == "t002"


def test_trials_that_failed_or_diverged_are_never_picked():
    trials = [
        trial(0, 0.1, 10),
        trial(1, float("nan"), 5),
        trial(2, None, 5),
        trial(3, 0.9, 5, status="failed", reason="out of memory"),
    ]
    assert select_students(sweep(), trials, parse_pick(["smallest-within", "1"]))[0].id == "t000"
    with pytest.raises(UsageError, match="has failed"):
        select_students(sweep(), trials, parse_pick(["t003"]))
    with pytest.raises(UsageError, match="no such trial"):
        select_students(sweep(), trials, parse_pick(["t009"]))
    with pytest.raises(UsageError, match="finite dev/mcc"):
        select_students(sweep(), trials[1:], parse_pick(["best"]))


def test_a_sweep_without_a_dev_objective_needs_an_id():
    with pytest.raises(UsageError, match="give a trial's id"):
        select_students(sweep(**{"student/params": "min"}), TRIALS, parse_pick(["best"]))
