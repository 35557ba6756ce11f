"""Tables of the Pareto front and of exported files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from rich.table import Table
from rich.text import Text

from ikd_ray.analysis.objectives import Objectives, dev_metric, metric_on_test, task_metric
from ikd_ray.export.model_card import ExportedFiles
from ikd_ray.formatting import MISSING, clean, decimal, short_name
from ikd_ray.records import TrialRecord

FRONT_SHOWN, FAILED_SHOWN = 20, 10
ARROWS = {"max": "↑", "min": "↓"}

Format = Callable[[float], str]

_METRICS: dict[str, tuple[str, Format]] = {  # heading and format of a column
    "student/params": ("params\nM", lambda value: f"{value / 1e6:.1f}"),
    "student/size_mb": ("size\nMB", "{:.1f}".format),
    "student/latency_ms": ("latency\nms", "{:.1f}".format),
    "dev/attention_kl": ("attn\nKL", decimal),
    "dev/teacher_agreement": ("agree", decimal),
}


def front_table(front: list[TrialRecord], objectives: Objectives, teacher_metrics: dict[str, float]) -> Table:
    """Return a table of the front's students below their teacher, the best first; arrows mark the objectives."""
    main = task_metric(objectives, teacher_metrics)
    columns: dict[str, tuple[str, Format]] = {}
    if main:
        columns[main] = (short_name(main), decimal)
        columns[dev_metric(main)] = (short_name(dev_metric(main)), decimal)
        on_test = metric_on_test(main)
        if any(on_test in metrics for metrics in (teacher_metrics, *(trial.metrics for trial in front))):
            columns[on_test] = (short_name(on_test).replace(" ", "\n"), decimal)
    columns |= _METRICS
    columns |= {name: (short_name(name), "{:.4g}".format) for name in objectives if name not in columns}

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("regime")
    table.add_column("layers", justify="right")
    for name, (heading, _) in columns.items():
        arrow = ARROWS.get(objectives.get(name, ""), "")
        table.add_column(Text(f"{heading} {arrow}".rstrip()), justify="right")
    table.add_column("trial", overflow="fold")

    teacher = [_cell(teacher_metrics, name, form) for name, (_, form) in columns.items()]
    table.add_row("teacher", "", *teacher, "", style="dim")
    for trial in sorted(front, key=lambda trial: _rank(trial, main), reverse=True):
        params = [clean(trial.params.get(name, MISSING)) for name in ("regime", "student_layers")]
        metrics = [_cell(trial.metrics, name, form) for name, (_, form) in columns.items()]
        table.add_row(*map(Text, [*params, *metrics, clean(trial.id)]))
    return table


def _rank(trial: TrialRecord, metric: str | None) -> float:
    value = trial.metrics.get(metric or "", -math.inf)
    return -math.inf if math.isnan(value) else value


def exported_files_table(students: list[tuple[str, ExportedFiles]]) -> Table:
    """Return a table of the metrics, size and latency of every exported file, from trial ids and their files."""
    names = list(dict.fromkeys(name for _, files in students for name in files.files[-1].metrics))
    table = Table(title="metrics, size, latency of one sequence", title_justify="left")
    for heading in ("trial", "file"):
        table.add_column(heading, overflow="fold")
    for heading in (*names, "MB", "ms"):
        table.add_column(heading, justify="right")
    for trial, files in students:
        for file in files.files:
            metrics = [_cell(file.metrics, name, "{:.4f}".format) for name in names]
            cells = [clean(trial), file.file, *metrics, f"{file.size_mb:.1f}", f"{file.latency_ms:.1f}"]
            table.add_row(*map(Text, cells))
        table.add_section()
    return table


def _cell(metrics: Mapping[str, float], name: str, form: Format) -> str:
    return form(metrics[name]) if name in metrics else MISSING
