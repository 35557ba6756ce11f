"""Methods against depth and against the size of the training set: means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ikd_ray.analysis.comparison import Comparison, Curve, curve_over, group_names
from ikd_ray.analysis.intervals import Interval
from ikd_ray.analysis.sweep_analysis import ATTENTION_KL, SweepAnalysis
from ikd_ray.formatting import clean
from ikd_ray.report.components import Part, Picture, Table, View, format_interval, num_layers
from ikd_ray.report.sections.methods import INTERVAL_MEANING, group_styles, short_method
from ikd_ray.report.style import (
    WIDE,
    LineStyle,
    axis_label,
    decorate,
    legend_below,
    legend_label,
    new_figure,
    teacher_line,
)

IntervalOf = Callable[[Comparison, str], Interval]

MAX_VALUES = 24  # of an axis; with more, the parameter was searched rather than compared


def percent(share: float) -> str:
    """Return a share as `12.5 %`."""
    return f"{100 * share:.3g} %"


@dataclass(frozen=True)
class CurveAxis:
    """The parameter that a curve is drawn over, and the one that is fixed along it."""

    name: str
    title: str
    label: str
    column: str  # of the frame of trials
    text: Callable[[float], str]  # of a value
    fixed_column: str
    fixed_text: Callable[[float], str]
    is_log: bool = False


DEPTH = CurveAxis(
    "depth", "What a layer is worth", "Student layers", "depth", num_layers, "train_fraction",
    lambda share: f"{percent(share)} of the training set",
)  # fmt: skip
DATA_SIZE = CurveAxis(
    "data-size", "What an example is worth", "Share of the training set (%)", "train_fraction", percent, "depth",
    num_layers, is_log=True,
)  # fmt: skip


def curve_parts(analysis: SweepAnalysis, axis: CurveAxis) -> list[Part]:
    """Return the figure and the table over an axis; nothing where it has one value, or too many."""
    curve = curve_over(analysis, axis.column, axis.fixed_column, MAX_VALUES)
    if curve is None:
        return []
    names = group_names(analysis, curve.runs)
    note = "" if curve.is_only_fixed else f" All with {axis.fixed_text(curve.fixed)}."
    return [_picture(analysis, axis, curve, names, note), _table(analysis, axis, curve, names, note)]


def _table(analysis: SweepAnalysis, axis: CurveAxis, curve: Curve, names: Sequence[str], note: str) -> Table:
    def rows(interval: IntervalOf, names: Sequence[str], spec: str = ".3f") -> list[list[str]]:
        return [
            [
                short_method(name),
                *(format_interval(interval(at, name), spec) for at in curve.comparisons.values()),
            ]
            for name in names
        ]

    metric, baseline = analysis.metric, curve.baseline
    groups = [(clean(metric), rows(lambda at, name: at.interval(name, metric), names))]
    others = [name for name in names if name != baseline]
    if baseline and others:
        heading = f"{clean(metric)}, difference to {short_method(baseline)}, paired by seed"
        groups.append((heading, rows(lambda at, name: at.difference(name, baseline, metric), others, "+.3f")))
    groups.append(("attention KL (nats)", rows(lambda at, name: at.interval(name, ATTENTION_KL), names)))
    counts = curve.runs.groupby(["group", axis.column]).size()
    seeds = str(counts.min()) if counts.nunique() == 1 else f"{counts.min()} to {counts.max()}"
    caption = f"Means over the seeds of each method's best configuration ({seeds} of each). {INTERVAL_MEANING}{note}"
    return Table(caption, ["method", *map(axis.text, curve.comparisons)], groups, axis.name)


def _picture(
    analysis: SweepAnalysis, axis: CurveAxis, curve: Curve, names: Sequence[str], note: str
) -> Picture:
    styles = group_styles(analysis)

    def draw(width: float) -> Figure:
        if width == WIDE:
            figure = new_figure(width, 4.2 + 0.25 * (len(names) // 3))
            panels = figure.subplots(1, 2)
        else:
            figure = new_figure(width, 5.4 + 0.22 * len(names))
            panels = figure.subplots(2, 1)
        for axes, metric in zip(panels, (analysis.metric, ATTENTION_KL), strict=True):
            decorate(axes, axis.label, axis_label(metric)[0])
            for name in names:
                compared = curve.comparisons_of(name).items()
                intervals = {value: at.interval(name, metric) for value, at in compared}
                _draw_line(axes, intervals, styles[name], short_method(name))
        teacher = f"teacher ({num_layers(analysis.sweep.teacher['layers'])})"
        teacher_line(panels[0], analysis.teacher_score, teacher)
        for axes in panels:
            _set_ticks(axes, axis, list(curve.comparisons))
        legend_below(figure, panels[:1])
        return figure

    caption = (
        f"Lines: means over the seeds of each method's best configuration at each {axis.name.replace('-', ' ')}; "
        f"bands: the 95% interval of the mean, where there are two seeds or more.{note}"
    )
    measure = axis_label(analysis.metric)[0]
    shown = ", ".join(map(short_method, names))
    alt = f"Two panels of lines, {measure} and attention KL, for {shown}. The table has the numbers."
    return Picture(axis.name, axis.title, caption, alt, [View.of(draw)])


def _draw_line(axes: Axes, intervals: Mapping[float, Interval], style: LineStyle, label: str) -> None:
    values = list(intervals)
    means = np.array([interval.mean for interval in intervals.values()])
    halves = np.array([interval.half_width for interval in intervals.values()])
    axes.fill_between(values, means - halves, means + halves, color=style.colour, alpha=0.13, linewidth=0)
    look = {"linewidth": 1.6, "markersize": 5.5, **style.marker_style}
    axes.plot(values, means, linestyle=style.line, label=legend_label(label), **look)
    neighbours = zip([np.nan, *halves[:-1]], [*halves[1:], np.nan], strict=True)
    for value, mean, half, beside in zip(values, means, halves, neighbours, strict=True):
        if np.isfinite(half) and np.isnan(beside).all():  # a band needs two values
            axes.errorbar([value], [mean], yerr=[half], color=style.colour, elinewidth=1.3, capsize=2.5)


def _set_ticks(axes: Axes, axis: CurveAxis, values: list[float]) -> None:
    if not axis.is_log:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}"))
