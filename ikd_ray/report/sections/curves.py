"""Methods against depth and against the size of the training set: means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ikd_ray.analysis.comparison import Curve, by_seed, curve_over, group_names
from ikd_ray.analysis.intervals import paired_t_interval, t_interval
from ikd_ray.analysis.sweep_analysis import ATTENTION_KL, SweepAnalysis
from ikd_ray.formatting import MISSING, clean
from ikd_ray.report.components import Picture, Table, format_interval, num_layers
from ikd_ray.report.sections.methods import INTERVAL_MEANING, group_styles, short_method
from ikd_ray.report.style import LineStyle, axis_label, decorate, legend_below, new_figure, png, teacher_line

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

Cells = Mapping[str, Mapping[float, pd.DataFrame]]  # group -> value on the axis -> its runs


def curve_parts(analysis: SweepAnalysis, axis: CurveAxis) -> list[Picture | Table]:
    """Return the figure and the table over an axis; nothing where it has one value, or too many."""
    curve = curve_over(analysis, axis.column, axis.fixed_column, MAX_VALUES)
    if curve is None:
        return []
    cells = {
        name: dict(list(runs.groupby(axis.column)))
        for name in group_names(analysis, curve.runs)
        if len(runs := curve.runs[curve.runs["group"] == name])
    }
    note = "" if curve.is_only_fixed else f" All with {axis.fixed_text(curve.fixed)}."
    return [_picture(analysis, axis, cells, note), _table(analysis, axis, cells, curve, note)]


def _table(analysis: SweepAnalysis, axis: CurveAxis, cells: Cells, curve: Curve, note: str) -> Table:
    def rows(text: Callable[[pd.DataFrame, float], str], names: Iterable[str]) -> list[list[str]]:
        return [
            [short_method(name)]
            + [
                text(runs, value) if (runs := cells[name].get(value)) is not None else MISSING
                for value in curve.values
            ]
            for name in names
        ]

    def mean_of(metric: str) -> Callable[[pd.DataFrame, float], str]:
        return lambda runs, _: format_interval(t_interval(by_seed(runs, metric)))

    metric = analysis.metric
    groups = [
        (clean(metric), rows(mean_of(metric), cells)),
        ("attention KL (nats)", rows(mean_of(ATTENTION_KL), cells)),
    ]
    baseline = next((name for name, runs in cells.items() if all(map(_is_baseline, runs.values()))), None)
    others = [name for name in cells if name != baseline]
    if baseline and others:
        standard = {value: by_seed(runs, metric) for value, runs in cells[baseline].items()}

        def difference(runs: pd.DataFrame, value: float) -> str:
            compared = standard.get(value, pd.Series(dtype=float))
            return format_interval(paired_t_interval(by_seed(runs, metric), compared), "+.3f")

        heading = f"{clean(metric)}, difference to {short_method(baseline)}, paired by seed"
        groups.insert(1, (heading, rows(difference, others)))
    counts = sorted({len(runs) for of_group in cells.values() for runs in of_group.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    caption = f"Means over the seeds of each method's best configuration ({seeds} of each). {INTERVAL_MEANING}{note}"
    return Table(caption, ["method", *map(axis.text, curve.values)], groups, axis.name)


def _is_baseline(runs: pd.DataFrame) -> bool:
    """Return whether runs of one configuration are standard distillation by the teacher itself."""
    return bool(((runs["regime"] == "kd") & (runs["assistant_layers"] == 0)).all())


def _picture(analysis: SweepAnalysis, axis: CurveAxis, cells: Cells, note: str) -> Picture:
    figure = new_figure(8.8, 4.2 + 0.25 * (len(cells) // 3))
    panels = figure.subplots(1, 2)
    styles = group_styles(analysis)
    for axes, metric in zip(panels, (analysis.metric, ATTENTION_KL), strict=True):
        decorate(axes, axis.label, axis_label(metric)[0])
        for name, runs in cells.items():
            _draw_line(axes, runs, metric, styles[name], short_method(name))
    teacher_line(panels[0], analysis.teacher_score, f"teacher ({analysis.sweep.teacher['layers']} layers)")
    for axes in panels:
        _set_ticks(axes, axis, sorted({value for runs in cells.values() for value in runs}))
    legend_below(figure, 3, panels[:1])
    caption = (
        f"Lines: means over the seeds of each method's best configuration at each {axis.name.replace('-', ' ')}; "
        f"bands: the 95% interval of the mean, where there are two seeds or more.{note}"
    )
    names = ", ".join(map(short_method, cells))
    measure = axis_label(analysis.metric)[0]
    alt = f"Two panels of lines, {measure} and attention KL, for {names}. The table has the numbers."
    return Picture(axis.name, axis.title, caption, alt, png(figure), wide=True)


def _draw_line(
    axes: Axes, runs: Mapping[float, pd.DataFrame], metric: str, style: LineStyle, label: str
) -> None:
    values = list(runs)
    intervals = [t_interval(by_seed(of_value, metric)) for of_value in runs.values()]
    means = np.array([interval.mean for interval in intervals])
    halves = np.array([interval.half_width for interval in intervals])
    axes.fill_between(values, means - halves, means + halves, color=style.colour, alpha=0.13, linewidth=0)
    axes.plot(
        values, means, linestyle=style.line, linewidth=1.6, markersize=5.5, label=label, **style.marker_style
    )
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
