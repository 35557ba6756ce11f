"""Match the head that a teacher brings with a task: its outputs with the classes, its scores with the task's range."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.evaluate import predict
from ikd_ray.distill.memory import StepMemory
from ikd_ray.tasks import Task

SAMPLE_SIZE = 1_000
"""Training examples on which a head is measured."""
MIN_GAIN = 0.1
"""Gain in accuracy, beyond chance, above which another order of a head's outputs is worth a sentence."""
MAX_ERROR_RATIO = 1.5
"""Error of a head's scores, over that of their best linear map, above which they are on another scale."""
NEGLIGIBLE_ERROR = 1e-4
"""Error of a head's scores, over the standard deviation of the gold scores, up to which no map is of use."""


def label_order_by_name(names: Sequence[str], task: Task) -> list[int] | None:
    """Return for each class of a task the output of a head that stands for it, or None if the names do not tell.

    They tell where they are the task's names or its tables' labels, in any order; transformers' own LABEL_0, LABEL_1
    are in the task's order.

    Args:
        names: the head's label names, by output.
        task: a classification task.
    """
    given = [_comparable(name) for name in names]
    unnamed = [f"label_{number}" for number in range(len(names))]
    for wanted in (task.labels, task.file_labels, unnamed):
        labels = [_comparable(label) for label in wanted]
        if sorted(given) == sorted(labels) and len(set(given)) == len(given):
            return [given.index(label) for label in labels]
    return None


def align_labels(
    teacher: Encoder, names: Sequence[str], data: TaskData, memory: StepMemory | None = None
) -> str:
    """Put the outputs of a teacher's head in the order of the task's classes, in place.

    Where the names do not tell the order it is the one in which the head is right most often on a sample of train.
    Where they do and another order is right much more often, the order by name is kept, and the sentence says so.

    Args:
        teacher: the model, whose head has an output for each class.
        names: its label names, by output.
        data: the task's examples.
        memory: bound of the memory of a batch; None: the default.

    Returns:
        A sentence for the user, or an empty string where nothing was changed or measured.
    """
    by_name = label_order_by_name(names, data.task)
    counts = _confusion_matrix(teacher, data, memory)
    _, best = linear_sum_assignment(counts, maximize=True)
    order = best.tolist() if by_name is None else by_name
    is_reordered = order != sorted(order)
    if is_reordered:
        _reorder(output_layer(teacher), order)

    def describe(order: Sequence[int]) -> str:
        matched = zip(order, data.task.labels, strict=True)
        return ", ".join(f"output {output} ({names[output]}) is {label}" for output, label in matched)

    right, most_right = _accuracy(counts, order), _accuracy(counts, best)
    if by_name is None:
        return f"{describe(order)} (by its answers: so {right:.0%} of a sample of train are right)"
    # The difference of two shares of n examples has a standard error of at most 1 / sqrt(n).
    if most_right > right + MIN_GAIN + 3 / np.sqrt(counts.sum()):
        return (
            f"{describe(order)} (by name), but so only {right:.0%} of a sample of train are right, and "
            f"{most_right:.0%} if {describe(best)}; correct id2label in its config.json"
        )
    return f"{describe(order)} (by name)" if is_reordered else ""


def rescale_scores(teacher: Encoder, data: TaskData, memory: StepMemory | None = None) -> str:
    """Scale the scores of a teacher's regression head to the range that students train in, in place.

    They are taken to be in the task's units. Where a sample of train shows that they are on another scale, they are
    mapped to the task's by least squares.

    Returns:
        A sentence for the user, or an empty string where the scores are in the task's units.
    """
    task, layer = data.task, output_layer(teacher)
    offset = task.training_range[0] - task.score_range[0] / task.score_scale
    scale_output(layer, 1 / task.score_scale, offset)
    logits, labels = (values.astype(np.float64) for values in _sample(teacher, data, memory))
    predictions = logits[:, 0]
    varies = np.ptp(predictions) > 0 and np.ptp(labels) > 0
    if not varies or not np.corrcoef(predictions, labels)[0, 1] > 0:
        return ""  # no scale helps; its metrics on dev are the warning
    slope, offset = np.polyfit(predictions, labels, 1)
    error, fitted_error = (
        float(np.sqrt(np.mean((values - labels) ** 2)))
        for values in (predictions, slope * predictions + offset)
    )
    if error <= max(MAX_ERROR_RATIO * fitted_error, NEGLIGIBLE_ERROR * float(labels.std())):
        return ""
    scale_output(layer, slope, offset)
    low, high = task.unscale_scores(np.percentile(predictions, [1, 99]))
    least, greatest = task.unscale_scores(np.array([labels.min(), labels.max()]))
    return (
        f"its scores on train were from {low:.3g} to {high:.3g}, the gold scores are from {least:.3g} to "
        f"{greatest:.3g}; they were rescaled, and the RMSE on train fell from {error * task.score_scale:.3g} to "
        f"{fitted_error * task.score_scale:.3g}"
    )


@torch.no_grad()
def scale_output(layer: nn.Linear, factor: float, offset: float) -> None:
    """Change a linear layer so that it returns `factor` times its output, plus `offset`."""
    layer.weight.mul_(factor)
    layer.bias.mul_(factor).add_(offset)


def output_layer(encoder: Encoder) -> nn.Linear:
    """Return the last linear layer of a classifier, whose outputs are the logits."""
    linear = [module for module in encoder.head.modules() if isinstance(module, nn.Linear)]
    return linear[-1]


def _comparable(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _confusion_matrix(teacher: Encoder, data: TaskData, memory: StepMemory | None) -> np.ndarray:
    """Return (labels, outputs): how often each output is the largest, by gold label, on a sample of train."""
    logits, labels = _sample(teacher, data, memory)
    counts = np.zeros((data.task.num_labels,) * 2, np.int64)
    np.add.at(counts, (labels, logits.argmax(1)), 1)
    return counts


def _accuracy(counts: np.ndarray, order: Sequence[int] | np.ndarray) -> float:
    """Return the share of right answers if each label's output is that in `order`."""
    return float(counts[np.arange(len(counts)), order].sum() / counts.sum())


def _sample(teacher: Encoder, data: TaskData, memory: StepMemory | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a teacher's logits for a sample of train, (n, labels), and the gold labels, (n,)."""
    rows = data.train.labelled_rows
    sample = data.train.select(rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE_SIZE).astype(np.int64))])
    return predict(teacher, sample, data.pad_id, memory), sample.labels


@torch.no_grad()
def _reorder(layer: nn.Linear, order: list[int]) -> None:
    layer.weight.copy_(layer.weight[order].clone())
    layer.bias.copy_(layer.bias[order].clone())
