"""Regimes side by side at equal depth: means over trials, and their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ikd_ray.analysis.comparison import RegimeCell, regime_cells
from ikd_ray.analysis.sweep_analysis import AGREEMENT, ATTENTION_KL, SweepAnalysis
from ikd_ray.config import sort_regimes
from ikd_ray.formatting import MISSING, clean
from ikd_ray.report.components import (
    Part,
    Picture,
    Section,
    Table,
    View,
    format_interval,
    format_number,
    num_layers,
)
from ikd_ray.report.style import (
    WIDE,
    axis_label,
    decorate,
    fit_axis,
    legend_below,
    new_figure,
    regime_style,
    teacher_line,
)

STEP = 0.18  # distance of two regimes of equal depth, in layers

SPREAD_OF_TRIALS = (
    "Mean and, after the sign ±, the standard deviation of the sample, for each regime and depth. "
    "Where n counts seeds, the trials differ in their seeds alone and the spread is the noise of training; "
    "where it counts trials, they differ in what was searched too, and the spread is mostly the search's."
)
SPREAD_OF_SEEDS = (
    "Mean and, after the sign ±, how sure it is or how far the trials spread, for each regime and depth. Where n "
    "counts seeds, the trials differ in their seeds alone: ± is half the width of the mean's 95% interval "
    "(Student's t), the noise of training. Where it counts trials, they differ in what was searched too: ± is the "
    "standard deviation of the sample, mostly the search's."
)

Cells = Mapping[tuple[int, str], RegimeCell]


def regimes_section(analysis: SweepAnalysis) -> Section:
    """Return the section that compares regimes at equal depth."""
    cells = regime_cells(analysis)
    regimes = sort_regimes([regime for _, regime in cells])
    repeated = [cell for cell in cells.values() if len(cell.runs) > 1]
    has_seeds = any(cell.same_configuration for cell in repeated)
    text = SPREAD_OF_SEEDS if has_seeds else SPREAD_OF_TRIALS
    if not repeated:
        text += (
            " Here no regime has more than one trial at a depth, so there is no spread, and no result either."
        )
    metrics = (analysis.metric, ATTENTION_KL, AGREEMENT)
    groups = [
        (
            num_layers(depth),
            [_row(regime, cells[depth, regime], metrics) for regime in regimes if (depth, regime) in cells],
        )
        for depth in sorted({depth for depth, _ in cells})
    ]
    header = ("regime", clean(analysis.metric), "attention KL (nats)", "agrees with teacher", "n")
    score, layers = format_number(analysis.teacher_score), analysis.sweep.teacher["layers"]
    teacher = ("", [("teacher", score, MISSING, MISSING, num_layers(layers))])
    table = Table("Regimes at equal depth.", header, [teacher, *groups])
    parts: list[Part] = [table, _picture(analysis, cells, regimes, metrics, has_seeds)]
    return Section("regimes", "Regimes at equal depth", [text], parts)


def _row(regime: str, cell: RegimeCell, metrics: Sequence[str]) -> list[str]:
    count = len(cell.runs)
    unit = "" if count == 1 else " seeds" if cell.same_configuration else " trials"
    return [regime, *(format_interval(cell.interval(metric)) for metric in metrics), f"{count}{unit}"]


def _picture(
    analysis: SweepAnalysis, cells: Cells, regimes: Sequence[str], metrics: Sequence[str], has_seeds: bool
) -> Picture:

    def draw(width: float) -> Figure:
        if width == WIDE:
            figure = new_figure(width, 3.6)
            panels = figure.subplots(1, 3)
        else:
            figure = new_figure(width, 7.5)
            panels = figure.subplots(3, 1)
        for axes, metric in zip(panels, metrics, strict=True):
            teacher = analysis.teacher_score if metric == analysis.metric else math.nan
            _draw_panel(axes, cells, regimes, metric, teacher)
        legend_below(figure)
        return figure

    bars = "one standard deviation to each side,"
    if has_seeds:
        bars = "the 95% interval of the mean over seeds, or, of trials that differ in more, one standard deviation,"
    return Picture(
        "regimes",
        "Means and spread of the regimes",
        f"Large markers: means over the trials of a regime at a depth; bars: {bars} "
        f"where there are two trials or more; small markers: the trials themselves ({len(analysis.finished)}).",
        f"Three panels over student layers: {', '.join(axis_label(metric)[0] for metric in metrics)}, "
        f"for the regimes {', '.join(regimes)}. The table has the numbers.",
        [View.of(draw)],
    )


def _draw_panel(axes: Axes, cells: Cells, regimes: Sequence[str], metric: str, teacher: float) -> None:
    decorate(axes, "Student layers", axis_label(metric)[0])
    shown = [teacher]
    for regime in regimes:
        style = regime_style(regime)
        own = {_place(cells, regimes, *key): cell for key, cell in sorted(cells.items()) if key[1] == regime}
        for place, cell in own.items():
            values = cell.values(metric)
            interval = cell.interval(metric)
            half = np.nan_to_num(interval.half_width)
            shown += [*values, interval.mean - half, interval.mean + half]
            dots: dict[str, Any] = {"c": style.colour, "marker": style.marker, "alpha": 0.5, "linewidths": 0}
            axes.scatter([place] * len(values), values, s=9, **dots)
        intervals = [cell.interval(metric) for cell in own.values()]
        axes.errorbar(
            list(own),
            [interval.mean for interval in intervals],
            yerr=np.nan_to_num([interval.half_width for interval in intervals]),
            color=style.colour,
            marker=style.marker,
            markersize=6,
            linestyle="none",
            elinewidth=1.3,
            capsize=2.5,
            label=regime,
        )
    teacher_line(axes, teacher)
    fit_axis(axes.yaxis, shown)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    depths = [depth for depth, _ in cells]
    axes.set_xlim(min(depths) - 0.6, max(depths) + 0.6)


def _place(cells: Cells, regimes: Sequence[str], depth: int, regime: str) -> float:
    """Return the horizontal place of a regime: beside the other regimes of its depth."""
    beside = [other for other in regimes if (depth, other) in cells]
    return depth + STEP * (beside.index(regime) - (len(beside) - 1) / 2)
