"""Confusion matrices and the scores of each class."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from ikd_ray.analysis.class_scores import class_scores
from ikd_ray.tasks import get_task

MNLI, STSB = get_task("mnli"), get_task("stsb")


def test_scores_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 3, 60), rng.normal(size=(60, 3))
    found, answers = class_scores(MNLI, labels, logits), logits.argmax(1)
    assert found.classes == MNLI.labels
    assert list(found.support) == list(np.bincount(labels))
    assert found.confusion[0, 2] == ((labels == 0) & (answers == 2)).sum()
    assert found.shares.sum(axis=1) == pytest.approx([1, 1, 1])
    for title, score in (("precision", precision_score), ("recall", recall_score), ("F1", f1_score)):
        assert list(found.scores[title]) == list(score(labels, answers, average=None))


def test_what_is_not_defined_is_nan():
    """The first class is never answered, the last one never asked for."""
    found = class_scores(MNLI, np.array([0, 0, 1]), np.eye(3)[[1, 1, 1]])
    precision, recall, _ = (found.scores[title] for title in ("precision", "recall", "F1"))
    assert [math.isnan(value) for value in precision] == [True, False, True]
    assert [math.isnan(value) for value in recall] == [False, False, True]
    assert found.scores["F1"][0] == 0
    assert found.confusion.shape == (3, 3)


def test_the_most_frequent_confusions_come_first():
    labels, answers = np.array([0, 0, 0, 1, 2, 2, 2, 2]), [1, 1, 0, 2, 0, 0, 0, 2]
    found = class_scores(MNLI, labels, np.eye(3)[answers])
    names = MNLI.labels
    expected = [(names[2], names[0], 3), (names[0], names[1], 2), (names[1], names[2], 1)]
    assert found.most_confused(10) == expected
    assert found.most_confused(2) == expected[:2]


def test_scores_are_compared_in_ranges_of_the_gold_score():
    gold, answers = np.array([0.0, 0.5, 2.5, 5.0]), np.array([0.5, 0.0, 4.5, 7.0])
    found = class_scores(STSB, gold, answers[:, None])
    assert found.classes == ("0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5")
    assert list(found.support) == [2, 0, 1, 0, 1]
    assert found.confusion[2, 4] == found.confusion[4, 4] == 1  # outside: the nearest one
    assert found.scores["mean error"] == pytest.approx([0, math.nan, 2, math.nan, 2], nan_ok=True)
    assert found.scores["mean absolute error"] == pytest.approx([0.5, math.nan, 2, math.nan, 2], nan_ok=True)
