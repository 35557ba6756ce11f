"""Tables of the Pareto front and of exported files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from ikd_ray.analysis.objectives import LATENCY, dev_metric, metric_on_test, task_metric
from ikd_ray.analysis.teacher_comparison import compare_with_teacher
from ikd_ray.export.model_card import ExportedFiles
from ikd_ray.formatting import MISSING, clean, decimal, number, short_name
from ikd_ray.records import SweepRecord, TrialRecord

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


def front_table(front: Sequence[TrialRecord], sweep: SweepRecord) -> Table:
    """Return a table of the front's students below their teacher, the best first.

    Arrows mark the objectives, and `~` marks latencies that contradict those of other depths.
    """
    objectives, main = sweep.objectives, task_metric(sweep.objectives, sweep.teacher["metrics"])
    columns: dict[str, tuple[str, Format]] = {}
    if main:
        columns[main] = (short_name(main), decimal)
        columns[dev_metric(main)] = (short_name(dev_metric(main)), decimal)
        on_test = metric_on_test(main)
        if any(
            on_test in metrics for metrics in (sweep.teacher_metrics, *(trial.metrics for trial in front))
        ):
            columns[on_test] = (short_name(on_test).replace(" ", "\n"), decimal)
    columns |= _METRICS
    columns |= {name: (short_name(name), number) for name in objectives if name not in columns}

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("regime")
    table.add_column("layers", justify="right")
    for name, (heading, _) in columns.items():
        arrow = ARROWS.get(objectives.get(name, ""), "")
        table.add_column(Text(f"{heading} {arrow}".rstrip()), justify="right")
    table.add_column("trial", overflow="fold")

    def cells(metrics: Mapping[str, float], layers: object) -> list[str]:
        found = {name: _cell(metrics, name, form) for name, (_, form) in columns.items()}
        if layers in sweep.doubtful_latencies and found[LATENCY] != MISSING:
            found[LATENCY] = f"~{found[LATENCY]}"
        return list(found.values())

    layers = sweep.teacher.get("layers", MISSING)
    table.add_row("teacher", str(layers), *cells(sweep.teacher_metrics, layers), "", style="dim")
    for trial in sort_by_metric(front, main):
        layers = trial.params.get("student_layers", MISSING)
        row = [clean(trial.params.get("regime", MISSING)), clean(layers), *cells(trial.metrics, layers)]
        table.add_row(*map(Text, [*row, clean(trial.id)]))
    return table


def comparison_lines(front: Sequence[TrialRecord], sweep: SweepRecord) -> list[str]:
    """Return how each of the front's students compares with the teacher, the best one first."""
    main = task_metric(sweep.objectives, sweep.teacher["metrics"])
    return [str(compare_with_teacher(trial, sweep)) for trial in sort_by_metric(front, main)]


def sort_by_metric(front: Sequence[TrialRecord], metric: str | None) -> list[TrialRecord]:
    """Return trials by a metric, the highest first and those without it last."""
    return sorted(front, key=lambda trial: _rank(trial, metric), reverse=True)


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
            cells = [
                clean(trial),
                file.file.rpartition("/")[2],
                *metrics,
                f"{file.size_mb:.1f}",
                f"{file.latency_ms:.1f}",
            ]
            table.add_row(*map(Text, cells))
        table.add_section()
    return table


def _cell(metrics: Mapping[str, float], name: str, form: Format) -> str:
    return form(metrics[name]) if name in metrics else MISSING
