"""Comparison of measured epochs with the floor and with each other, and the tables that show it.

The floor is the time of an epoch's matrix products at a peak speed. A weight that is passed forward and backward costs
6 floating-point operations per token: 2 forward, 2 for the gradient of its input, 2 for its own. The layers from the
lowest that trains to the highest that a loss needs are counted; padding, embeddings, the head and attention's own
products are not.

- The plain floor passes every token through all of these layers, at the peak of `torch.mm`.
- The exact floor takes the fastest products that the machine shows and counts only what the losses need. They use the
  top layer's attention and its [CLS] output: behind query, key and value one token per example suffices. (Without
  attention losses one query would do, which is not counted.) A constant input needs no gradient.

A loop that exploits any of this can be faster than the plain floor.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from ikd_ray.formatting import MISSING

PROJECTIONS = ("query", "key", "value", "q_lin", "k_lin", "v_lin")
PASSES = 6  # floating-point operations per weight and token, forward and backward
WIDTH = 120  # of tables in a file
NOTES = (
    "s/layer: seconds by the layers passed forward and backward. x NAME: so many times faster than NAME's epoch, "
    "which does the work of id (all layers and the classification at once), or of teacher. / floor: seconds by the "
    "floor's, the layers' matrix products at torch.mm's peak; / exact: by those that the losses need (behind the "
    "top layer's attention just [CLS]'s), at the machine's own peak in the precision of training: its inverse is the "
    "share of that peak."
)


@dataclass(frozen=True)
class Timing:
    """Seconds of an epoch: training, and the evaluation after it."""

    name: str
    seconds: float
    layers: float  # passed forward and backward
    evaluation_s: float | None = None


@dataclass(frozen=True)
class Work:
    """Matrix products of an epoch: weights of one layer; tokens (without padding) and examples of the data."""

    projections: int  # weights of query, key and value
    rest: int  # weights of the other matrices
    tokens: int
    examples: int

    def flops(self, layers: float, constant_input: bool) -> tuple[float, float]:
        """Return the floating-point operations of the plain and of the exact floor.

        Args:
            layers: number of layers passed, at least one.
            constant_input: whether the input of the lowest layer needs no gradient.
        """
        layer = PASSES * (self.projections + self.rest) * self.tokens
        top = PASSES * (self.projections * self.tokens + self.rest * self.examples)
        saved = 2 * self.projections * self.tokens if constant_input else 0
        return layers * layer, (layers - 1) * layer + top - saved


def layer_weights(layer: nn.Module) -> tuple[int, int]:
    """Return the number of weights of an encoder layer's query, key and value, and of its other matrices."""
    matrices = {name: weight.numel() for name, weight in layer.named_parameters() if weight.ndim >= 2}
    projections = sum(count for name, count in matrices.items() if name.split(".")[-2] in PROJECTIONS)
    return projections, sum(matrices.values()) - projections


def mean_of_stages(name: str, stages: Sequence[Timing]) -> Timing:
    """Return the mean epoch of stages that have equally many epochs."""
    columns = zip(*((stage.seconds, stage.layers, stage.evaluation_s) for stage in stages), strict=True)
    return Timing(name, *map(statistics.mean, columns))


def compare(
    timings: Sequence[Timing],
    others: Sequence[Timing],
    constant_input: bool,
    work: Work,
    gflops: tuple[float, float],
) -> list[dict[str, Any]]:
    """Return a row per timing, compared with the floors and with each of the others, then a row per other.

    Args:
        timings: this project's.
        others: those of other programs that do the same work.
        constant_input: whether the embeddings are frozen in `timings`; in `others` they train.
        work: of an epoch.
        gflops: peak speeds of the plain and of the exact floor.

    Returns:
        Rows of the JSON document; values are None where there is nothing to compare with. `over_floor` is the
        seconds divided by the floor's, `faster_than` another row's seconds divided by this one's.
    """
    rows = [_compare(timing, work, gflops, constant_input, others) for timing in timings]
    return rows + [_compare(other, work, gflops, False, ()) for other in others]


def _compare(
    timing: Timing, work: Work, gflops: tuple[float, float], constant_input: bool, others: Sequence[Timing]
) -> dict[str, Any]:
    layers, seconds = timing.layers, timing.seconds
    per_layer = over_plain = over_exact = None
    if layers:
        flops = work.flops(layers, constant_input)
        per_layer = seconds / layers
        over_plain, over_exact = (
            peak * 1e9 * seconds / floor for peak, floor in zip(gflops, flops, strict=True)
        )
    return {
        "name": timing.name,
        "seconds": seconds,
        "seconds_per_layer": per_layer,
        "evaluation_s": timing.evaluation_s,
        "over_floor": over_plain,
        "over_exact_floor": over_exact,
        "faster_than": {other.name: other.seconds / seconds for other in others},
    }


def show_report(report: dict[str, Any], file: IO[str]) -> None:
    """Print the JSON document of a run as tables."""
    terminal = _terminal(file)
    terminal.print()
    terminal.print(_rows_table(report["rows"]))
    terminal.print(NOTES, style="dim")
    terminal.print()
    terminal.print(_facts_table(report))


def show_sweeps(results: list[dict[str, Any]], file: IO[str]) -> None:
    """Print documents with equal keys as the columns of a table."""
    table = _table(show_header=False)
    for name in results[0]:
        values = [result[name] for result in results]
        table.add_row(name, *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    _terminal(file).print(table)


def show_rows(rows: Sequence[Mapping[str, Any]], file: IO[str]) -> None:
    """Print documents with equal keys as the rows of a table."""
    table = _table(header_style="bold")
    for name, value in rows[0].items():
        is_text = isinstance(value, str)
        table.add_column(name, justify="left" if is_text else "right", no_wrap=is_text)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    _terminal(file).print(table)


def _rows_table(rows: list[dict[str, Any]]) -> Table:
    others = dict.fromkeys(name for row in rows for name in row["faster_than"])
    columns = {"s/epoch": "seconds", "s/layer": "seconds_per_layer", "evaluation s": "evaluation_s"}
    columns |= {f"x {name}": name for name in others}
    columns |= {"/ floor": "over_floor", "/ exact": "over_exact_floor"}
    table = _table(header_style="bold")
    table.add_column("an epoch of")
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        values = row | row["faster_than"]
        table.add_row(row["name"], *(_number(values.get(key)) for key in columns.values()))
    return table


def _facts_table(report: dict[str, Any]) -> Table:
    memory, store, workers = report["memory"], report["store"], report["workers"]
    peaks = memory["peak_above_idle"]
    speeds = (
        f"{name} {max(at_start.values()):.0f}, {max(report['gflops_at_end'][name].values()):.0f} GFLOP/s"
        for name, at_start in report["gflops_at_start"].items()
    )
    facts = {
        "device": report["device"],
        "data": report["data"],
        "examples, tokens": f"{report['examples']:,}, {report['tokens']:,}; batches of {report['batch_size']}",
        "teacher, student": f"{report['teacher']}, {report['student_layers']} layers; trained in "
        f"{report['precision']}",
        "threads, cores": f"{report['threads']}, {report['cores']}; load before the run "
        f"{_number(report['load_before'])} (times are right where that is near 0)",
        "matrix products": "; ".join(speeds) + " (at the start, at the end)",
        "padding": f"{report['padding_of_plan']:.1%} of the tokens, "
        f"{report['padding_of_random']:.1%} in random batches",
        "targets": f"{store['seconds']:.1f} s to build, {store['bytes'] / 1e6:.1f} MB",
        "memory": f"{max(peaks.values()):.0f} MiB above an idle worker's {memory['idle']:.0f} "
        f"({', '.join(f'{name} {mib:.0f}' for name, mib in peaks.items())})",
    }
    facts |= {
        f"{concurrency['trials']} trials, id": f"at once {concurrency['at_once_s']:.2f} s with "
        f"{concurrency['threads_each']} threads each, in turn {concurrency['in_turn_s']:.2f} s with "
        f"{report['threads']}: {concurrency['gain']:.2f} times"
        for concurrency in report["concurrency"]
    }
    if workers:
        facts[f"{workers['count']} workers, id"] = f"{workers['seconds']:.2f} s"
    table = _table(show_header=False)
    for fact in facts.items():
        table.add_row(*fact)
    return table


def _table(**options: Any) -> Table:
    return Table(box=None, padding=(0, 2, 0, 0), **options)


def _terminal(file: IO[str]) -> Console:
    width = None if file.isatty() else WIDTH
    return Console(file=file, markup=False, highlight=False, emoji=False, width=width)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
