"""Every knob of the system: its name, type, range, unit and default, validated once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ikd_ray.errors import UsageError

Regime = Literal["hard", "kd", "id", "pid", "sid"]


def in_order(regimes: Sequence[str]) -> list[str]:
    """Return the distinct regimes in the order of `Regime`, unknown ones last."""
    return [regime for regime in dict.fromkeys([*get_args(Regime), *regimes]) if regime in set(regimes)]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Trial(_Config):
    """One student: how it is built and how it is trained. The search space's dimensions are these fields.

    Field aliases are the names used in space files, MLflow and JSON; only `lambda` differs from its
    Python name (`lambda_`).
    """

    regime: Regime = "kd"
    student_layers: int = Field(3, ge=1, le=128, description="encoder layers of the student")
    assistant_layers: int = Field(
        0,
        ge=0,
        le=128,
        description="layers of a teacher assistant, which teaches in the teacher's place; 0: none",
    )
    student_init: Literal["mapped", "first"] = Field(
        "mapped", description="teacher layers the student copies"
    )
    temperature: float = Field(2.0, gt=0, le=100, description="softens both models' logits")
    lambda_: float = Field(0.2, ge=0, le=100, alias="lambda", description="weight of the hard-label loss")
    soft_labels: Literal["top", "always"] = Field("top", description="PID/SID: soft loss in which stages")
    internal_losses: Literal["kl", "cos", "both"] = "both"
    internal_weight: float = Field(1.0, gt=0, le=1e4, description="weight of each layer's internal losses")
    epochs: int = Field(3, ge=1, le=1000, description="epochs of the stage with the classification loss")
    epochs_per_layer: int = Field(2, ge=1, le=1000, description="PID/SID: most epochs of an internal stage")
    cosine_threshold: float = Field(
        0.0, ge=0, le=1, description="PID/SID: move up once the layer's cosine loss is at most this; 0: never"
    )
    train: Literal["layer", "upto"] = Field("layer", description="PID: layer k alone, or layers 1..k")
    top_trains: Literal["all", "head"] = Field("all", description="PID/SID: what the top stage trains")
    embeddings: Literal["frozen", "train"] = Field(
        "frozen", description="teacher's embeddings kept, or trained"
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="AdamW's peak learning rate")
    batch_size: int = Field(32, ge=1, le=65536, description="examples in a step, over all workers")
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="share of the training set, of each label alike, that the student sees"
    )
    seed: int = Field(0, ge=0, lt=2**31)

    def params(self) -> dict[str, Any]:
        """The fields under their public names (`lambda`, not `lambda_`)."""
        return self.model_dump(by_alias=True)


NO_ASSISTANTS = ("assistant_layers", "train_fraction")
"""Fields of a `Trial` that say nothing of an assistant: it learns from the teacher, on all of the data."""


class TeacherConfig(_Config):
    """Fine-tuning of a teacher that has no classification head yet."""

    epochs: int = Field(5, ge=1, le=100)
    patience: int = Field(2, ge=1, le=100, description="epochs without a better metric before stopping")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="AdamW's peak; none: 1e-4 for hidden sizes under 512, else 3e-5"
    )
    batch_size: int = Field(32, ge=1, le=65536)
    seed: int = Field(0, ge=0, lt=2**31)


class DataConfig(_Config):
    """What the models see of an example."""

    max_length: int = Field(128, ge=8, le=512, description="tokens, special ones included; longer is cut")


class TargetConfig(_Config):
    """Where the teacher's outputs come from while students train."""

    mode: Literal["auto", "stored", "online"] = "auto"
    budget_gb: float = Field(
        20.0, gt=0, description="auto: past this size the teacher runs per batch instead"
    )


class PrefixConfig(_Config):
    """Where the output of a student's frozen layers is kept while the layers above train; else it is recomputed."""

    memory_gb: float = Field(
        1.0, ge=0, description="kept in memory up to this size, by each worker of each trial"
    )
    disk_gb: float = Field(20.0, ge=0, description="past memory_gb kept in a temporary file up to this size")


class SharingConfig(_Config):
    """Where trials leave the epochs that they have trained, for others and for themselves."""

    disk_gb: float = Field(20.0, gt=0, description="past it the least recently used epochs go")


def first_problem(error: ValidationError) -> tuple[str, str]:
    """(dotted key, one-line reason) of the first mistake pydantic found."""
    detail = error.errors()[0]
    key = ".".join(str(part) for part in detail["loc"])
    reason = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "value_error":  # of a check of our own
        reason = str(detail["ctx"]["error"])
    if detail["type"] == "extra_forbidden":
        reason = "unknown name"
    return key, reason


def make_trial(params: dict[str, Any]) -> Trial:
    """A validated `Trial` from public names.

    Raises:
        UsageError: a name or value is wrong; the message names it.
    """
    try:
        return Trial.model_validate(params)
    except ValidationError as error:
        key, reason = first_problem(error)
        raise UsageError(f"{key}: {reason} (got {params.get(key)!r})") from None


class SweepConfig(_Config):
    """One sweep as asked for on the command line; names are the flags'."""

    task: str = Field(description="a GLUE task's name, or the path of a task file")
    data_dir: Path | None = None
    teacher: str | None = None
    space: Path
    trials: int | None = Field(None, ge=1, le=100_000, description="none: 8, or all of a grid")
    concurrent: int | None = Field(None, ge=1, le=10_000, description="trials at once; none: what fits")
    workers_per_trial: int = Field(1, ge=1, le=1024)
    gpus_per_worker: float | None = Field(None, ge=0, le=16, description="none: 1 where there are GPUs")
    output: Path = Path("outputs")
    uri: str | None = Field(None, description="what `output` is this machine's folder for; none: for itself")
    name: str | None = Field(None, description="none: the task and the time")
    seed: int = Field(0, ge=0, lt=2**31)
    tracking_uri: str | None = None
    no_share: bool = Field(False, description="every trial trains all its epochs itself, and keeps none")
