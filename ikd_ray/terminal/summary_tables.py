"""The Pareto front, and what is exported of it, as tables."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from ikd_ray.analysis.objectives import Objectives, dev_metric, task_metric
from ikd_ray.export.model_card import ExportedFiles
from ikd_ray.formatting import MISSING, clean, decimal, short_name
from ikd_ray.records import TrialRecord

FRONT_SHOWN, FAILED_SHOWN = 20, 10
ARROWS = {"max": "↑", "min": "↓"}

Format = Callable[[float], str]


def _one_place(value: float) -> str:
    return f"{value:.1f}"


_MEASURES: dict[str, tuple[str, Format]] = {
    "student/params": ("params\nM", lambda value: f"{value / 1e6:.1f}"),
    "student/size_mb": ("size\nMB", _one_place),
    "student/latency_ms": ("latency\nms", _one_place),
    "dev/attention_kl": ("attn\nKL", decimal),
    "dev/teacher_agreement": ("agree", decimal),
}


def front_table(front: list[TrialRecord], objectives: Objectives, teacher_metrics: dict[str, float]) -> Table:
    """Students of the front, the best first, below the teacher. An arrow marks what was optimised."""
    main = task_metric(objectives, teacher_metrics)
    columns: dict[str, tuple[str, Format]] = {}
    if main:
        columns[main] = (short_name(main), decimal)
        columns[dev_metric(main)] = (short_name(dev_metric(main)), decimal)
    columns |= _MEASURES
    columns |= {name: (short_name(name), "{:.4g}".format) for name in objectives if name not in columns}

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("regime")
    table.add_column("layers", justify="right")
    for name, (heading, _) in columns.items():
        arrow = ARROWS.get(objectives.get(name, ""), "")
        table.add_column(Text(f"{heading} {arrow}".rstrip()), justify="right")
    table.add_column("trial", overflow="fold")

    teacher = [_cell(teacher_metrics, name, shown) for name, (_, shown) in columns.items()]
    table.add_row("teacher", "", *teacher, "", style="dim")
    for trial in _best_first(front, main):
        cells = [_cell(trial.metrics, name, shown) for name, (_, shown) in columns.items()]
        first = [clean(trial.params.get(name, MISSING)) for name in ("regime", "student_layers")]
        table.add_row(*map(Text, [*first, *cells, clean(trial.id)]))
    return table


def exported_files_table(students: list[tuple[str, ExportedFiles]]) -> Table:
    """What each file of each student's weights is worth: trial's id and forms."""
    names = list(dict.fromkeys(name for _, files in students for name in files.files[-1].metrics))
    table = Table(title="metrics, size, latency of one sequence", title_justify="left")
    for heading in ("trial", "file"):
        table.add_column(heading, overflow="fold")
    for heading in (*names, "MB", "ms"):
        table.add_column(heading, justify="right")
    for trial, files in students:
        for form in files.files:
            metrics = [_cell(form.metrics, name, "{:.4f}".format) for name in names]
            cells = [clean(trial), form.file, *metrics, _one_place(form.size_mb), _one_place(form.latency_ms)]
            table.add_row(*map(Text, cells))
        table.add_section()
    return table


def _best_first(front: list[TrialRecord], main: str | None) -> list[TrialRecord]:
    def rank(trial: TrialRecord) -> float:
        value = -math.inf if main is None else trial.metrics.get(main, -math.inf)
        return -math.inf if math.isnan(value) else value

    return sorted(front, key=rank, reverse=True)


def _cell(metrics: dict[str, float], name: str, shown: Format) -> str:
    return shown(metrics[name]) if name in metrics else MISSING
