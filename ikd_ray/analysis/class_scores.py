"""Confusion matrix, precision, recall and F1 of each class; for regression, errors in five ranges of the gold score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from ikd_ray.formatting import clean, number
from ikd_ray.tasks import Task

RANGES = 5  # of the scores of a regression task


@dataclass(frozen=True)
class ClassScores:
    """A model's answers on a split, by class; k is the number of classes, or of ranges of scores.

    Attributes:
        classes: (k,) names.
        confusion: (k, k) number of examples by gold class, the row, and answered class, the column.
        scores: (k,) values by the score's title: precision, recall and F1 of a class, or the mean error and the mean
            absolute error of the examples whose gold score is in a range, in the task's units. A value that is not
            defined is nan: the precision of a class that is never answered, the recall of one without an example.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def support(self) -> np.ndarray:
        """The (k,) numbers of examples whose gold label is the class."""
        return self.confusion.sum(axis=1)

    @property
    def shares(self) -> np.ndarray:
        """`confusion` as shares of each gold class, (k, k); 0 for a class without an example."""
        return self.confusion / np.maximum(self.support, 1)[:, None]

    def most_confused(self, most: int) -> list[tuple[str, str, int]]:
        """Return gold class, answered class and number of examples of the most frequent confusions, at most `most`."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        ranked = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = zip(*np.unravel_index(ranked, wrong.shape), strict=True)
        return [
            (self.classes[gold], self.classes[answer], int(wrong[gold, answer]))
            for gold, answer in pairs
            if wrong[gold, answer]
        ]


def class_scores(task: Task, labels: np.ndarray, logits: np.ndarray) -> ClassScores:
    """Compare a model's answers with the gold labels, class by class.

    Args:
        task: the task, which names the classes or the range of scores.
        labels: (n,) class indices, or scores as models train on them.
        logits: (n, num_labels).
    """
    if task.is_regression:
        return _range_scores(task, task.unscale_scores(labels), task.unscale_scores(logits[:, 0]))
    answers, indices = logits.argmax(axis=1), np.arange(task.num_labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, answers, labels=indices, zero_division=math.nan
    )
    return ClassScores(
        tuple(map(clean, task.labels)),
        confusion_matrix(labels, answers, labels=indices),
        {"precision": precision, "recall": recall, "F1": f1},
    )


def _range_scores(task: Task, gold: np.ndarray, answers: np.ndarray) -> ClassScores:
    """Compare (n,) scores in the task's units; an answer outside the task's range counts in the nearest range."""
    edges = np.linspace(*task.score_range, RANGES + 1)
    rows, columns = (np.digitize(values, edges[1:-1]) for values in (gold, answers))
    confusion = np.zeros((RANGES, RANGES), int)
    np.add.at(confusion, (rows, columns), 1)
    errors = answers - gold
    within = [errors[rows == place] for place in range(RANGES)]
    names = tuple(f"{number(low)} to {number(high)}" for low, high in pairwise(edges.tolist()))
    return ClassScores(
        names,
        confusion,
        {
            "mean error": np.array([_mean(found) for found in within]),
            "mean absolute error": np.array([_mean(np.abs(found)) for found in within]),
        },
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
