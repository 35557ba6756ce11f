"""The picture of a sweep: every trial, and the front."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.analysis.pareto import front_candidates
from ikd_ray.formatting import GENERATED_WARNING, clean
from ikd_ray.records import Direction, SweepRecord, TrialRecord
from ikd_ray.report.style import DPI, INK, MUTED, RED, STYLES, axis_label, decorate, style_of

SIZE_INCHES = (8.8, 5.6)
# Where a label may sit: points to the right of and above its marker, alignments. The first is the front's
# empty side.
SPOTS = (
    (-7, 7, "right", "bottom"),
    (7, -7, "left", "top"),
    (-7, 20, "right", "bottom"),
    (7, -20, "left", "top"),
    (-7, 33, "right", "bottom"),
)


class _Axis(NamedTuple):
    metric: str
    direction: Direction
    label: str
    unit: float

    def of(self, metrics: dict[str, float]) -> float:
        """The shown value; nan where there is none."""
        return metrics.get(self.metric, math.nan) / self.unit


def pareto_png(sweep: SweepRecord, trials: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> bytes:
    """Draw accuracy against size: trials by regime, the front as labelled steps, the teacher as a line.

    The vertical axis is the first objective on dev or the held-out split (else the first one); the horizontal one is
    `student/params` if that is an objective or there is no other, else the first other objective.
    """
    x, y = _axes(sweep)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.165, 0.885, 0.625 if sweep.data["generated"] else 0.69))
    _decorate(axes, x, y)
    shown = [trial for trial in trials if trial.status == "finished" and _is_shown(trial, x, y)]
    _draw_trials(axes, shown, {trial.id for trial in front}, x, y)
    _draw_teacher(axes, sweep, x, y)
    axes.margins(x=0.15, y=0.13)
    _draw_steps(axes, shown, x, y)
    _label(axes, canvas, [trial for trial in front if _is_shown(trial, x, y)], x, y)
    if shown:
        # Below the axes: inside, it would hide trials.
        legend = {"frameon": False, "fontsize": 9.5, "labelcolor": INK, "handletextpad": 0.5}
        figure.legend(loc="lower center", ncols=7, **legend)
    else:
        axes.text(0.5, 0.5, "no finished trial", transform=axes.transAxes, ha="center", color=MUTED)
    _head(figure, sweep, len(trials), len(front))
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _axes(sweep: SweepRecord) -> tuple[_Axis, _Axis]:
    """The horizontal and the vertical axis."""
    names = list(sweep.objectives)
    vertical = main_metric(sweep.objectives)
    others = [name for name in names if name != vertical]
    size = "student/params"
    horizontal = size if size in others or not others else others[0]
    directions: dict[str, Direction] = {size: "min", **sweep.objectives}
    return _axis(horizontal, directions[horizontal]), _axis(vertical, directions[vertical])


def _axis(metric: str, direction: Direction) -> _Axis:
    return _Axis(metric, direction, *axis_label(metric))


def _is_shown(trial: TrialRecord, x: _Axis, y: _Axis) -> bool:
    return math.isfinite(x.of(trial.metrics)) and math.isfinite(y.of(trial.metrics))


def _decorate(axes: Axes, x: _Axis, y: _Axis) -> None:
    decorate(axes, x.label, y.label, size=10.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.labelpad = 7
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _draw_trials(axes: Axes, trials: Sequence[TrialRecord], on_front: set[str], x: _Axis, y: _Axis) -> None:
    """Front members full, with a dark rim; the others pale, so that a column of them still shows each."""
    regimes = dict.fromkeys([*STYLES, *(trial.params["regime"] for trial in trials)])
    for regime in regimes:
        group = [trial for trial in trials if trial.params["regime"] == regime]
        colour, marker = style_of(regime)
        for member in (False, True):
            points = [trial for trial in group if (trial.id in on_front) is member]
            axes.scatter(
                [x.of(trial.metrics) for trial in points],
                [y.of(trial.metrics) for trial in points],
                s=78 if member else 46,
                c=colour,
                marker=marker,
                alpha=1.0 if member else 0.55,
                edgecolors=INK if member else "white",
                linewidths=1.3 if member else 0.6,
                zorder=4 if member else 3,
            )
        if group:
            axes.scatter([], [], s=52, c=colour, marker=marker, label=regime)


def _draw_steps(axes: Axes, trials: Sequence[TrialRecord], x: _Axis, y: _Axis) -> None:
    """The best value to be had at each size. Of three objectives the two drawn have a front of their own."""
    best = front_candidates(trials, {x.metric: x.direction, y.metric: y.direction})
    if not best:
        return
    points = sorted((x.of(values), y.of(values)) for _, values in best)
    low, high = axes.get_xlim()
    # A smaller student also serves where a larger one would: the line goes on to the edge on that side.
    points = [*points, (high, points[-1][1])] if x.direction == "min" else [(low, points[0][1]), *points]
    where: Literal["post", "pre"] = "post" if x.direction == "min" else "pre"
    axes.step(
        *zip(*points, strict=True), where=where, color=INK, linewidth=1.5, zorder=2, label="Pareto front"
    )
    axes.set_xlim(low, high)


def _draw_teacher(axes: Axes, sweep: SweepRecord, x: _Axis, y: _Axis) -> None:
    across, up = x.of(sweep.teacher["metrics"]), y.of(sweep.teacher["metrics"])
    if not math.isfinite(up):
        return
    axes.axhline(up, color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
    if math.isfinite(across):
        axes.scatter([across], [up], s=150, c=MUTED, marker="*", zorder=4)
    axes.annotate(
        f"teacher {textwrap.shorten(clean(sweep.teacher['name']), 48, placeholder='...')}: {up:.4g}",
        (0.004, up),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        color=MUTED,
        fontsize=9,
        parse_math=False,
    )


def _label(axes: Axes, canvas: FigureCanvasAgg, members: Sequence[TrialRecord], x: _Axis, y: _Axis) -> None:
    """Write depth and short id beside each member, at the first spot that is free."""
    renderer = canvas.get_renderer()
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]  # the teacher's
    taken = [artist.get_window_extent(renderer) for artist in (*axes.texts, *lines)]
    inside = axes.get_window_extent(renderer)
    for trial in members:
        text = axes.annotate(
            f"{len(trial.layer_map)}L {trial.id[:8]}",
            (x.of(trial.metrics), y.of(trial.metrics)),
            textcoords="offset points",
            xytext=(0, 0),
            fontsize=8.5,
            color=INK,
            zorder=5,
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        for across, up, horizontal, vertical in SPOTS:
            text.set(position=(across, up), horizontalalignment=horizontal, verticalalignment=vertical)
            box = text.get_window_extent(renderer)
            if inside.x0 < box.x0 and box.x1 < inside.x1 and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _head(figure: Figure, sweep: SweepRecord, trials: int, members: int) -> None:
    top = 0.955
    if sweep.data["generated"]:
        top = 0.9
        figure.add_artist(Rectangle((0, 0.935), 1, 0.065, facecolor=RED, transform=figure.transFigure))
        banner: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "color": "white",
            "fontsize": 12.5,
            "weight": "bold",
        }
        figure.text(0.5, 0.966, GENERATED_WARNING, **banner)
    title = textwrap.shorten(clean(f"{sweep.task}: sweep {sweep.name}"), 75, placeholder="...")
    counts = f"{trials} trial{'s' * (trials != 1)}, {members} on the front"
    about = textwrap.shorten(clean(f"{counts} | {sweep.data['description']}"), 105, placeholder="...")
    figure.text(0.085, top, title, va="top", color=INK, fontsize=14, weight="bold", parse_math=False)
    figure.text(0.085, top - 0.058, about, va="top", color=MUTED, fontsize=9.5, parse_math=False)
