"""Evaluate models: the task's metrics, and how close a student's layers are to its teacher's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (PyTorch's own convention)
from scipy.stats import pearsonr
from torch import Tensor

from ikd_ray.data.batches import Batch, collate
from ikd_ray.data.tokens import TaskData, TokenSplit
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import cls_vectors
from ikd_ray.distill.frozen_activations import FrozenActivations
from ikd_ray.distill.losses import attention_kl, cls_cosine
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.targets import Targets


@torch.inference_mode()
def predict(model: Encoder, split: TokenSplit, pad_id: int, memory: StepMemory | None = None) -> np.ndarray:
    """Return the logits of a split's examples, in the split's order: (n, labels), float32.

    `memory` bounds the memory of a batch; None: the default.
    """
    logits = np.empty((len(split), model.config.num_labels), np.float32)
    for batch in _batches(model, split, pad_id, memory):
        output = model(batch).logits
        assert output is not None
        logits[batch.rows] = output.float().cpu().numpy()
    return logits


def score(model: Encoder, data: TaskData, memory: StepMemory | None = None) -> dict[str, float]:
    """Return the task's metrics on every evaluation split, e.g. `dev/mcc`, and for classification its `nll`.

    `memory` is as for `predict`.
    """
    metrics: dict[str, float] = {}
    for name, split in data.evaluation_splits.items():
        logits = predict(model, split, data.pad_id, memory)
        scores = data.task.score(split.labels, logits)
        if not data.task.is_regression:
            scores["nll"] = _nll(_log_probabilities(logits), split.labels)
        metrics |= {f"{name}/{key}": value for key, value in scores.items()}
    return metrics


class StudentEvaluator:
    """Evaluates a student while it trains, against its teacher.

    The losses of frozen layers are taken from the evaluation before.

    Args:
        matched: the teacher layer of each student layer, counted from 1.
        frozen: outputs of the student's frozen layers. These layers must not have changed since the evaluation before.
        memory: bound of the memory of a batch; None: the default.
    """

    def __init__(
        self,
        student: Encoder,
        data: TaskData,
        targets: Targets,
        matched: tuple[int, ...],
        frozen: FrozenActivations | None = None,
        memory: StepMemory | None = None,
    ) -> None:
        self._student, self._data, self._targets = student, data, targets
        self._matched, self._frozen, self._memory = matched, frozen, memory
        self._previous: Mapping[str, float] = {}  # metrics of the evaluation before

    @torch.inference_mode()
    def evaluate(self) -> dict[str, float]:
        """Return the student's metrics on each evaluation split, here `dev`.

        These are the task's own, e.g. `dev/mcc`; each matched layer's `dev/layer_<i>/kl` and `dev/layer_<i>/cos`; the
        mean of the attention losses, `dev/attention_kl`; `dev/teacher_agreement`, the share of examples for which
        student and teacher predict the same class, or the Pearson correlation of their scores for regression; and
        for classification `dev/nll` and `dev/teacher_kl` (see `_answer_losses`).
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
            if not self._data.task.is_regression:
                scores |= _answer_losses(logits, teacher_logits, split.labels)
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
        for batch in _batches(self._student, split, self._data.pad_id, self._memory):
            target = self._targets.fetch(name, batch, cls=sources)
            assert target.logits is not None
            teacher_logits[batch.rows] = target.logits.cpu().numpy()
            top = start = self._frozen_output(name, batch) if start_layer else None
            passes = self._student.layer_outputs(
                batch, len(self._student.layers), list(matched), start, start_layer
            )
            # Layer by layer, since the attention of all would take several times the memory.
            taught = self._targets.attention(name, batch, sources)
            for layer, top, attention in passes:
                assert attention is not None
                source, expected = next(taught)
                assert source == matched[layer], "student and teacher run through their layers together"
                kl = attention_kl(attention, expected, batch.attention_mask)
                del attention, expected
                cos = cls_cosine(cls_vectors(top), target.cls[source])
                sums[f"{name}/layer_{layer}/kl"] += kl * len(batch)
                sums[f"{name}/layer_{layer}/cos"] += cos * len(batch)
            assert top is not None
            logits[batch.rows] = self._student.classify(top, batch).float().cpu().numpy()
        return logits, teacher_logits, {key: float(value) / len(split) for key, value in sums.items()}

    def _frozen_output(self, name: str, batch: Batch) -> Tensor | None:
        assert self._frozen is not None
        output = self._frozen.read(name, batch.rows)
        return None if output is None else output.to(batch.input_ids.device)


def _batches(model: Encoder, split: TokenSplit, pad_id: int, memory: StepMemory | None) -> Iterator[Batch]:
    """Put the model in evaluation mode, and yield the split in batches, on the model's device."""
    model.eval()
    device = next(model.parameters()).device
    for rows in (memory or StepMemory()).evaluation_batches(split.lengths, model.config):
        yield collate(split, rows, pad_id).to(device)


def _answer_losses(logits: np.ndarray, teacher_logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how good a student's probabilities are, also where its answers stay the same.

    `nll` is the negative log likelihood of the gold labels, and `teacher_kl` the KL divergence of the student's
    probabilities from the teacher's, KL(teacher || student), at temperature 1; means over examples, in nats.

    Args:
        logits: (n, labels).
        teacher_logits: (n, labels).
        labels: (n,) class indices.
    """
    student, teacher = _log_probabilities(logits), _log_probabilities(teacher_logits)
    kl = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return {"nll": _nll(student, labels), "teacher_kl": float(kl)}


def _log_probabilities(logits: np.ndarray) -> Tensor:
    return F.log_softmax(torch.from_numpy(logits).double(), dim=1)


def _nll(log_probabilities: Tensor, labels: np.ndarray) -> float:
    return float(F.nll_loss(log_probabilities, torch.as_tensor(np.asarray(labels), dtype=torch.long)))


def _agreement(logits: np.ndarray, teacher_logits: np.ndarray) -> float:
    if logits.shape[1] > 1:
        return float((logits.argmax(1) == teacher_logits.argmax(1)).mean())
    if np.ptp(logits) == 0 or np.ptp(teacher_logits) == 0:
        return 0.0  # a constant correlates with nothing
    return float(pearsonr(logits[:, 0], teacher_logits[:, 0]).statistic)
