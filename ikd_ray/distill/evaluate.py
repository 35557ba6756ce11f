"""What a model is worth on the evaluation splits, and how near it is to its teacher inside."""

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
    """(n, labels) float32: the logits of every example of a split, in its order."""
    logits = np.empty((len(split), model.config.num_labels), np.float32)
    for batch, output in _passes(model, split, pad_id):
        assert output.logits is not None
        logits[batch.rows] = output.logits.float().cpu().numpy()
    return logits


def score(model: Encoder, data: TaskData) -> dict[str, float]:
    """The task's metrics on every evaluation split, e.g. `dev/mcc`."""
    metrics: dict[str, float] = {}
    for name, split in data.evaluation_splits.items():
        logits = predict(model, split, data.pad_id)
        metrics |= {f"{name}/{key}": value for key, value in data.task.score(split.labels, logits).items()}
    return metrics


class StudentEvaluator:
    """`score`, and against the teacher for each evaluation split (here `dev`): each matched layer's
    `dev/layer_<i>/kl` and `dev/layer_<i>/cos`, their mean `dev/attention_kl`, and `dev/teacher_agreement`.

    Agreement is the share of examples where both models choose the same class; for regression the Pearson
    correlation of their scores. Called again and again while a student trains; what its frozen layers gave
    before is not computed anew.
    """

    def __init__(
        self,
        student: Encoder,
        data: TaskData,
        targets: Targets,
        matched: tuple[int, ...],
        prefix: FrozenActivations | None = None,
    ) -> None:
        """
        Args:
            matched: the teacher layer of each student layer, counted from 1.
            prefix: what the student's frozen layers give. They must be what they were at the call before.
        """
        self._student, self._data, self._targets = student, data, targets
        self._matched, self._prefix = matched, prefix
        self._inside: dict[str, dict[str, float]] = {}  # split -> layer_<i>/<loss> -> value

    def recall(self, metrics: Mapping[str, float]) -> None:
        """Take metrics that a call gave, in whatever process, for those of the call before."""
        for name in self._data.evaluation_splits:
            inside = f"{name}/layer_"
            self._inside[name] = {
                key.removeprefix(f"{name}/"): value
                for key, value in metrics.items()
                if key.startswith(inside)
            }

    @torch.inference_mode()
    def __call__(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, split in self._data.evaluation_splits.items():
            # Without a call before nothing is known of the frozen layers.
            below = self._prefix.depth if self._prefix and name in self._inside else 0
            logits, taught, inside = self._pass(name, split, below)
            inside = self._inside[name] = self._inside.get(name, {}) | inside
            means = [value for key, value in inside.items() if key.endswith("/kl")]
            found = inside | {"attention_kl": sum(means) / len(means)}
            found["teacher_agreement"] = _agreement(logits, taught)
            found |= self._data.task.score(split.labels, logits)
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        return metrics

    def _pass(
        self, name: str, split: TokenSplit, below: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Logits of student and teacher, and the mean internal losses of the layers above `below`."""
        logits = np.empty((len(split), self._student.config.num_labels), np.float32)
        taught = np.empty_like(logits)
        matched = dict(enumerate(self._matched[below:], start=below + 1))
        sources = list(matched.values())
        sums: dict[str, Tensor | float] = defaultdict(float)
        start = partial(self._prefix.read, name) if self._prefix and below else None
        for batch, output in _passes(self._student, split, self._data.pad_id, list(matched), start, below):
            target = self._targets.fetch(name, batch, cls=sources, attention=sources)
            assert output.logits is not None
            assert target.logits is not None
            logits[batch.rows] = output.logits.float().cpu().numpy()
            taught[batch.rows] = target.logits.cpu().numpy()
            for layer, source in matched.items():
                kl = attention_kl(output.attention[layer], target.attention[source], batch.attention_mask)
                sums[f"layer_{layer}/kl"] += kl * len(batch)
                sums[f"layer_{layer}/cos"] += cls_cosine(output.cls[layer], target.cls[source]) * len(batch)
        return logits, taught, {key: float(value) / len(split) for key, value in sums.items()}


def _passes(
    model: Encoder,
    split: TokenSplit,
    pad_id: int,
    attention_layers: Collection[int] = (),
    start: Callable[[np.ndarray], Tensor | None] | None = None,
    below: int = 0,
) -> Iterator[tuple[Batch, EncoderOutput]]:
    """Each batch with the model's output; `start(rows)` is what its first `below` layers give."""
    model.eval()
    device = next(model.parameters()).device
    for rows in evaluation_batches(split.lengths, BATCH):
        batch = collate(split, rows, pad_id).to(device)
        hidden = None
        if start:
            hidden = start(rows)
            assert hidden is not None
            hidden = hidden.to(device)
        yield batch, model(batch, attention_layers=attention_layers, start=hidden, below=below)


def _agreement(logits: np.ndarray, taught: np.ndarray) -> float:
    if logits.shape[1] > 1:
        return float((logits.argmax(1) == taught.argmax(1)).mean())
    if np.ptp(logits) == 0 or np.ptp(taught) == 0:
        return 0.0  # a constant correlates with nothing
    return float(pearsonr(logits[:, 0], taught[:, 0]).statistic)
