"""Dev examples that a student and its teacher both answer wrongly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ikd_ray.analysis.model_loader import Model, ModelLoader
from ikd_ray.errors import UnavailableError
from ikd_ray.records import TrialRecord


@dataclass(frozen=True)
class ErrorOverlap:
    """Numbers of examples that a student, its teacher, or both answer wrongly."""

    both: int
    student_only: int
    teacher_only: int

    @property
    def shared_fraction(self) -> float:
        """The fraction of the teacher's errors that the student makes as well; 0 if the teacher makes none."""
        teacher = self.both + self.teacher_only
        return self.both / teacher if teacher else 0.0


def error_overlap(student: np.ndarray, teacher: np.ndarray) -> ErrorOverlap:
    """Count the examples that either model answers wrongly, given whether each does: both (n,) bool."""
    both, student_only, teacher_only = student & teacher, student & ~teacher, ~student & teacher
    return ErrorOverlap(*(int(errors.sum()) for errors in (both, student_only, teacher_only)))


def dev_errors(loader: ModelLoader, model: Model) -> np.ndarray:
    """Return (n,) bool, whether a model answers each dev example wrongly.

    Raises:
        UnavailableError: the model or the tokens are missing or damaged.
    """
    return loader.logits(model).argmax(1) != loader.dev.labels


def shared_fractions(
    loader: ModelLoader, trials: Sequence[TrialRecord]
) -> tuple[dict[str, float], UnavailableError | None]:
    """Return by trial id the fraction of the teacher's dev errors that its student makes as well.

    Returns:
        The fractions, nan if the teacher makes no error; and, if a model is missing or damaged, the error at which the
        computation stopped.
    """
    fractions: dict[str, float] = {}
    try:
        teacher = dev_errors(loader, loader.teacher)
        for trial in trials:
            overlap = error_overlap(dev_errors(loader, loader.student(trial)), teacher)
            fractions[trial.id] = overlap.shared_fraction if teacher.any() else math.nan
    except UnavailableError as error:
        return fractions, error
    return fractions, None
