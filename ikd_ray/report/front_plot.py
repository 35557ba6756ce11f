"""The drawing of a Pareto front: pareto.png by matplotlib, and the page's interactive figure by plotly."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from ikd_ray.analysis.dataframes import trials_frame
from ikd_ray.analysis.objectives import Objectives, finished_with, plotted_objectives
from ikd_ray.analysis.pareto import front_candidates
from ikd_ray.formatting import GENERATED_WARNING, clean
from ikd_ray.records import Direction, SweepRecord, TrialRecord
from ikd_ray.report.style import (
    DPI,
    FRAME,
    GRID,
    INK,
    MUTED,
    PLOTLY_SYMBOLS,
    RED,
    axis_label,
    by_regime,
    decorate,
)

if TYPE_CHECKING:  # both take a while to import, and pareto.png needs neither
    import pandas as pd
    import plotly.graph_objects as go

SIZE_INCHES = (8.8, 5.6)
LABEL_PLACES = (
    (-7, 7, "right", "bottom"),
    (7, -7, "left", "top"),
    (-7, 20, "right", "bottom"),
    (7, -20, "left", "top"),
    (-7, 33, "right", "bottom"),
)
"""Places of a label in the order of preference: points to the right of its marker and above it, alignments."""

COSTS = {"student/params": "parameters", "student/size_mb": "size", "student/latency_ms": "latency"}
"""Horizontal metrics of the interactive figure, and the text of their buttons."""


class _View:
    """Trials, their Pareto front and the teacher against two metrics, in the units of the axis labels."""

    def __init__(
        self,
        trials: Sequence[TrialRecord],
        front: Sequence[TrialRecord],
        objectives: Objectives,
        teacher_metrics: Mapping[str, float],
    ) -> None:
        """Arrange those of the ended trials that have the metrics of `objectives`: the horizontal and the vertical one.

        `front` has the members of the sweep's own front, which may have other objectives.
        """
        (x, self.x_direction), *_, (y, _) = [*objectives.items()] * 2
        (self.x_label, x_unit), (self.y_label, y_unit) = axis_label(x), axis_label(y)
        shown = finished_with(trials, objectives)
        frame = trials_frame(shown).reindex(columns=["regime", "depth", *objectives])
        on_front = frame.index.isin([trial.id for trial in front])
        self.points = frame.assign(x=frame[x] / x_unit, y=frame[y] / y_unit, on_front=on_front)
        steps = [values for _, values in front_candidates(shown, objectives)]
        self.steps = sorted((values[x] / x_unit, values[y] / y_unit) for values in steps)
        self.teacher = (teacher_metrics.get(x, math.nan) / x_unit, teacher_metrics.get(y, math.nan) / y_unit)


def pareto_png(sweep: SweepRecord, trials: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> bytes:
    """Draw the ended trials by regime, the front as labelled steps, and the teacher as a line.

    `plotted_objectives` chooses the axes.
    """
    view = _View(trials, front, plotted_objectives(sweep.objectives), sweep.teacher["metrics"])
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.165, 0.885, 0.625 if sweep.data["generated"] else 0.69))
    decorate(axes, view.x_label, view.y_label, size=10.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.labelpad = 7
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    _draw_trials(axes, view)
    _draw_teacher(axes, view, sweep.teacher["name"])
    axes.margins(x=0.15, y=0.13)
    _draw_steps(axes, view)
    members = [trial.id for trial in front if trial.id in view.points.index]
    _draw_labels(axes, canvas, view.points.loc[members])
    if len(view.points):
        # Below the axes: inside, it would hide trials.
        legend = {"frameon": False, "fontsize": 9.5, "labelcolor": INK, "handletextpad": 0.5}
        figure.legend(loc="lower center", ncols=7, **legend)
    else:
        axes.text(0.5, 0.5, "no finished trial", transform=axes.transAxes, ha="center", color=MUTED)
    _draw_heading(figure, sweep, len(trials), len(front))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_trials(axes: Axes, view: _View) -> None:
    """Draw members of the front opaque with a dark rim, and the others pale, so that overlapping ones still show."""
    for regime, style, group in by_regime(view.points):
        for on_front in (False, True):
            points = group[group["on_front"] == on_front]
            axes.scatter(
                points["x"],
                points["y"],
                s=78 if on_front else 46,
                c=style.colour,
                marker=style.marker,
                alpha=1.0 if on_front else 0.55,
                edgecolors=INK if on_front else "white",
                linewidths=1.3 if on_front else 0.6,
                zorder=4 if on_front else 3,
            )
        axes.scatter([], [], s=52, c=style.colour, marker=style.marker, label=regime)


def _draw_steps(axes: Axes, view: _View) -> None:
    """Draw the best value that is to be had at each size."""
    if not view.steps:
        return
    low, high = axes.get_xlim()
    # A smaller student also serves where a larger one would: the line goes on to the edge on that side.
    if view.x_direction == "min":
        points, where = [*view.steps, (high, view.steps[-1][1])], "post"
    else:
        points, where = [(low, view.steps[0][1]), *view.steps], "pre"
    line: dict[str, Any] = {"where": where, "color": INK, "linewidth": 1.5, "zorder": 2}
    axes.step(*zip(*points, strict=True), **line, label="Pareto front")
    axes.set_xlim(low, high)


def _draw_teacher(axes: Axes, view: _View, name: str) -> None:
    x, y = view.teacher
    if not math.isfinite(y):
        return
    axes.axhline(y, color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
    if math.isfinite(x):
        axes.scatter([x], [y], s=150, c=MUTED, marker="*", zorder=4)
    axes.annotate(
        f"teacher {textwrap.shorten(clean(name), 48, placeholder='...')}: {y:.4g}",
        (0.004, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
    )


def _draw_labels(axes: Axes, canvas: FigureCanvasAgg, members: pd.DataFrame) -> None:
    """Write depth and short id beside each member of the front, at the first place that is free."""
    renderer = canvas.get_renderer()
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]  # the teacher's
    taken = [artist.get_window_extent(renderer) for artist in (*axes.texts, *lines)]
    inside = axes.get_window_extent(renderer)
    for point in members.itertuples():
        text = axes.annotate(
            f"{point.depth}L {point.Index[:8]}",
            (point.x, point.y),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=8.5,
            color=INK,
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        for right, up, horizontal, vertical in LABEL_PLACES:
            text.set(position=(right, up), horizontalalignment=horizontal, verticalalignment=vertical)
            box = text.get_window_extent(renderer)
            if inside.x0 < box.x0 and box.x1 < inside.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _draw_heading(figure: Figure, sweep: SweepRecord, trials: int, members: int) -> None:
    top = 0.955
    if sweep.data["generated"]:
        top = 0.9
        figure.add_artist(Rectangle((0, 0.935), 1, 0.065, facecolor=RED, transform=figure.transFigure))
        font: dict[str, Any] = {"color": "white", "fontsize": 12.5, "weight": "bold"}
        figure.text(0.5, 0.966, GENERATED_WARNING, ha="center", va="center", **font)
    title = textwrap.shorten(clean(f"{sweep.task}: sweep {sweep.name}"), 75, placeholder="...")
    counts = f"{trials} trial{'s' * (trials != 1)}, {members} on the front"
    about = textwrap.shorten(clean(f"{counts} | {sweep.data['description']}"), 105, placeholder="...")
    figure.text(0.085, top, title, va="top", color=INK, fontsize=14, weight="bold")
    figure.text(0.085, top - 0.058, about, va="top", color=MUTED, fontsize=9.5)


def interactive_front(
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    objective: tuple[str, Direction],
    teacher_metrics: Mapping[str, float],
    baseline: TrialRecord | None,
    hover: Mapping[str, str],
) -> go.Figure:
    """Draw the same in plotly, with a button for each of `COSTS`; plotly shows one set of traces at a time.

    Args:
        trials: finished trials that have the objective.
        front: the members of the front.
        objective: the vertical metric and its direction.
        teacher_metrics: the teacher's values, as far as they are known.
        baseline: the trial that is ringed, and whose objective is a line.
        hover: trial id -> text beside the pointer, in plotly's HTML; "teacher" -> the teacher's text.
    """
    import plotly.graph_objects as go

    metric, direction = objective
    figure = go.Figure()
    costs, cost_of_trace = [], []
    for cost in COSTS:
        view = _View(trials, front, {cost: "min", metric: direction}, teacher_metrics)
        if len(view.points):
            costs.append(cost)
            for trace in _traces(view, baseline, hover):
                trace.visible = cost == costs[0]
                figure.add_trace(trace)
                cost_of_trace.append(cost)
    teacher = teacher_metrics.get(metric, math.nan)
    standard = baseline.metrics[metric] if baseline else -math.inf
    # Each line's text is on its outer side, so that the two stay apart.
    below, above = "bottom left", "top left"
    upper = standard >= teacher
    _line(figure, teacher, "dash", "teacher", below if upper else above)
    _line(figure, standard, "dot", "baseline: best kd", above if upper else below)
    buttons = []
    for cost in costs:
        shown, title = [other == cost for other in cost_of_trace], axis_label(cost)[0]
        change = [{"visible": shown}, {"xaxis.title.text": title}]
        buttons.append({"label": COSTS[cost], "method": "update", "args": change})
    _lay_out(figure, axis_label(costs[0])[0] if costs else "", axis_label(metric)[0], buttons)
    return figure


def _traces(view: _View, baseline: TrialRecord | None, hover: Mapping[str, str]) -> Iterator[go.Scatter]:
    """Iterate over the steps of the front, each regime's trials, the baseline's ring and the teacher's star."""
    import plotly.graph_objects as go

    x, y = zip(*view.steps, strict=True)
    line = {"shape": "hv", "color": INK, "width": 1.6}
    # The steps come first, so that no trial is below them.
    yield go.Scatter(x=x, y=y, mode="lines", line=line, name="front of these two", hoverinfo="skip")
    for regime, style, group in by_regime(view.points):
        on_front = list(group["on_front"])
        yield go.Scatter(
            x=list(group["x"]),
            y=list(group["y"]),
            text=[hover[trial] for trial in group.index],
            mode="markers",
            name=regime,
            marker={
                "symbol": PLOTLY_SYMBOLS[style.marker],
                "color": style.colour,
                "size": [13 if member else 10 for member in on_front],
                "opacity": [1.0 if member else 0.6 for member in on_front],
                "line": {"color": [INK if member else "white" for member in on_front], "width": 1.5},
            },
            hovertemplate="%{text}<extra></extra>",
        )
    if baseline is not None and baseline.id in view.points.index:
        point = view.points.loc[baseline.id]
        ring = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}}
        about: dict[str, Any] = {"name": "baseline: best kd", "hoverinfo": "skip"}
        yield go.Scatter(x=[point["x"]], y=[point["y"]], mode="markers", marker=ring, **about)
    if all(map(math.isfinite, view.teacher)):
        star = {"symbol": "star", "size": 15, "color": MUTED}
        about = {"text": [hover["teacher"]], "hovertemplate": "%{text}<extra></extra>", "name": "teacher"}
        yield go.Scatter(x=[view.teacher[0]], y=[view.teacher[1]], mode="markers", marker=star, **about)


def _line(figure: go.Figure, value: float, dash: str, label: str, place: str) -> None:
    if math.isfinite(value):
        note = {"text": f"{label}: {value:.3f}", "font": {"color": MUTED, "size": 12}}
        line = {"color": MUTED, "width": 1.3, "dash": dash}
        figure.add_hline(y=value, line=line, annotation=note, annotation_position=place, layer="below")


def _lay_out(figure: go.Figure, x_label: str, y_label: str, buttons: list[dict[str, Any]]) -> None:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": FRAME, "showline": True, "automargin": True}
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True, "active": 0}
    menu |= {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "pad": {"b": 4}}
    figure.update_layout(
        template="none",
        font={"color": INK, "family": "system-ui, sans-serif"},
        height=520,
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        xaxis=axis | {"title": {"text": x_label}},
        yaxis=axis | {"title": {"text": y_label}},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0},
        updatemenus=[menu],
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"color": INK}},
        hovermode="closest",
    )
