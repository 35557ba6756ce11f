"""Learning curves: the dev metric, and how good the probabilities or scores are, after each epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ikd_ray.analysis.dataframes import epochs_frame
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import clean, plural
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section, View, trial_title
from ikd_ray.report.style import (
    LAYER_MARKERS,
    LINE_COLOURS,
    WIDE,
    axis_label,
    decorate,
    fit_axis,
    legend_below,
    legend_label,
    new_figure,
    regime_style,
    teacher_line,
)

MAX_OTHERS = 100  # pale lines of trials that are not highlighted
MAX_LINES = 10
PALE = "#b6bcc8"


def learning_curves_section(analysis: SweepAnalysis) -> Section:
    """Return the section with the curves of the highlighted trials, and pale ones of the others.

    Raises:
        UnavailableError: no epoch has a dev metric.
    """
    frame = epochs_frame(analysis.finished)
    second = "dev/rmse" if analysis.task.is_regression else "dev/nll"
    metrics = [name for name in (analysis.metric, second) if name in frame and frame[name].notna().any()]
    if not metrics:
        raise UnavailableError("The records of this sweep's epochs have no dev metrics.")
    shown = analysis.highlighted[:MAX_LINES]
    others = [trial for trial in analysis.finished if trial not in shown][:MAX_OTHERS]

    def draw(width: float) -> Figure:
        return _draw(analysis, frame, metrics, shown, others, width)

    ends = "; ".join(_describe(analysis, frame, trial) for trial in shown)
    caption = (
        f"{' and '.join(axis_label(name)[0] for name in metrics)} after each epoch of all stages, for the front's "
        f"members and the best of each regime ({plural(len(shown), 'trial')})"
        + (f"; pale: {plural(len(others), 'other trial')}." if others else ".")
    )
    regimes = {trial.params["regime"] for trial in shown}
    if len(regimes) > 1:
        caption += " Dashes tell regimes apart."
    if regimes & {"pid", "sid"}:
        caption += " The internal stages of pid and sid do not train the answers: their metric moves in the last stage."
    alt = f"Line plot. The best epoch of each: {ends}."
    picture = Picture("learning-curves", "Dev metrics by epoch", caption, alt, [View.of(draw)])
    return Section("curves", "Learning curves", [], [picture])


def _describe(analysis: SweepAnalysis, frame: pd.DataFrame, trial: TrialRecord) -> str:
    """Return the epoch with the best dev metric, of how many."""
    values = _epochs(frame, trial)[analysis.metric] if analysis.metric in frame else pd.Series(dtype=float)
    known = values.dropna()
    if known.empty:
        return f"{trial_title(trial)} not known"
    best = known.idxmin() if analysis.direction(analysis.metric) == "min" else known.idxmax()
    return f"{trial_title(trial)} {best} of {len(values)} with {clean(analysis.metric)} {known[best]:.3f}"


def _epochs(frame: pd.DataFrame, trial: TrialRecord) -> pd.DataFrame:
    """Return a trial's rows, indexed by epoch."""
    return frame.loc[[trial.id]].set_index("epoch") if trial.id in frame.index else frame.iloc[:0]


def _draw(
    analysis: SweepAnalysis,
    frame: pd.DataFrame,
    metrics: Sequence[str],
    shown: Sequence[TrialRecord],
    others: Sequence[TrialRecord],
    width: float,
) -> Figure:
    count = len(metrics)
    if width == WIDE:
        figure = new_figure(width, 3.6 + 0.2 * math.ceil(len(shown) / 3))
        panels = figure.subplots(1, count, squeeze=False)[0]
    else:
        figure = new_figure(width, 2.5 * count + 0.22 * len(shown))
        panels = figure.subplots(count, 1, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        decorate(axes, "Epoch, over all stages", axis_label(metric)[0])
        _draw_lines(axes, frame, metric, shown, others)
        teacher = analysis.sweep.teacher["metrics"].get(metric, math.nan)
        teacher_line(axes, teacher)
        fit_axis(axes.yaxis, [*frame[metric], teacher])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure, panels[:1])
    return figure


def _draw_lines(
    axes: Axes, frame: pd.DataFrame, metric: str, shown: Sequence[TrialRecord], others: Sequence[TrialRecord]
) -> None:
    for trial in others:
        values = _epochs(frame, trial)[metric].dropna()
        axes.plot(values.index, values, color=PALE, linewidth=0.9, alpha=0.8, zorder=1)
    for place, trial in enumerate(shown):
        style = regime_style(trial.params["regime"])
        colour = LINE_COLOURS[place % len(LINE_COLOURS)]
        values = _epochs(frame, trial)[metric].dropna()
        line: dict[str, Any] = {"color": colour, "linestyle": style.line, "linewidth": 1.6, "zorder": 3}
        marker: dict[str, Any] = {"marker": LAYER_MARKERS[place % len(LAYER_MARKERS)], "markersize": 4.5}
        axes.plot(values.index, values, label=legend_label(trial_title(trial)), **line, **marker)
