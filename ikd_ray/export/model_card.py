"""Describe an exported student: the model card, which is its README.md, and its files of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from ikd_ray.formatting import GENERATED_WARNING, null_nonfinite
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.tasks import Task

WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model.int8.onnx"

WARNING = f"""\
> [!WARNING]
> **{GENERATED_WARNING}.** This student learned from, and was measured on, sentences that a grammar generated.
> Its metrics say nothing about the real task and compare with no published number."""


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


def model_card(sweep: SweepRecord, trial: TrialRecord, task: Task, files: ExportedFiles | None = None) -> str:
    """Return the model card of a student: YAML front matter, then its use, results and provenance, all values exact.

    Args:
        sweep: Record of the sweep.
        trial: Record of the student's trial.
        task: Task of the sweep.
        files: Files of weights, if there are others than PyTorch's.
    """
    depth, regime = len(trial.layer_map), trial.params["regime"]
    origin = (
        "trained on gold labels alone, its weights initially from" if regime == "hard" else "distilled from"
    )
    parts = [
        _front_matter(sweep),
        f"# {task.name}: {depth}-layer student ({regime})",
        WARNING if sweep.data["generated"] else "",
        f"A {depth}-layer encoder {origin} `{_inline(sweep.teacher['name'])}` "
        f"({sweep.teacher['layers']} layers) for the {task.title}. "
        f"Trial `{trial.id}` of sweep `{_inline(sweep.name)}`, whose objectives were: "
        f"{', '.join(f'{name} {direction}' for name, direction in sweep.objectives.items())}.",
        "## Use",
        _usage(sweep, task),
        "## Results",
        _results(sweep, trial),
        _size(trial),
        _onnx(files, task) if files else "",
        "## Training",
        _table(("", ""), _provenance(sweep, trial)),
        "### Layer map",
        _table(("student layer", "teacher layer"), enumerate(trial.layer_map, start=1)),
        "### Hyperparameters",
        _table(("name", "value"), trial.params.items()),
        "## Made with",
        f"    {_inline(sweep.command)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(sweep: SweepRecord) -> str:
    tags = ["knowledge-distillation", "internal-distillation", "ikd-ray", sweep.task]
    if sweep.data["generated"]:
        tags.append("generated-data")
    head = {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": tags}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _usage(sweep: SweepRecord, task: Task) -> str:
    example = '{"text": "One.", "text_pair": "Another."}' if task.is_pair else '"A sentence."'
    labels = "A score, not a class" if task.is_regression else f"Labels: {', '.join(task.labels)}"
    return f"""\
```python
from transformers import pipeline

classify = pipeline("text-classification", "PATH/OF/THIS/FOLDER")
print(classify({example}))
```

{labels}. In training, inputs were cut at {sweep.data["max_length"]} tokens."""


def _results(sweep: SweepRecord, trial: TrialRecord) -> str:
    teacher = sweep.teacher["metrics"]
    rows = (
        (name, trial.metrics.get(name, ""), teacher.get(name, ""))
        for name in sorted({*trial.metrics, *teacher})
    )
    return _table(("metric", "student", "teacher"), rows)


def _size(trial: TrialRecord) -> str:
    def shown(metric: str, form: str) -> str:
        value = trial.metrics.get(metric, math.nan)
        return form.format(value) if math.isfinite(value) else "unknown"

    return (
        f"Parameters: {shown('student/params', '{:,.0f}')}, "
        f"without embeddings {shown('student/encoder_params', '{:,.0f}')}. "
        f"Weights: {shown('student/size_mb', '{:,.1f} MB')}. "
        f"Latency of one sequence, 128 tokens, one CPU thread: {shown('student/latency_ms', '{:,.1f} ms')}."
    )


def _onnx(files: ExportedFiles, task: Task) -> str:
    names = list(files.files[-1].metrics)
    rows = []
    for file in files.files:
        metrics = (file.metrics.get(name, "") for name in names)
        rows.append((file.file, file.kind, *metrics, f"{file.size_mb:.1f}", f"{file.latency_ms:.1f}"))
    texts = '"One.", "Another."' if task.is_pair else '"A sentence."'
    usage = f"""\
```python
import onnxruntime
from transformers import AutoTokenizer

folder = "PATH/OF/THIS/FOLDER"
session = onnxruntime.InferenceSession(f"{{folder}}/{files.files[-1].file}")
tokens = AutoTokenizer.from_pretrained(folder)({texts}, return_tensors="np", return_token_type_ids=True)
inputs = {{given.name: tokens[given.name].astype("int64") for given in session.get_inputs()}}
print(session.run(["logits"], inputs)[0])
```"""
    notes = "\n".join(f"- {note}" for note in files.notes())
    return "\n\n".join(("## ONNX", _table(("file", "", *names, "MB", "ms"), rows), notes, usage))


def _provenance(sweep: SweepRecord, trial: TrialRecord) -> list[tuple[str, Any]]:
    source = f"{sweep.data['source']}: {sweep.data['description']}"
    assistant = sweep.assistant_of(trial.params)
    layers = trial.params.get("assistant_layers")
    return [
        ("task", sweep.task),
        ("data", f"**{GENERATED_WARNING}.** {source}" if sweep.data["generated"] else source),
        ("data fingerprint", sweep.data["fingerprint"]),
        ("teacher", f"{sweep.teacher['name']}, {sweep.teacher['layers']} layers ({sweep.teacher['key']})"),
        *(
            [("assistant", f"{layers} layers ({assistant.get('key')}), in the teacher's place")]
            * bool(assistant)
        ),
        ("regime", trial.params["regime"]),
        ("sweep", f"{sweep.name}, seed {sweep.seed}"),
        ("trial", f"{trial.id}, number {trial.number}, {trial.duration_s:.1f} s"),
        ("code version", sweep.code_version),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    return _inline(str(value)).replace("|", "\\|")


def _inline(text: str) -> str:
    """Return the text on one line and without backquotes, so that it cannot end a table row, quote or code span."""
    return " ".join(text.split()).replace("`", "'")
