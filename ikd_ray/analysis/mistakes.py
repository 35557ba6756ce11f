"""Misclassified dev examples, the most confident first; for regression, the largest errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from ikd_ray.formatting import clean, number
from ikd_ray.tasks import Task


@dataclass(frozen=True)
class Answer:
    """A model's answer to an example.

    Attributes:
        text: the class, or the score in the task's units.
        confidence: the probability that the model gives to the class; of a score, its distance from the gold score.
        is_right: whether it is the gold label; None for scores, which are near or far.
    """

    text: str
    confidence: float
    is_right: bool | None


@dataclass(frozen=True)
class Mistake:
    """A dev example, its gold label, and the answers of student and teacher. `row` is its position, from 0."""

    row: int
    gold: str
    student: Answer
    teacher: Answer


@dataclass(frozen=True)
class Mistakes:
    """A student's surest mistakes, and the numbers of all of its mistakes and of all examples."""

    surest: tuple[Mistake, ...]
    total: int
    examples: int


def find_mistakes(
    task: Task, labels: np.ndarray, student: np.ndarray, teacher: np.ndarray, most: int
) -> Mistakes:
    """Return a student's wrong answers, those with the highest probability first; of scores the largest errors.

    Args:
        task: the task.
        labels: (n,) class indices, or scores as models train on them.
        student: (n, num_labels) logits.
        teacher: (n, num_labels) logits.
        most: number of mistakes to return. Of equally sure ones those that come first in the data are taken.
    """
    if task.is_regression:
        gold = task.unscale_scores(labels)
        models = [_scores(task, gold, logits) for logits in (student, teacher)]
        wrong, names = np.arange(len(labels)), [number(float(value)) for value in gold]
    else:
        models = [_classes(task, labels, logits) for logits in (student, teacher)]
        wrong = np.flatnonzero(student.argmax(axis=1) != labels)
        names = [clean(task.labels[label]) for label in labels]
    of_student, of_teacher = models
    sureness = np.array([of_student[row].confidence for row in wrong])
    ranked = wrong[np.argsort(-sureness, kind="stable")][:most]
    surest = tuple(Mistake(int(row), names[row], of_student[row], of_teacher[row]) for row in ranked)
    return Mistakes(surest, len(wrong), len(labels))


def _classes(task: Task, labels: np.ndarray, logits: np.ndarray) -> list[Answer]:
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return [
        Answer(clean(task.labels[answer]), float(row[answer]), bool(answer == label))
        for row, answer, label in zip(probabilities, probabilities.argmax(axis=1), labels, strict=True)
    ]


def _scores(task: Task, gold: np.ndarray, logits: np.ndarray) -> list[Answer]:
    answers = task.unscale_scores(logits[:, 0])
    return [
        Answer(number(float(answer)), float(abs(answer - label)), None)
        for answer, label in zip(answers, gold, strict=True)
    ]
