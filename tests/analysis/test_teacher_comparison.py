"""How a student compares with its teacher, in numbers and in words."""

from __future__ import annotations

import math

import pytest

from ikd_ray.analysis.teacher_comparison import compare_with_teacher
from tests.helpers.sample_records import sweep_record, trial_record

SIZES = {"student/params": 22_700_000, "student/size_mb": 90.9, "student/latency_ms": 12.0}
STUDENT = {"student/params": 17_000_000, "student/size_mb": 68.0, "student/latency_ms": 6.0}


def compare(teacher: dict, student: dict, latency_ms: dict | None = None, **objectives: str) -> str:
    sweep = sweep_record(
        teacher={"name": "mini", "layers": 6, "metrics": teacher, "sizes": SIZES},
        objectives=objectives or {"dev/macro_f1": "max", "student/params": "min"},
        settings={"latency_ms": latency_ms or {"3": 6.0, "6": 12.0}},
    )
    return str(compare_with_teacher(trial_record(0, STUDENT | student, layer_map=[2, 4, 6]), sweep))


def test_ratios_and_the_share_of_the_metric():
    text = compare({"dev/macro_f1": 0.8}, {"dev/macro_f1": 0.792})
    assert text == "3 layers: 1.3x smaller, 2.0x faster, 99% of the teacher's macro-F1"


def test_the_dev_metric_is_shown_where_a_held_out_one_is_the_objective():
    teacher, student = {"holdout/mcc": 0.5, "dev/mcc": 0.4}, {"holdout/mcc": 0.5, "dev/mcc": 0.3}
    assert "75% of the teacher's MCC" in compare(teacher, student, **{"holdout/mcc": "max"})


@pytest.mark.parametrize(
    ("teacher", "student"),
    [(-0.1, 0.2), (0.0, 0.2), (0.4, -0.1)],
    ids=["negative", "zero", "student negative"],
)
def test_a_share_of_nothing_is_given_as_two_numbers(teacher, student):
    text = compare({"dev/mcc": teacher}, {"dev/mcc": student}, **{"dev/mcc": "max"})
    assert text.endswith(f"MCC {student:.3f}, the teacher's {teacher:.3f}")


def test_of_a_loss_there_is_no_share():
    text = compare({"dev/nll": 0.5}, {"dev/nll": 0.6}, **{"dev/nll": "min"})
    assert text.endswith("NLL 0.600, the teacher's 0.500")


def test_latencies_that_contradict_depth_are_marked():
    student = {"dev/macro_f1": 0.8}
    assert "2.0x faster" in compare({}, student, {"3": 6.0, "4": 7.0, "6": 12.0})
    assert "~2.0x faster" in compare({}, student, {"3": 6.0, "4": 5.0, "6": 12.0})
    assert "~" not in compare({}, student, {"1": 4.6, "2": 4.5, "3": 6.0, "6": 12.0})
    assert "~2.0x faster" in compare({}, student, {"3": 6.0, "4": 7.0, "6": 18.0})


def test_a_sweep_of_an_earlier_version_has_no_sizes_of_its_teacher():
    sweep = sweep_record()
    found = compare_with_teacher(trial_record(0, STUDENT | {"dev/mcc": 0.205}, layer_map=[6]), sweep)
    assert math.isnan(found.smaller)
    assert str(found) == "1 layer: 50% of the teacher's MCC"
