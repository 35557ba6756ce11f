from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from ikd_ray.errors import UsageError
from ikd_ray.tasks import TASKS, Task, constant_scores_warning, get_task


def make_logits(classes: list[int], num_labels: int = 2) -> np.ndarray:
    return np.eye(num_labels, dtype=np.float32)[classes]


# Class 1 predicted at rows 0, 1, 3; true at rows 0, 1, 2, 4: TP 2, FP 1, FN 2, TN 1.
LABELS = np.array([1, 1, 1, 0, 1, 0])
PREDICTED = [1, 1, 0, 1, 0, 0]


def test_glue_tasks():
    assert sorted(TASKS) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli"]
    for name, task in TASKS.items():
        assert task.name == name
        assert task.metric in task.metrics
        assert len(task.text_columns) == len(task.file_text) in (1, 2)
        assert len(task.file_labels) == len(task.labels)
        assert [split.name for split in task.splits][:2] == ["train", "dev"]
        assert not task.headless or {*task.file_text, task.file_label} <= set(task.headless)
    assert {name: task.num_labels for name, task in TASKS.items() if task.num_labels != 2} == {
        "mnli": 3,
        "stsb": 1,
    }
    assert [name for name, task in TASKS.items() if not task.is_pair] == ["cola", "sst2"]
    assert [name for name, task in TASKS.items() if task.is_regression] == ["stsb"]


def test_unknown_task_is_refused_with_the_known_names():
    with pytest.raises(UsageError, match=r"'mnist' is not known; one of: cola, sst2, .*wnli"):
        get_task("mnist")


OWN = Task("own", ("text",), ("a", "b", "c"), ("macro_f1", "accuracy"), "macro_f1")


@pytest.mark.parametrize(
    ("task", "labels", "logits", "expected"),
    [
        # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 2) / ... = 0
        (TASKS["cola"], LABELS, make_logits(PREDICTED), {"mcc": 0.0}),
        # One error: TP 4, TN 1, FP 1, FN 0: (4 - 0) / sqrt(5 * 4 * 2 * 1)
        (TASKS["cola"], LABELS, make_logits([1, 1, 1, 1, 1, 0]), {"mcc": 4 / math.sqrt(40)}),
        # Precision 2/3, recall 2/4; class 0's F1 would be 2/5.
        (TASKS["mrpc"], LABELS, make_logits(PREDICTED), {"accuracy": 3 / 6, "f1": 4 / 7}),
        # Precision 1 and recall 1/2, then 1/3 and 1, then nothing of class 2.
        (OWN, [0, 0, 1, 2], make_logits([0, 1, 1, 1], 3), {"macro_f1": (2 / 3 + 1 / 2) / 3, "accuracy": 0.5}),
        (TASKS["mnli"], [0, 1, 2, 2], make_logits([0, 1, 2, 1], 3), {"accuracy": 0.75}),
        # Deviations (-1.5, -.5, .5, 1.5) and (-3, -1, -2, 6): 13 / sqrt(5 * 50);
        # ranks 1 3 2 4: 1 - 6 * 2 / (4 * 15)
        (
            TASKS["stsb"],
            np.array([1, 2, 3, 4], np.float32),
            np.array([[1], [3], [2], [10]], np.float32),
            # Errors 0, 1, -1 and 6; standard deviations sqrt(50 / 4) and sqrt(5 / 4).
            {
                "pearson": 13 / math.sqrt(250),
                "spearman": 0.8,
                "rmse": math.sqrt(38 / 4),
                "mae": 2.0,
                "std_ratio": math.sqrt(10),
            },
        ),
    ],
)
def test_scores_are_those_of_the_formulas(task, labels, logits, expected):
    assert task.score(np.array(labels), logits) == pytest.approx(expected)


def test_f1_is_that_of_the_positive_class():
    # Class 0 predicted at rows 2, 4, 5; true at rows 3, 5: precision 1/3, recall 1/2.
    labels, logits = LABELS, make_logits(PREDICTED)
    task = Task("own", ("text",), ("a", "b"), ("f1", "macro_f1", "mcc"), "f1")
    scores, other = (replace(task, positive_index=index).score(labels, logits) for index in (1, 0))
    assert (scores["f1"], other["f1"]) == (pytest.approx(4 / 7), pytest.approx(2 / 5))
    assert {name: scores[name] for name in ("macro_f1", "mcc")} == {
        name: other[name] for name in ("macro_f1", "mcc")
    }
    assert replace(task, positive_index=0).score(np.ones(2, np.int64), make_logits([1, 1]))["f1"] == 0


@pytest.mark.parametrize("name", TASKS)
def test_constant_predictions_have_scores_and_no_warning(name):
    task = get_task(name)
    labels = np.array([0.5, 2, 4], np.float32) if task.is_regression else np.array([1, 0, 0])
    constant = np.zeros((3, task.num_labels), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = task.score(labels, constant)
        nearly = task.score(labels, constant + np.arange(3, dtype=np.float32)[:, None] * 1e-30)
    expected = {"mcc": 0.0, "f1": 0.0, "pearson": 0.0, "spearman": 0.0, "accuracy": pytest.approx(2 / 3)}
    assert {metric: score[metric] for metric in task.metrics} == {
        metric: expected[metric] for metric in task.metrics
    }
    assert score.get("std_ratio", 0) == 0
    assert all(math.isfinite(value) for value in nearly.values())


def test_scores_that_hardly_vary_are_told():
    metrics = {"dev/pearson": 0.9, "dev/std_ratio": 0.031, "dev/rmse": 27.12}
    assert constant_scores_warning(metrics, "its", "give more epochs") == (
        "its scores hardly vary: their standard deviation on dev is 3.1% of the gold scores' (rmse 27.1); "
        "give more epochs"
    )
    assert constant_scores_warning(metrics | {"dev/std_ratio": 0.1}, "its", "") is None
    assert constant_scores_warning({"dev/mcc": 0.0}, "its", "") is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", TASKS)
def test_logits_that_are_not_finite_score_nan(name, bad):
    task = get_task(name)
    logits = np.zeros((2, task.num_labels))
    logits[1, -1] = bad
    assert all(math.isnan(value) for value in task.score(np.array([0, 1]), logits).values())


def test_wrong_shape_of_logits_is_refused():
    with pytest.raises(ValueError, match="logits"):
        get_task("cola").score(np.array([0, 1]), np.zeros((2, 3)))
