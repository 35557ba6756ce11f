"""The model card of an exported student: the README.md that Hugging Face shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from ikd_ray.export.exported_files import ExportedFiles
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.tasks import Task

WARNING = f"""\
> [!WARNING]
> **{GENERATED_WARNING}.** This student learned from, and was measured on, sentences that a grammar generated.
> Its metrics say nothing about the real task and compare with no published number."""


def model_card(sweep: SweepRecord, trial: TrialRecord, task: Task, forms: ExportedFiles | None = None) -> str:
    """The text of README.md: YAML front matter, then everything that made this student. Values are exact.

    Args:
        forms: the student's files of weights, where there are others than PyTorch's.
    """
    depth = len(trial.layer_map)
    alone = trial.params["regime"] == "hard"
    made = "trained on gold labels alone, its weights initially from" if alone else "distilled from"
    parts = [
        _front_matter(sweep),
        f"# {task.name}: {depth}-layer student ({trial.params['regime']})",
        WARNING if sweep.data["generated"] else "",
        f"A {depth}-layer encoder {made} `{_inline(sweep.teacher['name'])}` "
        f"({sweep.teacher['layers']} layers) for the {task.title}. "
        f"Trial `{trial.id}` of sweep `{_inline(sweep.name)}`, whose objectives were: "
        f"{', '.join(f'{name} {direction}' for name, direction in sweep.objectives.items())}.",
        "## Use",
        _usage(sweep, task),
        "## Results",
        _results(sweep, trial),
        _size(trial),
        _onnx(forms, task) if forms else "",
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
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'classify = pipeline("text-classification", "PATH/OF/THIS/FOLDER")\n'
        f"print(classify({example}))\n```\n\n"
        f"{labels}. In training, inputs were cut at {sweep.data['max_length']} tokens."
    )


def _results(sweep: SweepRecord, trial: TrialRecord) -> str:
    taught = sweep.teacher["metrics"]
    names = sorted({*trial.metrics, *taught})
    return _table(
        ("metric", "student", "teacher"),
        ((name, trial.metrics.get(name, ""), taught.get(name, "")) for name in names),
    )


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


def _onnx(forms: ExportedFiles, task: Task) -> str:
    names = list(forms.forms[-1].metrics)
    rows = (
        (
            form.file,
            form.kind,
            *(form.metrics.get(name, "") for name in names),
            f"{form.size_mb:.1f}",
            f"{form.latency_ms:.1f}",
        )
        for form in forms.forms
    )
    texts = '"One.", "Another."' if task.is_pair else '"A sentence."'
    usage = (
        "```python\nimport onnxruntime\nfrom transformers import AutoTokenizer\n\n"
        'folder = "PATH/OF/THIS/FOLDER"\n'
        f'session = onnxruntime.InferenceSession(f"{{folder}}/{forms.forms[-1].file}")\n'
        f'tokens = AutoTokenizer.from_pretrained(folder)({texts}, return_tensors="np", '
        "return_token_type_ids=True)\n"
        'inputs = {given.name: tokens[given.name].astype("int64") for given in session.get_inputs()}\n'
        'print(session.run(["logits"], inputs)[0])\n```'
    )
    parts = ["## ONNX", _table(("file", "", *names, "MB", "ms"), rows)]
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in forms.how()), usage])


def _provenance(sweep: SweepRecord, trial: TrialRecord) -> list[tuple[str, Any]]:
    source = f"{sweep.data['source']}: {sweep.data['description']}"
    assistant = sweep.assistant_of(trial.params)
    helped = f"{trial.params.get('assistant_layers')} layers ({assistant.get('key')}), in the teacher's place"
    return [
        ("task", sweep.task),
        ("data", f"**{GENERATED_WARNING}.** {source}" if sweep.data["generated"] else source),
        ("data fingerprint", sweep.data["fingerprint"]),
        ("teacher", f"{sweep.teacher['name']}, {sweep.teacher['layers']} layers ({sweep.teacher['key']})"),
        *([("assistant", helped)] if assistant else []),
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
    """The text on one line, so that it cannot end its table row, quote or code span."""
    return " ".join(text.split()).replace("`", "'")
