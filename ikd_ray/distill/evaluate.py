"""Evaluate models: the task's metrics, and how close a student's layers are to its teacher's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from scipy.stats import pearsonr
from torch import Tensor

from ikd_ray.data.batches import Batch, collate, evaluation_batches
from ikd_ray.data.tokens import TaskData, TokenSplit
from ikd_ray.distill.encoder import Encoder, EncoderOutput
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.losses import attention_kl, cls_cosine
from ikd_ray.distill.targets import Targets

BATCH = 64


@torch.inference_mode()
def predict(model: Encoder, split: TokenSplit, pad_id: int) -> np.ndarray:
    """Return the logits of a split's examples, in the split's order: (n, labels), float32."""
    logits = np.empty((len(split), model.config.num_labels), np.float32)
    for batch, output in _forward_passes(model, split, pad_id):
        assert output.logits is not None
        logits[batch.rows] = output.logits.float().cpu().numpy()
    return logits


def score(model: Encoder, data: TaskData) -> dict[str, float]:
    """Return the task's metrics on every evaluation split, e.g. `dev/mcc`."""
    metrics: dict[str, float] = {}
    for name, split in data.evaluation_splits.items():
        logits = predict(model, split, data.pad_id)
        metrics |= {f"{name}/{key}": value for key, value in data.task.score(split.labels, logits).items()}
    return metrics


class StudentEvaluator:
    """Evaluates a student while it trains, against its teacher.

    The losses of frozen layers are taken from the evaluation before.

    Args:
        matched: the teacher layer of each student layer, counted from 1.
        frozen: outputs of the student's frozen layers. These layers must not have changed since the evaluation before.
    """

    def __init__(
        self,
        student: Encoder,
        data: TaskData,
        targets: Targets,
        matched: tuple[int, ...],
        frozen: FrozenActivations | None = None,
    ) -> None:
        self._student, self._data, self._targets = student, data, targets
        self._matched, self._frozen = matched, frozen
        self._previous: Mapping[str, float] = {}  # metrics of the evaluation before

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return the student's metrics on each evaluation split, here `dev`.

        These are the task's own, e.g. `dev/mcc`; each matched layer's `dev/layer_<i>/kl` and `dev/layer_<i>/cos`; the
        mean of the attention losses, `dev/attention_kl`; and `dev/teacher_agreement`, the share of examples for which
        student and teacher predict the same class, or the Pearson correlation of their scores for regression.
        """
        metrics: dict[str, float] = {}
        for name, split in self._data.evaluation_splits.items():
            start_layer = self._frozen.depth if self._frozen and self._previous else 0
            logits, teacher_logits, trained = self._forward(name, split, start_layer)
            before = {key: loss for key, loss in self._previous.items() if key.startswith(f"{name}/layer_")}
            losses = before | trained
            attention = [loss for key, loss in losses.items() if key.endswith("/kl")]
            metrics |= losses
            metrics[f"{name}/attention_kl"] = sum(attention) / len(attention)
            metrics[f"{name}/teacher_agreement"] = _agreement(logits, teacher_logits)
            scores = self._data.task.score(split.labels, logits)
            metrics |= {f"{name}/{key}": value for key, value in scores.items()}
        self._previous = metrics
        return metrics

    def restore(self, metrics: Mapping[str, float]) -> None:
        """Take metrics that any process returned from `evaluate` as those of the evaluation before."""
        self._previous = metrics

    def _forward(
        self, name: str, split: TokenSplit, start_layer: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Return the logits of student and teacher, and the split's mean losses of the layers above `start_layer`."""
        logits = np.empty((len(split), self._student.config.num_labels), np.float32)
        teacher_logits = np.empty_like(logits)
        matched = dict(enumerate(self._matched[start_layer:], start=start_layer + 1))
        sources = list(matched.values())
        sums: dict[str, Tensor | float] = defaultdict(float)
        read = partial(self._frozen.read, name) if self._frozen and start_layer else None
        passes = _forward_passes(self._student, split, self._data.pad_id, list(matched), read, start_layer)
        for batch, output in passes:
            target = self._targets.fetch(name, batch, cls=sources, attention=sources)
            assert output.logits is not None
            assert target.logits is not None
            logits[batch.rows] = output.logits.float().cpu().numpy()
            teacher_logits[batch.rows] = target.logits.cpu().numpy()
            for layer, source in matched.items():
                kl = attention_kl(output.attention[layer], target.attention[source], batch.attention_mask)
                cos = cls_cosine(output.cls[layer], target.cls[source])
                sums[f"{name}/layer_{layer}/kl"] += kl * len(batch)
                sums[f"{name}/layer_{layer}/cos"] += cos * len(batch)
        return logits, teacher_logits, {key: float(value) / len(split) for key, value in sums.items()}


def _forward_passes(
    model: Encoder,
    split: TokenSplit,
    pad_id: int,
    attention_layers: Collection[int] = (),
    read: Callable[[np.ndarray], Tensor | None] | None = None,
    start_layer: int = 0,
) -> Iterator[tuple[Batch, EncoderOutput]]:
    """Yield each batch with the model's output; `read(rows)` returns the stored output of layer `start_layer`."""
    model.eval()
    device = next(model.parameters()).device
    for rows in evaluation_batches(split.lengths, BATCH):
        batch = collate(split, rows, pad_id).to(device)
        start = read(rows) if read else None
        start = None if start is None else start.to(device)
        yield batch, model(batch, attention_layers=attention_layers, start=start, start_layer=start_layer)


def _agreement(logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    if logits.shape[1] > 1:
        return float((logits.argmax(1) == teacher_logits.argmax(1)).mean())
    if np.ptp(logits) == 0 or np.ptp(teacher_logits) == 0:
        return 0.0  # a constant correlates with nothing
    return float(pearsonr(logits[:, 0], teacher_logits[:, 0]).statistic)
