"""Tasks: their texts, labels and metrics, and the nine tasks of GLUE on the hub and in the official release."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ikd_ray.errors import UsageError

CLASS_METRICS = ("accuracy", "f1", "macro_f1", "mcc")
SCORE_METRICS = ("pearson", "spearman")
METRICS = CLASS_METRICS + SCORE_METRICS
PROBABILITY_METRICS = ("nll", "teacher_kl")  # of classifiers' probabilities, see `distill.evaluate`
ERROR_METRICS = ("rmse", "mae")  # of scores, see `_error_metrics`
STD_RATIO = "std_ratio"  # of scores, beside `ERROR_METRICS`
TRAINING_RANGE = (0.0, 5.0)
"""Range that scores are scaled to while models train: that of STS-B, which learning rates and loss weights are for."""
MIN_STD_RATIO = 0.1
"""Standard deviation of a model's scores, over that of the gold scores, below which its scores hardly vary."""


class SplitNames(NamedTuple):
    """A split's name in this project, its file in the release's folder, and its name on the hub."""

    name: str
    file: str
    hub: str


_TRAIN = SplitNames("train", "train.tsv", "train")
_TRAIN_DEV = (_TRAIN, SplitNames("dev", "dev.tsv", "validation"))


@dataclass(frozen=True)
class Task:
    """A classification or regression task on one text or a pair of texts."""

    name: str
    text_columns: tuple[str, ...]
    """Names of one column, or of two for pairs."""
    labels: tuple[str, ...]
    """Class names in the order of their indices; empty for regression."""
    metrics: tuple[str, ...]
    metric: str
    """The main metric, by which trials are compared; one of `metrics`."""

    file_label: str = "label"
    """Name of the label column in the files."""
    file_labels: tuple[str, ...] = ()
    """Labels as the files write them, in the order of `labels`; empty for regression."""
    score_range: tuple[float, float] = (0.0, 5.0)
    """Smallest and largest gold score of a regression task."""
    training_range: tuple[float, float] = field(default=TRAINING_RANGE, compare=False)
    """Range that gold scores are scaled to while models train."""
    positive_index: int = 1
    """Index of the class that F1 is of."""

    @property
    def title(self) -> str:
        """The task's name in messages."""
        return f"task {self.name}"

    @property
    def identity(self) -> str:
        """All properties that change what is computed, as JSON; part of the data's fingerprint.

        Tasks of equal identity share caches. The places of files and the names of their columns are no part of it.
        """
        # Defaults are left out, so that tasks with them keep their caches.
        scaled = [self.score_range] if self.is_regression and self.score_range != self.training_range else []
        positive = [self.positive_index] if self.positive_index != 1 else []
        return json.dumps(
            [
                self.name,
                len(self.text_columns),
                self.labels,
                self.metrics,
                self.metric,
                *scaled,
                *positive,
            ]
        )

    @property
    def is_regression(self) -> bool:
        """True if labels are scores."""
        return not self.labels

    @property
    def score_scale(self) -> float:
        """The task's units in one unit of the range that scores are trained in."""
        (low, high), (training_low, training_high) = self.score_range, self.training_range
        return (high - low) / (training_high - training_low)

    def scale_scores(self, scores: np.ndarray) -> np.ndarray:
        """Return scores in the task's units as models train on them: in `training_range`, as float32."""
        if self.score_range == self.training_range:
            return scores
        return ((scores - self.score_range[0]) / self.score_scale + self.training_range[0]).astype(np.float32)

    def unscale_scores(self, scores: np.ndarray) -> np.ndarray:
        """Return scores that models train on, or answer, in the task's units."""
        return (scores - self.training_range[0]) * self.score_scale + self.score_range[0]

    @property
    def is_pair(self) -> bool:
        """True if an example has two texts."""
        return len(self.text_columns) == 2

    @property
    def num_labels(self) -> int:
        """Number of the classifier's outputs; 1 for regression."""
        return len(self.labels) or 1

    def score(self, labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """Compute each of `metrics`, and for regression `_error_metrics`.

        F1 is that of the class `positive_index`; macro F1 is the mean F1 of the classes that occur in labels or
        predictions. Correlations and MCC of constant predictions are 0. If any logit is not finite, every metric is
        nan: the argmax of a diverged model would score like a constant guess.

        Args:
            labels: (n,) class indices, or scores for regression; n at least 1. Scores may be scaled if logits are.
            logits: (n, num_labels).
        """
        if logits.shape != (len(labels), self.num_labels):
            raise ValueError(f"logits {logits.shape} for {len(labels)} labels of {self.num_labels} outputs")
        if not np.isfinite(logits).all():
            return dict.fromkeys(
                (*self.metrics, *(ERROR_METRICS if self.is_regression else ())), float("nan")
            )
        predictions = logits[:, 0] if self.is_regression else logits.argmax(axis=1)
        scores = {
            metric: _measure(metric, labels, predictions, self.positive_index) for metric in self.metrics
        }
        return scores | (_error_metrics(self, labels, predictions) if self.is_regression else {})


def _error_metrics(task: Task, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Compute `ERROR_METRICS` and `STD_RATIO`: how far scores are from the gold scores, which correlations do not tell.

    `rmse` is the root of the mean squared error and `mae` the mean absolute error, both in the task's units;
    `std_ratio` is the standard deviation of the predictions over that of the labels; labels that are all the same have
    none.

    Args:
        task: a regression task.
        labels: (n,) gold scores, as `Task.scale_scores` returns them.
        predictions: (n,) scores of a model, in the same range.
    """
    errors = (predictions.astype(np.float64) - labels) * task.score_scale
    metrics = {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}
    if spread := float(np.std(labels.astype(np.float64))):
        metrics[STD_RATIO] = float(np.std(predictions.astype(np.float64))) / spread
    return metrics


def constant_scores_warning(metrics: Mapping[str, float], owner: str, advice: str) -> str | None:
    """Return a warning if a model's scores on dev hardly vary, although a correlation may look good.

    Args:
        metrics: the model's, as `dev/std_ratio`.
        owner: whose scores they are, as the message begins: `its`.
        advice: what the user can do, as the message ends.
    """
    ratio = metrics.get(f"dev/{STD_RATIO}")
    if ratio is None or not ratio < MIN_STD_RATIO:
        return None
    return (
        f"{owner} scores hardly vary: their standard deviation on dev is {ratio:.1%} of the gold scores' "
        f"(rmse {metrics['dev/rmse']:.3g}); {advice}"
    )


def _measure(metric: str, labels: np.ndarray, predictions: np.ndarray, positive_index: int) -> float:
    # Imported late: they take a second, and command lines import this module only to check --task.
    from scipy import stats
    from sklearn import metrics

    with warnings.catch_warnings():
        # Constant predictions are ordinary early in training.
        warnings.simplefilter("ignore")
        if metric == "accuracy":
            return float(metrics.accuracy_score(labels, predictions))
        if metric == "f1":
            return float(metrics.f1_score(labels, predictions, pos_label=positive_index, zero_division=0.0))
        if metric == "macro_f1":
            return float(metrics.f1_score(labels, predictions, average="macro", zero_division=0.0))
        if metric == "mcc":
            return float(metrics.matthews_corrcoef(labels, predictions))
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
        return float(correlate(labels.astype(np.float64), predictions.astype(np.float64)).statistic)


@dataclass(frozen=True)
class GlueTask(Task):
    """A task of GLUE. `name`, `text_columns` and `labels` are those of the hub's data set `nyu-mll/glue`."""

    metrics: tuple[str, ...] = ("accuracy",)
    metric: str = "accuracy"
    file_labels: tuple[str, ...] = ("0", "1")
    folder: str = ""
    file_columns: tuple[str, ...] = ()
    """Names of the text columns in the files, where they are other ones than on the hub."""
    headless: tuple[str, ...] = ()
    """All column names of files without a header; empty where files have one."""
    skips_corrupted: bool = False
    """True if the official files hold broken rows, which are customarily skipped."""
    splits: tuple[SplitNames, ...] = _TRAIN_DEV

    @property
    def file_text(self) -> tuple[str, ...]:
        """Names of the text columns in the files."""
        return self.file_columns or self.text_columns

    @property
    def title(self) -> str:
        """The task's name in messages."""
        return f"GLUE task {self.name}"

    @property
    def identity(self) -> str:
        """The name, which stands for all properties."""
        return self.name


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")

_ALL = (
    GlueTask(
        name="cola",
        folder="CoLA",
        text_columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("mcc",),
        metric="mcc",
        headless=("source", "label", "mark", "sentence"),
    ),
    GlueTask(name="sst2", folder="SST-2", text_columns=("sentence",), labels=("negative", "positive")),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        text_columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        metric="f1",
        file_columns=("#1 String", "#2 String"),
        file_label="Quality",
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        text_columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        metric="f1",
        file_label="is_duplicate",
        skips_corrupted=True,
    ),
    GlueTask(
        name="stsb",
        folder="STS-B",
        text_columns=_PAIR,
        labels=(),
        metrics=("pearson", "spearman"),
        metric="pearson",
        file_label="score",
        file_labels=(),
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        text_columns=("premise", "hypothesis"),
        labels=_NLI,
        file_columns=_PAIR,
        file_label="gold_label",
        file_labels=_NLI,
        splits=(
            _TRAIN,
            SplitNames("dev", "dev_matched.tsv", "validation_matched"),
            SplitNames("dev_mismatched", "dev_mismatched.tsv", "validation_mismatched"),
        ),
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        text_columns=("question", "sentence"),
        labels=_ENTAILMENT,
        file_labels=_ENTAILMENT,
    ),
    GlueTask(name="rte", folder="RTE", text_columns=_PAIR, labels=_ENTAILMENT, file_labels=_ENTAILMENT),
    GlueTask(name="wnli", folder="WNLI", text_columns=_PAIR, labels=("not_entailment", "entailment")),
)

TASKS: dict[str, GlueTask] = {task.name: task for task in _ALL}


def get_task(name: str) -> GlueTask:
    """Return the GLUE task of that name.

    Raises:
        UsageError: there is no such task; the message lists the known ones.
    """
    if name not in TASKS:
        raise UsageError(f"task {name!r} is not known; one of: {', '.join(TASKS)}")
    return TASKS[name]
