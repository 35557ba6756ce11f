"""Epochs of a plain loop, of TextBrewer and of transformers' Trainer, each measured in a process of its own.

The plain loop is what one writes first with transformers: the teacher runs at every step, batches are drawn at random
and padded to their longest, every parameter of the student trains. Its losses are this project's, for all matched
layers.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

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

from ikd_ray.bench.inputs import Inputs
from ikd_ray.config import Precision
from ikd_ray.data.tokens import TokenSplit, open_data
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.fast_layers import use_pytorch_layers
from ikd_ray.distill.losses import attention_kl, cls_cosine, hard_label_loss, soft_label_loss
from ikd_ray.distill.student import build_student
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import UsageError

LEARNING_RATE, TEMPERATURE, LAMBDA = 5e-5, 2.0, 0.2


def reference_epoch(inputs: Inputs) -> float:
    """Return the seconds of one epoch of the plain loop, in float32."""
    return _reference_epoch(inputs, "float32")


def bfloat16_reference_epoch(inputs: Inputs) -> float:
    """Return the seconds of one epoch of the plain loop with PyTorch's autocast to bfloat16."""
    return _reference_epoch(inputs, "bfloat16")


def _reference_epoch(inputs: Inputs, precision: Precision) -> float:
    teacher, student, batches = _load(inputs)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    autocast = replace(inputs.world, precision=precision).autocast
    layers = inputs.layer_map()
    start = time.perf_counter()
    train_epoch(teacher, student, batches, layers, optimizer, autocast)
    return time.perf_counter() - start


def train_epoch(
    teacher: nn.Module,
    student: nn.Module,
    batches: DataLoader[Any],
    layer_map: tuple[int, ...],
    optimizer: torch.optim.Optimizer,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Train one epoch of internal distillation, `autocast` around each forward pass; return its steps' mean loss."""
    device = next(student.parameters()).device
    total = torch.zeros((), device=device)
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        with torch.no_grad(), autocast():
            teacher_output = teacher(**batch, output_attentions=True, output_hidden_states=True)
        with autocast():
            student_output = student(**batch, output_attentions=True, output_hidden_states=True)
        losses = compute_losses(teacher_output, student_output, batch["attention_mask"], labels, layer_map)
        loss = sum(losses.values()) - (1 - LAMBDA) * losses["hard"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    return float(total) / len(batches)


def compute_losses(
    teacher: Any, student: Any, mask: Tensor, labels: Tensor, layer_map: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return every loss by itself, unweighted, from the models' outputs with attentions and hidden states.

    Args:
        teacher: the teacher's output.
        student: the student's output.
        mask: (B, L), 1 for tokens and 0 for padding.
        labels: (B,).
        layer_map: the teacher layer of each student layer, counted from 1.
    """
    losses = {}
    for layer, source in enumerate(layer_map, start=1):
        attentions = student.attentions[layer - 1], teacher.attentions[source - 1]
        losses[f"layer_{layer}/kl"] = attention_kl(*attentions, mask)
        student_cls, teacher_cls = student.hidden_states[layer][:, 0], teacher.hidden_states[source][:, 0]
        losses[f"layer_{layer}/cos"] = cls_cosine(student_cls, teacher_cls)
    losses["soft"] = soft_label_loss(student.logits, teacher.logits, TEMPERATURE)
    losses["hard"] = hard_label_loss(student.logits, labels)
    return losses


def textbrewer_epoch(inputs: Inputs) -> float:
    """Return the seconds of an epoch of TextBrewer's `GeneralDistiller` that matches all layers.

    Its GLUE examples match hidden states (`hidden_mse`, `mmd`) and no attention. Of its attention losses this uses
    `attention_mse`: `attention_ce` takes scores before the softmax, which transformers does not return, and costs
    more. No checkpoint is saved and nothing is logged.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    teacher, student, batches = _load(inputs)
    matches = []
    for layer, source in enumerate(inputs.layer_map(), start=1):
        hidden = {"layer_T": source, "layer_S": layer, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        attention = {"layer_T": source - 1, "layer_S": layer - 1, "feature": "attention"}
        matches += [hidden, attention | {"loss": "attention_mse", "weight": 1}]
    training = TrainingConfig(
        device=inputs.device, output_dir=str(inputs.scratch / "textbrewer"), log_dir=None, ckpt_frequency=0
    )
    distillation = DistillationConfig(
        temperature=TEMPERATURE, hard_label_weight=LAMBDA, kd_loss_type="ce", intermediate_matches=matches
    )

    def adapt(batch: dict[str, Any], output: Any) -> dict[str, Any]:
        return {
            "logits": output.logits,
            "losses": output.loss,
            "hidden": output.hidden_states,
            "attention": output.attentions,
            "inputs_mask": batch["attention_mask"],
        }

    distiller = GeneralDistiller(training, distillation, teacher, student, adapt, adapt)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    with distiller, _quiet():
        start = time.perf_counter()
        distiller.train(optimizer, batches, num_epochs=1, output_attentions=True, output_hidden_states=True)
        if inputs.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def trainer_epoch(inputs: Inputs) -> float:
    """Return the seconds in which transformers' `Trainer`, with its defaults, fine-tunes the teacher for an epoch."""
    # On several GPUs Trainer would multiply the batch. Read when CUDA starts, in a process of its own.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    from transformers import Trainer, TrainingArguments  # imported late: leaves a temporary folder

    tokenizer = AutoTokenizer.from_pretrained(inputs.teacher, **NO_REMOTE_CODE)
    arguments = TrainingArguments(
        output_dir=str(inputs.scratch / "trainer"),
        per_device_train_batch_size=inputs.batch_size,
        num_train_epochs=1,
        use_cpu=inputs.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        inputs.teacher, use_safetensors=True, dtype=torch.float32, **NO_REMOTE_CODE
    )
    examples = _examples(open_data(inputs.data).train, tokenizer)
    trainer = Trainer(model, arguments, train_dataset=examples, processing_class=tokenizer)
    with _quiet():
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


class Peer(NamedTuple):
    """Another program to compare with."""

    package: str  # it needs it
    epoch: Callable[[Inputs], float]
    distils: bool  # else it fine-tunes the teacher


REFERENCES = {
    "float32": Peer("torch", reference_epoch, True),
    "bfloat16": Peer("torch", bfloat16_reference_epoch, True),
}
PEERS = {
    "textbrewer": Peer("textbrewer", textbrewer_epoch, True),
    "trainer": Peer("accelerate", trainer_epoch, False),
}


def check_peers(names: tuple[str, ...]) -> None:
    """Raise a `UsageError` if a peer is not known or its package is not installed."""
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peer {name!r} is not known; one of: {', '.join(PEERS)}")
        package = PEERS[name].package
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'--peer {name}: {package} is not installed; pip install -e ".[bench]"')


def load_models(folder: Path, student_layers: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load the teacher and cut the student from it, as plain transformers models.

    Both return attention weights, which takes the eager implementation. It returns them after dropout, so dropout of
    attention is off.
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
        use_pytorch_layers(model)  # `Encoder` has replaced them
    return teacher.eval().requires_grad_(False), student.train()


def random_batches(split: TokenSplit, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> DataLoader[Any]:
    """Return batches in random order, padded to their longest, under the models' argument names."""
    pad = DataCollatorWithPadding(tokenizer)
    examples = _examples(split, tokenizer)
    # A list is a data set for torch, although its annotation says otherwise.
    return DataLoader(examples, batch_size, shuffle=True, collate_fn=lambda batch: dict(pad(batch)))  # type: ignore[arg-type]


def _load(inputs: Inputs) -> tuple[PreTrainedModel, PreTrainedModel, DataLoader[Any]]:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(inputs.teacher, **NO_REMOTE_CODE)
    batches = random_batches(open_data(inputs.data).train, tokenizer, inputs.batch_size)
    models: Any = load_models(inputs.teacher, inputs.student_layers)
    teacher, student = (model.to(inputs.device) for model in models)
    return teacher, student, batches


def _examples(split: TokenSplit, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the split as a tokenizer returns it, with the labels."""
    arrays = {"input_ids": split.input_ids, "token_type_ids": split.token_type_ids}
    columns: dict[str, list[Any]] = {
        name: [row.tolist() for row in np.split(array.values, array.offsets[1:-1])]
        for name, array in arrays.items()
        if name in tokenizer.model_input_names
    }
    columns["labels"] = split.labels.tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide a peer's progress bars and logs."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield
