"""The plain loop: what one writes first with transformers. It is here to be compared with.

The teacher runs at every step, batches are drawn at random and padded to their longest, every parameter of the
student trains. The losses are the project's own, of all matched layers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ikd_ray.bench import machine
from ikd_ray.bench.inputs import Inputs
from ikd_ray.data.tokens import TokenSplit, open_data
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.fast_layers import use_onednn
from ikd_ray.distill.losses import attention_kl, cls_cosine, hard_label_loss, soft_label_loss
from ikd_ray.distill.student import build_student
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.storage.arrays import RaggedArray

LEARNING_RATE, TEMPERATURE, LAMBDA = 5e-5, 2.0, 0.2


def examples(split: TokenSplit, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The split as tokenizers return it, with the labels."""
    columns = {"input_ids": _lists(split.input_ids), "token_type_ids": _lists(split.token_type_ids)}
    columns = {name: column for name, column in columns.items() if name in tokenizer.model_input_names}
    columns["labels"] = split.labels.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _lists(column: RaggedArray) -> list[list[int]]:
    return [row.tolist() for row in np.split(column.values, column.offsets[1:-1])]


def random_batches(split: TokenSplit, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> DataLoader[Any]:
    """Batches in random order, padded to their longest: dicts of tensors under the models' argument names."""
    pad = DataCollatorWithPadding(tokenizer)
    rows = examples(split, tokenizer)
    # Any sequence is a data set, whatever torch's annotation says.
    return DataLoader(rows, batch_size, shuffle=True, collate_fn=lambda batch: dict(pad(batch)))  # type: ignore[arg-type]


def load_models(folder: Path, student_layers: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The teacher, and a student of copies of its mapped layers, as plain transformers models.

    Both return attention weights, which takes the eager implementation. It returns them after dropout, so
    attention drops nothing out.
    """
    config = AutoConfig.from_pretrained(folder, **NO_REMOTE_CODE)
    for name in ("attention_probs_dropout_prob", "attention_dropout"):  # the latter is DistilBERT's
        if hasattr(config, name):
            setattr(config, name, 0.0)
    teacher = AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, use_safetensors=True, dtype=torch.float32, **NO_REMOTE_CODE
    )
    student = build_student(Encoder(teacher), student_layers, "mapped").model
    for model in (teacher, student):
        model.set_attn_implementation("eager")
        use_onednn(model, False)  # an `Encoder` was around both
    return teacher.eval().requires_grad_(False), student.train()


def losses_of(
    taught: Any, learnt: Any, mask: Tensor, labels: Tensor, matched: tuple[int, ...]
) -> dict[str, Tensor]:
    """Every loss by itself, unweighted.

    Args:
        taught, learnt: the teacher's and the student's outputs with attentions and hidden states.
        mask: (B, L), 1 for tokens and 0 for padding.
        matched: the teacher layer of each student layer, counted from 1.
    """
    losses = {}
    for layer, source in enumerate(matched, start=1):
        attentions = learnt.attentions[layer - 1], taught.attentions[source - 1]
        losses[f"layer_{layer}/kl"] = attention_kl(*attentions, mask)
        hidden = learnt.hidden_states[layer], taught.hidden_states[source]
        losses[f"layer_{layer}/cos"] = cls_cosine(hidden[0][:, 0], hidden[1][:, 0])
    losses["soft"] = soft_label_loss(learnt.logits, taught.logits, TEMPERATURE)
    losses["hard"] = hard_label_loss(learnt.logits, labels)
    return losses


def train_epoch(
    teacher: nn.Module,
    student: nn.Module,
    batches: DataLoader[Any],
    matched: tuple[int, ...],
    optimizer: torch.optim.Optimizer,
) -> float:
    """One epoch of internal distillation; returns the mean loss of its steps."""
    sum_of_losses = torch.zeros(())
    for batch in batches:
        labels = batch.pop("labels")
        with torch.no_grad():
            taught = teacher(**batch, output_attentions=True, output_hidden_states=True)
        learnt = student(**batch, output_attentions=True, output_hidden_states=True)
        losses = losses_of(taught, learnt, batch["attention_mask"], labels, matched)
        loss = sum(losses.values()) - (1 - LAMBDA) * losses["hard"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sum_of_losses += loss.detach()
    return float(sum_of_losses) / len(batches)


def reference_epoch(inputs: Inputs) -> float:
    """Seconds of one epoch, in a process of its own."""
    machine.prepare(inputs.threads)
    torch.manual_seed(0)
    teacher, student = load_models(inputs.teacher, inputs.student_layers)
    tokenizer = AutoTokenizer.from_pretrained(inputs.teacher, **NO_REMOTE_CODE)
    batches = random_batches(open_data(inputs.data).train, tokenizer, inputs.batch_size)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    start = time.perf_counter()
    train_epoch(teacher, student, batches, inputs.matched(), optimizer)
    return time.perf_counter() - start
