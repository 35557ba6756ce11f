"""What a model is worth on the evaluation splits, and how near it is to its teacher inside."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from scipy.stats import pearsonr
from torch import Tensor

from ikd_ray.data.batches import collate, evaluation_plan
from ikd_ray.data.tokens import TaskData, TokenSplit
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.losses import attention_kl, cls_cosine
from ikd_ray.distill.targets import Targets

BATCH = 64


@torch.inference_mode()
def score(model: Encoder, data: TaskData) -> dict[str, float]:
    """The task's metrics on every evaluation split, e.g. `dev/mcc`."""
    metrics = {}
    for name, split in data.evaluation().items():
        logits = np.empty((len(split), model.config.num_labels), np.float32)
        for batch, output in _passes(model, split, data.pad_id, ()):
            logits[batch.rows] = output.logits.float().cpu().numpy()
        metrics |= {f"{name}/{key}": value for key, value in data.task.score(split.labels, logits).items()}
    return metrics


@torch.inference_mode()
def compare(student: Encoder, data: TaskData, targets: Targets, matched: tuple[int, ...]) -> dict[str, float]:
    """`score`, and against the teacher for each evaluation split (here `dev`): each matched layer's
    `dev/layer_<i>/kl` and `dev/layer_<i>/cos`, their mean `dev/attention_kl`, and `dev/teacher_agreement`.

    Agreement is the share of examples where both models choose the same class; for regression the Pearson
    correlation of their scores.

    Args:
        matched: the teacher layer of each student layer, counted from 1.
    """
    metrics = {}
    for name, split in data.evaluation().items():
        logits = np.empty((len(split), student.config.num_labels), np.float32)
        taught = np.empty_like(logits)
        sums: dict[str, Tensor | float] = defaultdict(float)
        for batch, output in _passes(student, split, data.pad_id, range(1, len(matched) + 1)):
            target = targets.fetch(name, batch, cls=matched, attention=matched)
            logits[batch.rows] = output.logits.float().cpu().numpy()
            taught[batch.rows] = target.logits.cpu().numpy()
            for layer, source in enumerate(matched, start=1):
                kl = attention_kl(output.attention[layer], target.attention[source], batch.mask)
                sums[f"layer_{layer}/kl"] += kl * len(batch)
                sums[f"layer_{layer}/cos"] += cls_cosine(output.cls[layer], target.cls[source]) * len(batch)
        inside = {key: float(value) / len(split) for key, value in sums.items()}
        inside["attention_kl"] = sum(v for k, v in inside.items() if k.endswith("/kl")) / len(matched)
        inside["teacher_agreement"] = _agreement(logits, taught)
        inside |= data.task.score(split.labels, logits)
        metrics |= {f"{name}/{key}": value for key, value in inside.items()}
    return metrics


def _passes(model: Encoder, split: TokenSplit, pad_id: int, attend):
    model.eval()
    device = next(model.parameters()).device
    for rows in evaluation_plan(split.lengths, BATCH):
        batch = collate(split, rows, pad_id).to(device)
        yield batch, model(batch, attend=attend)


def _agreement(logits: np.ndarray, taught: np.ndarray) -> float:
    if logits.shape[1] > 1:
        return float((logits.argmax(1) == taught.argmax(1)).mean())
    if np.ptp(logits) == 0 or np.ptp(taught) == 0:
        return 0.0  # a constant correlates with nothing
    return float(pearsonr(logits[:, 0], taught[:, 0]).statistic)
