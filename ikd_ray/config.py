"""Every setting with its name, type, range, unit and default, validated in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ikd_ray.errors import UsageError

Regime = Literal["hard", "kd", "id", "pid", "sid"]
Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["cpu", "cuda"]
MAX_LAYERS = 128


def sort_regimes(regimes: Sequence[str]) -> list[str]:
    """Return the distinct regimes in the order of `Regime`, unknown ones last."""
    return [regime for regime in dict.fromkeys([*get_args(Regime), *regimes]) if regime in set(regimes)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Trial(_Config):
    """Settings that one student is built and trained with. A search space ranges over these fields.

    Field aliases are the names in space files, MLflow and JSON; only `lambda` differs from its Python name, `lambda_`.
    """

    regime: Regime = Field("kd", description="how the student is trained: one of the regimes")
    student_layers: int = Field(3, ge=1, le=MAX_LAYERS, description="encoder layers of the student")
    assistant_layers: int = Field(
        0,
        ge=0,
        le=MAX_LAYERS,
        description="layers of a teacher assistant that teaches in the teacher's place; 0: no assistant",
    )
    student_init: Literal["mapped", "first"] = Field(
        "mapped",
        description="teacher layers that the student starts from: those its layers are matched with, or the first",
    )
    temperature: float = Field(
        2.0, gt=0, le=100, description="divides the logits of both models in the soft-label loss"
    )
    lambda_: float = Field(0.2, ge=0, le=100, alias="lambda", description="weight of the hard-label loss")
    soft_labels: Literal["top", "always"] = Field(
        "top", description="pid, sid: soft-label loss in the classification stage only, or in every stage"
    )
    internal_losses: Literal["kl", "cos", "both"] = Field(
        "both", description="id, pid, sid: attention KL, CLS cosine, or both"
    )
    internal_weight: float = Field(
        1.0, gt=0, le=1e4, description="id, pid, sid: weight of each layer's internal losses"
    )
    epochs: int = Field(3, ge=1, le=1000, description="epochs of the stage with the classification loss")
    epochs_per_layer: int = Field(
        2, ge=1, le=1000, description="pid, sid: maximum number of epochs of an internal stage"
    )
    cosine_threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="pid, sid: an internal stage ends when its top layer's cosine loss is at most this; 0: never",
    )
    train: Literal["layer", "upto"] = Field(
        "layer", description="pid: stage k trains layer k alone, or layers 1 to k"
    )
    top_trains: Literal["all", "head"] = Field(
        "all",
        description="pid, sid: the classification stage trains everything, or pooler and classifier only",
    )
    embeddings: Literal["frozen", "train"] = Field(
        "frozen", description="keep the teacher's embeddings, or train them"
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    batch_size: int = Field(
        32, ge=1, le=65536, description="examples per step, over all workers of the trial"
    )
    train_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the labelled training examples that the student sees, stratified by label",
    )
    unlabelled_fraction: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the texts without a label on which the student imitates its teacher; 0: none",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="seed of the trial; where it is not given, --seed plus the number of the repetition",
    )

    def params(self) -> dict[str, Any]:
        """Return the fields under their public names (`lambda`, not `lambda_`)."""
        return self.model_dump(by_alias=True)


NOT_IN_ASSISTANTS = ("assistant_layers", "train_fraction", "unlabelled_fraction")
"""Fields of a `Trial` that an assistant does not have: it learns from the teacher, on all training examples."""


class TeacherConfig(_Config):
    """Fine-tuning of a teacher that has no classification head."""

    epochs: int = Field(5, ge=1, le=100, description="maximum number of epochs; the best epoch counts")
    patience: int = Field(
        2, ge=1, le=100, description="epochs without a better metric after which fine-tuning stops"
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="peak learning rate of AdamW; null: 1e-4 for hidden sizes below 512, else 3e-5",
    )
    batch_size: int = Field(32, ge=1, le=65536, description="examples per step")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the fine-tuning")


class DataConfig(_Config):
    """Input of the models."""

    max_length: int = Field(
        128,
        ge=8,
        le=512,
        description="tokens per example, special tokens included; longer examples are truncated",
    )


class TargetConfig(_Config):
    """Storage of the teacher's outputs; what is not stored the teacher computes for each batch."""

    mode: Literal["auto", "stored", "online"] = Field(
        "auto",
        description="store the teacher's attention where it fits (auto), always (stored), or never (online)",
    )
    budget_gb: float = Field(
        20.0, gt=0, description="auto: gigabytes of all targets above which attention is not stored"
    )


class PrefixConfig(_Config):
    """Storage of the outputs of a student's frozen layers; what is not stored is recomputed for each batch."""

    memory_gb: float = Field(1.0, ge=0, description="gigabytes kept in memory, by each worker of each trial")
    disk_gb: float = Field(
        20.0, ge=0, description="gigabytes kept in a temporary file when memory_gb does not suffice"
    )


STEP_MEMORY_GB = 8.0
"""Default of `SweepConfig.step_memory`: with it steps of 32 examples of 128 tokens are whole, BERT-base's too."""

LATENCY_TOKENS = 128
"""Length of the sequence that a student's latency is measured with, where its positions allow that."""
LATENCY_PER_LAYER_TOLERANCE = 1.25
"""Ratio above which a deeper model takes more time per layer than a shallower one because the machine was busy."""


class SharingConfig(_Config):
    """Storage of trained epochs, which other trials reuse and interrupted ones resume from."""

    disk_gb: float = Field(
        20.0, gt=0, description="gigabytes of saved epochs; above it the least recently used ones are removed"
    )


def latency_tokens(max_position_embeddings: int) -> int:
    """Return the length of the sequence that latency is measured with, for a model with so many positions."""
    return min(LATENCY_TOKENS, max_position_embeddings - 2)  # RoBERTa's positions start at 2


def contradicting_depths(latency_ms: Mapping[int, float]) -> set[int]:
    """Return the depths whose measured latencies contradict each other.

    A deeper model is not faster than another one, nor does it take longer than its number of layers explains: all
    models have the same embeddings, and layers of about equal cost.

    Args:
        latency_ms: milliseconds by number of layers, of models that differ in nothing else.
    """
    contradicting: set[int] = set()
    for depth, deeper in combinations(sorted(latency_ms), 2):
        least, most = latency_ms[depth], LATENCY_PER_LAYER_TOLERANCE * latency_ms[depth] * deeper / depth
        if not least <= latency_ms[deeper] <= most:
            contradicting |= {depth, deeper}
    return contradicting


def first_error(error: ValidationError) -> tuple[str, str]:
    """Return the dotted key of the first mistake that pydantic found, and the reason in one line."""
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    reason = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "value_error":  # raised by a validator of this package
        reason = str(detail["ctx"]["error"])
    if detail["type"] == "extra_forbidden":
        reason = "unknown name"
    return key, reason


def make_trial(params: dict[str, Any]) -> Trial:
    """Return a validated `Trial` from fields under their public names.

    Raises:
        UsageError: a name or value is wrong; the message names it.
    """
    try:
        return Trial.model_validate(params)
    except ValidationError as error:
        key, reason = first_error(error)
        raise UsageError(f"{key}: {reason} (got {params.get(key)!r})") from None


class SweepConfig(_Config):
    """Settings of a sweep from the command line; the names are the flags'."""

    task: str = Field(description="a GLUE task's name, or the path of a task file")
    data_dir: Path | None = None
    unlabelled: Path | None = Field(None, description="table of texts without labels, to add to train")
    teacher: str | None = None
    space: Path
    trials: int | None = Field(
        None, ge=1, le=100_000, description="None: see `default_trials`, or all of a grid"
    )
    minutes: float | None = Field(
        None, gt=0, le=1e6, description="in which trials run; None: until all have ended"
    )
    concurrent: int | None = Field(None, ge=1, le=10_000, description="trials at once; None: as many as fit")
    workers_per_trial: int = Field(1, ge=1, le=1024)
    gpus_per_worker: float | None = Field(None, ge=0, le=16, description="None: 1 where there are GPUs")
    step_memory: float = Field(
        STEP_MEMORY_GB, ge=0.1, le=1e6, description="gigabytes of a step's tensors, in each worker"
    )
    output: Path = Path("outputs")
    uri: str | None = Field(None, description="URI whose local folder `output` is; None: it has none")
    name: str | None = Field(None, description="None: the task and the time")
    seed: int = Field(0, ge=0, lt=2**31)
    tracking_uri: str | None = None
    no_share: bool = Field(False, description="trials train all their epochs themselves, and save none")
