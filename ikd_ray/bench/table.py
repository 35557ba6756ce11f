"""A run of the benchmark for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from ikd_ray.bench.results import Report
from ikd_ray.formatting import MISSING

WIDTH = 120  # of tables in a file
NOTES = (
    "s/layer: seconds by the layers passed forward and backward. x NAME: so many times faster than NAME's epoch, "
    "which does the work of id (all layers and the classification at once), or of teacher. / floor: seconds by the "
    "floor's, the layers' matrix products at torch.mm's peak; / exact: by those that the losses need (behind the "
    "top layer's attention just [CLS]'s), at the machine's own peak."
)


def _terminal(file: IO[str]) -> Console:
    width = None if file.isatty() else WIDTH
    return Console(file=file, markup=False, highlight=False, emoji=False, width=width)


def show(report: Report, file: IO[str]) -> None:
    """Everything measured."""
    terminal = _terminal(file)
    terminal.print()
    terminal.print(_rows(report))
    terminal.print(NOTES, style="dim")
    terminal.print()
    terminal.print(_facts(report))


def _rows(report: Report) -> Table:
    others = list(dict.fromkeys(name for row in report.rows for name in row.faster_than))
    columns = ["s/epoch", "s/layer", "evaluation s", *(f"x {name}" for name in others), "/ floor", "/ exact"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("an epoch of")
    for column in columns:
        table.add_column(column, justify="right")
    for row in report.rows:
        measured = [row.seconds, row.seconds_per_layer, row.evaluation_s]
        compared = [*map(row.faster_than.get, others), row.over_floor, row.over_exact_floor]
        table.add_row(row.name, *map(_number, measured + compared))
    return table


def _facts(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    together, memory = report.concurrency, report.memory
    peaks = ", ".join(f"{name} {mib:.0f}" for name, mib in memory.peak_above_idle.items())
    facts = {
        "data": report.data,
        "examples, tokens": f"{report.examples:,}, {report.tokens:,}; batches of {report.batch_size}",
        "teacher, student": f"{report.teacher}, {report.student_layers} layers",
        "threads, cores": f"{report.threads}, {report.cores}; load before the run {_number(report.load_before)} "
        "(times are right where that is near 0)",
        "matrix products": "; ".join(_peaks(report)) + " (at the start, at the end)",
        "padding": f"{report.padding_of_plan:.1%} of the tokens, {report.padding_of_random:.1%} in random batches",
        "targets": f"{report.store.seconds:.1f} s to build, {report.store.bytes / 1e6:.1f} MB",
        "memory": f"{max(memory.peak_above_idle.values()):.0f} MiB above an idle worker's {memory.idle:.0f} "
        f"({peaks})",
        f"{together.trials} trials, id": f"at once {together.at_once_s:.2f} s with {together.threads_each} "
        f"threads each, in turn {together.in_turn_s:.2f} s with {report.threads}: {together.gain:.2f} times",
    }
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table


def show_sweeps(results: Sequence[Any], file: IO[str]) -> None:
    """Dataclasses of one kind, a column each."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    columns = [asdict(result) for result in results]
    for name in columns[0]:
        table.add_row(name, *(_text(column[name]) for column in columns))
    _terminal(file).print(table)


def _peaks(report: Report) -> Iterator[str]:
    for name, at_start in report.gflops_at_start.items():
        start, end = max(at_start.values()), max(report.gflops_at_end[name].values())
        yield f"{name} {start:.0f}, {end:.0f} GFLOP/s"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _text(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
