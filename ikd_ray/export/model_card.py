"""Describe an exported student: the model card, which is its README.md, and its files of weights."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from ikd_ray.analysis.teacher_comparison import compare_with_teacher
from ikd_ray.data.task_file import CustomTask
from ikd_ray.formatting import GENERATED_WARNING, clean, describe_truncated, null_nonfinite
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.tasks import Task

WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model.int8.onnx"

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


def model_card(
    sweep: SweepRecord,
    trial: TrialRecord,
    task: Task,
    latency_tokens: int,
    files: ExportedFiles | None = None,
) -> str:
    """Return the model card of a student: YAML front matter, then its use, results and provenance, all values exact.

    Its latency was measured with a sequence of `latency_tokens` tokens. `files` describes its files of weights, if
    there are others than PyTorch's.
    """

    def known(metric: str, form: str) -> str:
        value = trial.metrics.get(metric, math.nan)
        return form.format(value) if math.isfinite(value) else "unknown"

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
        unlabelled=_describe_unlabelled(sweep, trial),
        assistant=sweep.assistant_of(trial.params),
        comparison=compare_with_teacher(trial, sweep),
        metrics=sorted({*trial.metrics, *sweep.teacher["metrics"]}),
        generated_warning=GENERATED_WARNING,
        front_matter=_front_matter(sweep, task),
        known=known,
    )


def _front_matter(sweep: SweepRecord, task: Task) -> str:
    tags = ["knowledge-distillation", "internal-distillation", "ikd-ray", sweep.task]
    if sweep.data["generated"]:
        tags.append("generated-data")
    language = {"language": task.language} if isinstance(task, CustomTask) and task.language else {}
    head = language | {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": tags}
    return yaml.safe_dump(head, sort_keys=False)


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
