"""The examples that a student answers wrongly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ikd_ray.analysis.mistakes import find_mistakes
from ikd_ray.tasks import get_task

COLA, STSB = get_task("cola"), get_task("stsb")


def logits(*probabilities: float) -> np.ndarray:
    """Return logits of two classes, given the probabilities of the second one."""
    second = np.array(probabilities)
    return np.log(np.stack([1 - second, second], axis=1))


def test_the_surest_mistakes_come_first():
    labels = np.array([1, 0, 1, 0, 0])
    student, teacher = logits(0.4, 0.9, 0.9, 0.6, 0.1), logits(0.7, 0.8, 0.1, 0.2, 0.1)
    found = find_mistakes(COLA, labels, student, teacher, 10)
    assert (found.total, found.examples) == (3, 5)
    assert [mistake.row for mistake in found.surest] == [1, 0, 3]
    first = found.surest[0]
    assert first.gold == "unacceptable"
    assert (first.student.text, first.student.is_right) == ("acceptable", False)
    assert first.student.confidence == pytest.approx(0.9)
    assert [mistake.teacher.is_right for mistake in found.surest] == [False, True, True]
    assert find_mistakes(COLA, labels, student, teacher, 2).surest == found.surest[:2]


def test_of_equally_sure_mistakes_the_first_come_first():
    same = logits(*[0.75] * 4)
    found = find_mistakes(COLA, np.zeros(4, int), same, same, 3)
    assert [mistake.row for mistake in found.surest] == [0, 1, 2]


def test_a_student_without_mistakes_has_none():
    answers = logits(0.2, 0.9)
    assert find_mistakes(COLA, np.array([0, 1]), answers, answers, 3).surest == ()


def test_scores_are_ranked_by_their_error_in_the_task_s_units():
    task = replace(STSB, score_range=(0.0, 100.0))
    labels, student, teacher = np.array([1.0, 2.0, 5.0]), np.array([1.5, 4.0, 5.0]), np.array([1.0, 2.5, 0.0])
    found = find_mistakes(task, labels, student[:, None], teacher[:, None], 2)
    assert [(mistake.row, mistake.gold) for mistake in found.surest] == [(1, "40"), (0, "20")]
    assert (found.surest[0].student.text, found.surest[0].student.confidence) == ("80", 40)
    assert found.surest[0].teacher.confidence == 10
    assert found.surest[0].student.is_right is None
    assert found.total == 3
