"""Other programs at the same work. Each function runs in a process of its own and gives an epoch's seconds."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ikd_ray.bench import machine
from ikd_ray.bench.inputs import Inputs
from ikd_ray.bench.reference import LAMBDA, LEARNING_RATE, TEMPERATURE, examples, load_models, random_batches
from ikd_ray.data.tokens import open_data
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.errors import UsageError


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps a peer's progress bars and logs out of the terminal and of what is printed for programs."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def textbrewer_epoch(inputs: Inputs) -> float:
    """TextBrewer's `GeneralDistiller`: soft and hard labels, attention and hidden states of all matched layers.

    Its GLUE examples match hidden states (`hidden_mse`, `mmd`) and no attention. Of its attention losses this
    takes `attention_mse`: `attention_ce` wants scores before the softmax, which transformers does not return,
    and costs more. No checkpoint is saved and nothing is logged.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig

    machine.prepare(inputs.threads)
    torch.manual_seed(0)
    teacher, student = load_models(inputs.teacher, inputs.student_layers)
    tokenizer = AutoTokenizer.from_pretrained(inputs.teacher, **NO_REMOTE_CODE)
    batches = random_batches(open_data(inputs.data).train, tokenizer, inputs.batch_size)
    matches = []
    for layer, source in enumerate(inputs.matched(), start=1):
        hidden = {"layer_T": source, "layer_S": layer, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        attention = {"layer_T": source - 1, "layer_S": layer - 1, "feature": "attention"}
        matches += [hidden, attention | {"loss": "attention_mse", "weight": 1}]
    training = TrainingConfig(
        device="cpu", output_dir=str(inputs.scratch / "textbrewer"), log_dir=None, ckpt_frequency=0
    )
    distillation = DistillationConfig(
        temperature=TEMPERATURE, hard_label_weight=LAMBDA, kd_loss_type="ce", intermediate_matches=matches
    )
    distiller = GeneralDistiller(training, distillation, teacher, student, _adapt, _adapt)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE)
    with distiller, _quiet():
        start = time.perf_counter()
        distiller.train(optimizer, batches, num_epochs=1, output_attentions=True, output_hidden_states=True)
        return time.perf_counter() - start


def _adapt(batch: dict[str, Any], output: Any) -> dict[str, Any]:
    """A model's output under TextBrewer's names."""
    return {
        "logits": output.logits,
        "losses": output.loss,
        "hidden": output.hidden_states,
        "attention": output.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def trainer_epoch(inputs: Inputs) -> float:
    """transformers' `Trainer` fine-tuning the teacher, with its defaults; nothing is evaluated or saved."""
    from transformers import (
        Trainer,
        TrainingArguments,
    )  # imported late: it leaves a folder in the temporary one

    machine.prepare(inputs.threads)
    tokenizer = AutoTokenizer.from_pretrained(inputs.teacher, **NO_REMOTE_CODE)
    arguments = TrainingArguments(
        output_dir=str(inputs.scratch / "trainer"),
        per_device_train_batch_size=inputs.batch_size,
        num_train_epochs=1,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        AutoModelForSequenceClassification.from_pretrained(
            inputs.teacher, use_safetensors=True, dtype=torch.float32, **NO_REMOTE_CODE
        ),
        arguments,
        train_dataset=examples(open_data(inputs.data).train, tokenizer),
        processing_class=tokenizer,
    )
    with _quiet():
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start


class Peer(NamedTuple):
    package: str  # that must be there
    epoch: Callable[[Inputs], float]
    distils: bool  # else it fine-tunes the teacher


PEERS = {
    "textbrewer": Peer("textbrewer", textbrewer_epoch, True),
    "trainer": Peer("accelerate", trainer_epoch, False),
}


def check_peers(names: tuple[str, ...]) -> None:
    """
    Raises:
        UsageError: a peer is not known or its package is not installed.
    """
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--peer {name!r} is not known; one of: {', '.join(PEERS)}")
        package = PEERS[name].package
        if importlib.util.find_spec(package) is None:
            raise UsageError(f'--peer {name}: {package} is not installed; pip install -e ".[bench]"')
