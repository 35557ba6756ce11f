"""Attention of the teacher and of a student, head by head, in one example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.data.batches import Batch, collate
from ikd_ray.data.encoding import encode_texts
from ikd_ray.distill.losses import attention_kl
from ikd_ray.errors import UsageError
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.tasks import Task


@dataclass(frozen=True)
class Example:
    """An example as both models read it."""

    tokens: list[str]
    batch: Batch
    description: str
    gold: str = ""
    row: int | None = None  # position in the dev set, if it is of it


@dataclass(frozen=True)
class LayerAttention:
    """Attention maps of a student layer and of its teacher layer, L the number of tokens."""

    layer: int
    teacher_layer: int
    student: np.ndarray  # (heads, L, L)
    teacher: np.ndarray  # (heads, L, L)
    kl: np.ndarray  # (heads,), divergence of the student's attention from the teacher's, nats


def validate_texts(task: Task, texts: Sequence[str]) -> None:
    """Raise if the texts of `--sentence` are not an example of the task.

    Raises:
        UsageError: there are too few or too many texts, or an empty one.
    """
    need = len(task.text_columns)
    if texts and len(texts) != need:
        how = "a pair: give --sentence twice" if need == 2 else "one sentence: give --sentence once"
        raise UsageError(f"--sentence: an example of {task.name} is {how} (got {len(texts)})")
    if any(not text.strip() for text in texts):
        raise UsageError("--sentence: there is nothing in it; give a text, or leave it out for a dev example")


def example_from_texts(analysis: SweepAnalysis, loader: ModelLoader, texts: Sequence[str]) -> Example:
    """Tokenize one text or a pair, truncated as in training.

    Raises:
        UsageError: the tokenizer returns no tokens for it.
    """
    tokenizer = loader.tokenizer()
    length = analysis.sweep.data["max_length"]
    pair = [texts[1]] if len(texts) > 1 else None
    encoded = encode_texts(tokenizer, [texts[0]], pair, length)
    if not encoded.input_ids[0]:
        raise UsageError(
            "--sentence: the tokenizer returns no tokens for it; give another text, or leave it out for a dev example"
        )
    ids, segments = map(torch.tensor, encoded)
    batch = Batch(np.zeros(1, int), ids, segments, torch.ones_like(ids, dtype=torch.bool), torch.zeros(1))
    return Example(_tokens(tokenizer, encoded.input_ids[0]), batch.to(loader.device), "a given text")


def example_from_dev(analysis: SweepAnalysis, loader: ModelLoader) -> Example:
    """Return the dev example of median length; of several the first."""
    split, task = loader.dev, analysis.task
    median = np.sort(split.lengths)[len(split) // 2]
    row = int(np.flatnonzero(split.lengths == median)[0])
    batch = collate(split, np.array([row]), loader.data.pad_id)
    label = split.labels[row]
    gold = f"{task.unscale_scores(label):.3g}" if task.is_regression else task.labels[int(label)]
    description = f"example {row + 1} of the dev set, which is of median length"
    tokens = _tokens(loader.tokenizer(), batch.input_ids[0].tolist())
    return Example(tokens, batch.to(loader.device), description, gold, row)


def _tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the tokens as text, since byte-level tokenizers store spaces as other characters."""
    names = tokenizer.convert_ids_to_tokens(ids)
    return [clean(tokenizer.convert_tokens_to_string([name])) or clean(name) or "?" for name in names]


@torch.inference_mode()
def compare_attention(
    trial: TrialRecord, loader: ModelLoader, example: Example
) -> tuple[list[LayerAttention], Tensor, Tensor]:
    """Run a student and its teacher on an example.

    Returns:
        The attention of each matched layer, the teacher's logits and the student's logits, both (labels,).

    Raises:
        UnavailableError: a model is missing or damaged.
    """
    layers = range(1, len(trial.layer_map) + 1)
    student = loader.load(loader.student(trial))(example.batch, attention_layers=layers)
    teacher = loader.load(loader.teacher)(example.batch, attention_layers=set(trial.layer_map))
    compared = []
    for layer, teacher_layer in zip(layers, trial.layer_map, strict=True):
        of_student, of_teacher = student.attention[layer], teacher.attention[teacher_layer]
        kl = np.array(
            [
                float(
                    attention_kl(of_student[:, [head]], of_teacher[:, [head]], example.batch.attention_mask)
                )
                for head in range(of_student.shape[1])
            ]
        )
        maps = [attention[0].float().cpu().numpy() for attention in (of_student, of_teacher)]
        kl = np.maximum(kl, 0)  # values below 0 come from rounding
        compared.append(LayerAttention(layer, teacher_layer, maps[0], maps[1], kl))
    return compared, teacher.logits[0].cpu(), student.logits[0].cpu()
