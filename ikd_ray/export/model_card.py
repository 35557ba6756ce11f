"""Describe an exported student: the model card, which is its README.md, and its files of weights."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from ikd_ray.analysis.sweep_analysis import used_params
from ikd_ray.analysis.teacher_comparison import compare_with_teacher
from ikd_ray.export.code_examples import GENERIC, UNKNOWN_FOLDER, onnx_code, pipeline_code, recorded_example
from ikd_ray.formatting import (
    GENERATED_WARNING,
    MISSING,
    clean,
    describe_truncated,
    null_nonfinite,
    portable_command,
)
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.tasks import GlueTask, Task

WEIGHTS = "model.safetensors"
ONNX, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"
"""Paths of ONNX models in an exported folder, as transformers.js and Optimum expect them."""

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


@dataclass(frozen=True)
class ExportedFile:
    """A file of weights and its measurements."""

    file: str
    kind: str  # runtime and number format: "onnxruntime, int8"
    metrics: dict[str, float]  # on the evaluation splits
    size_mb: float  # 10^6 bytes
    latency_ms: float


@dataclass(frozen=True)
class ExportedFiles:
    """A student's files of weights, PyTorch's first, and how they were made and measured."""

    files: tuple[ExportedFile, ...]
    inputs: tuple[str, ...]  # of the ONNX models, each (batch, sequence) of int64
    opset: int
    compared: int  # dev sequences for which PyTorch's and the ONNX model's logits were compared
    largest_difference: float  # between these logits
    batch: int  # sequences per batch when the metrics of ONNX models were measured
    tokens: int  # of the sequence that latency was measured with
    versions: dict[str, str]
    processor: str

    def notes(self) -> list[str]:
        """Return sentences on how the numbers came about."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        quantized = (
            f"{INT8}: weights of matrix products in int8, with a scale for each output and 7 bits in use, so that "
            "no processor's sums overflow; embeddings in uint8; activations in uint8, a whole batch at one scale, so "
            "that results depend a little on what is in it."
        )
        return [
            f"{WEIGHTS}: the metrics are what the sweep recorded.",
            "ONNX files: transformers.js and Optimum find them by their paths.",
            f"ONNX files: metrics of the same examples, measured with onnxruntime in batches of {self.batch} of "
            f"similar length. Opset {self.opset}.",
            f"{ONNX} gave the labels of PyTorch for {self.compared} dev sequences in batches of several lengths and "
            f"sizes; logits differed by about {self.largest_difference:.1g} at most.",
            *([quantized] if any(file.file == INT8 for file in self.files) else []),
            f"Latency: median of one sequence of {self.tokens} tokens with one CPU thread, all files in turn on "
            f"{self.processor}, with {versions}.",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the value of `onnx` in ikd.json."""
        facts = asdict(self)
        forms = [file | {"metrics": null_nonfinite(file["metrics"])} for file in facts.pop("files")]
        return {"forms": forms} | facts | {"how": self.notes()}


class _Result(NamedTuple):
    """A row of the table of results: a metric, and its values as text."""

    name: str
    student: str
    teacher: str


def student_name(sweep: SweepRecord, trial: TrialRecord) -> str:
    """Return the name of an exported student."""
    return f"{sweep.task}-{trial.params['regime']}-{len(trial.layer_map)}L-{trial.id}"


def model_card(
    sweep: SweepRecord,
    trial: TrialRecord,
    task: Task,
    latency_tokens: int,
    files: ExportedFiles | None = None,
    repository: str | None = None,
) -> str:
    """Return the model card of a student: YAML front matter, then its use, results and provenance.

    Args:
        sweep: the student's sweep.
        trial: the student's trial.
        task: the sweep's task.
        latency_tokens: tokens of the sequence that its latency was measured with.
        files: its files of weights, if there are others than PyTorch's.
        repository: the repository of the hub that the card is for, if it is for one. It may be public, so its card
            quotes no text of the user's own tables.
    """
    # Imported late: it takes a second.
    from ikd_ray.export.card_metadata import card_metadata

    is_private = repository is not None and not isinstance(task, GlueTask)
    example = () if is_private else recorded_example(sweep, task)
    texts, place = example or GENERIC[: len(task.text_columns)], repository or UNKNOWN_FOLDER
    name = repository.rpartition("/")[2] if repository else student_name(sweep, trial)
    last_file = files.files[-1].file if files else ""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"code": _code, "literal": _literal, "clean": clean}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        sweep=sweep,
        trial=trial,
        task=task,
        files=files,
        latency_tokens=latency_tokens,
        truncated=describe_truncated(
            {
                split: count
                for split, count in sweep.data.get("truncated", {}).items()
                if split not in ("train", "unlabelled")
            }
        ),
        used_params=used_params(trial),
        unlabelled=_describe_unlabelled(sweep, trial),
        assistant=sweep.assistant_of(trial.params),
        comparison=compare_with_teacher(trial, sweep),
        results=_results(sweep, trial, task),
        size=_format("{:,.1f} MB", trial.metrics.get("student/size_mb")),
        generated_warning=GENERATED_WARNING,
        front_matter=card_metadata(sweep, trial, task, name, example).to_yaml(),
        pipeline_code=pipeline_code(place, texts),
        onnx_code=onnx_code(place, last_file, texts, on_hub=bool(repository)),
        command=portable_command(sweep.command),
    )


def _results(sweep: SweepRecord, trial: TrialRecord, task: Task) -> list[_Result]:
    """Return the student's quality, size and speed beside its teacher's, as far as they are known."""
    metrics = {name for name in trial.metrics if name.rpartition("/")[2] in task.metrics}
    formats = dict.fromkeys(sorted(metrics), "{:.4f}")
    formats |= {
        "dev/teacher_agreement": "{:.4f}",
        "student/params": "{:,.0f}",
        "student/latency_ms": "{:,.1f}",
    }
    return [
        _Result(
            name,
            _format(form, trial.metrics.get(name)),
            _format(form, sweep.teacher_metrics.get(name)),
        )
        for name, form in formats.items()
        if name in trial.metrics
    ]


def _format(form: str, value: float | None) -> str:
    return MISSING if value is None or not math.isfinite(value) else form.format(value)


def _describe_unlabelled(sweep: SweepRecord, trial: TrialRecord) -> str:
    """Return how many texts without a label a student learned from, and how; empty where there are none."""
    count = (sweep.data.get("examples") or {}).get("unlabelled", 0)
    fraction = trial.params.get("unlabelled_fraction", 1.0)
    if not count:
        return ""
    if not fraction or trial.params["regime"] == "hard":
        return f"none of {count:,}"
    share = "all" if fraction == 1 else f"{fraction:g}"
    return f"{share} of {count:,}, used by the losses that compare with the teacher"


def _literal(text: object) -> str:
    """Return text as Markdown that shows it literally, on one line, also in a table."""
    # An underscore between letters is no markup.
    return re.sub(r"([\\`*\[\]<>|~$&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", clean(text))


def _code(text: object) -> str:
    """Return text as a code span, whatever backquotes it contains."""
    line = clean(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " * (len(fence) > 1)
    return f"{fence}{pad}{line}{pad}{fence}"
