"""The drawing of a Pareto front: pareto.png, and the page's figure against each cost."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from ikd_ray.analysis.dataframes import trials_frame
from ikd_ray.analysis.objectives import Objectives, finished_with, plotted_objectives
from ikd_ray.analysis.pareto import front_candidates
from ikd_ray.formatting import GENERATED_WARNING, clean, plural
from ikd_ray.records import Direction, SweepRecord, TrialRecord
from ikd_ray.report.components import View
from ikd_ray.report.style import (
    DPI,
    INK,
    MUTED,
    NARROW,
    RED,
    WIDE,
    axis_label,
    by_regime,
    decorate,
    fit_axis,
    legend_below,
    new_figure,
)

SIZE_INCHES = (WIDE, 5.6)

COSTS = {"student/params": "Parameters", "student/size_mb": "Size", "student/latency_ms": "Latency"}
"""Horizontal metrics of the page's figure, and the text of their buttons."""

_ANGLES = (135, 45, 315, 225, 90, 270, 0, 180)
LABEL_PLACES = [
    (
        round(distance * math.cos(math.radians(angle)), 1),
        round(distance * math.sin(math.radians(angle)), 1),
        "center" if angle in (90, 270) else "right" if 90 < angle < 270 else "left",
        "center" if angle in (0, 180) else "bottom" if angle < 180 else "top",
    )
    for distance in (9, 16, 26, 38, 52)
    for angle in _ANGLES
]
"""Places of a label in the order of preference: points to the right of its marker and above it, alignments."""

MAX_LINKED = 400  # trials; of more of them, the links and texts of all would be most of the page

MARKER_POINTS = 6  # half the width of a marker that no label may lie on


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
        frame = trials_frame(shown).reindex(columns=["number", "regime", "depth", *objectives])
        on_front = frame.index.isin([trial.id for trial in front])
        self.points = frame.assign(x=frame[x] / x_unit, y=frame[y] / y_unit, on_front=on_front)
        steps = [values for _, values in front_candidates(shown, objectives)]
        self.steps = sorted((values[x] / x_unit, values[y] / y_unit) for values in steps)
        self.teacher = (teacher_metrics.get(x, math.nan) / x_unit, teacher_metrics.get(y, math.nan) / y_unit)


def pareto_png(sweep: SweepRecord, trials: Sequence[TrialRecord], front: Sequence[TrialRecord]) -> bytes:
    """Draw the ended trials by regime, the front as labelled steps, and the teacher as a line.

    `plotted_objectives` chooses the axes.
    """
    view = _View(trials, front, plotted_objectives(sweep.objectives), sweep.teacher_metrics)
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.165, 0.885, 0.625 if sweep.data["generated"] else 0.69))
    _draw(axes, view)
    _draw_labels(
        axes, view, f"teacher {textwrap.shorten(clean(sweep.teacher['name']), 48, placeholder='...')}"
    )
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


def front_views(
    trials: Sequence[TrialRecord],
    front: Sequence[TrialRecord],
    objective: tuple[str, Direction],
    teacher_metrics: Mapping[str, float],
    recommended: TrialRecord | None,
) -> list[View]:
    """Draw the same for the page, against each of `COSTS` that is known of a trial.

    Args:
        trials: finished trials that have the objective. Their points are links to `#trial-NUMBER`; of more than
            `MAX_LINKED` those of the front alone.
        front: the members of the front.
        objective: the vertical metric and its direction.
        teacher_metrics: the teacher's values, as far as they are known.
        recommended: the trial that is ringed.
    """
    metric, direction = objective
    views = []
    for cost, label in COSTS.items():
        view = _View(trials, front, {cost: "min", metric: direction}, teacher_metrics)
        if not len(view.points):
            continue

        def draw(width: float, view: _View = view) -> Figure:
            figure = new_figure(width, 4.6 if width == WIDE else 4.0)
            axes = figure.subplots()
            _draw(axes, view, recommended)
            legend_below(figure)  # first: it moves the axes
            _draw_labels(axes, view, "teacher")
            return figure

        views.append(View.of(draw, label))
    return views


def _draw(axes: Axes, view: _View, recommended: TrialRecord | None = None) -> None:
    """Draw a view but for its labels."""
    decorate(axes, view.x_label, view.y_label, size=9 if _is_narrow(axes) else 10.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.labelpad = 7
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_major_locator(MaxNLocator(4 if _is_narrow(axes) else 7))
    _draw_trials(axes, view)
    (teacher_x, teacher_y), points = view.teacher, view.points
    if math.isfinite(teacher_y):
        axes.axhline(teacher_y, color=MUTED, linewidth=1.2, linestyle="--", zorder=1)
        if math.isfinite(teacher_x):
            axes.scatter([teacher_x], [teacher_y], s=150, c=MUTED, marker="*", zorder=4, label="teacher")
    fit_axis(axes.yaxis, [*points["y"], teacher_y])
    xs = [*points["x"], *([teacher_x] if math.isfinite(teacher_y) else [])]
    fit_axis(axes.xaxis, xs)
    _draw_steps(axes, view)
    if recommended is not None and recommended.id in points.index:
        point = points.loc[recommended.id]
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": RED, "linewidths": 2, "zorder": 5}
        axes.scatter([point["x"]], [point["y"]], s=230, **ring, label="recommended")


def _figure_of(axes: Axes) -> Figure:
    return cast(Figure, axes.figure)  # there are no subfigures here


def _is_narrow(axes: Axes) -> bool:
    return _figure_of(axes).get_figwidth() <= NARROW


def _draw_trials(axes: Axes, view: _View) -> None:
    """Draw members of the front opaque with a dark rim, and the others pale, so that overlapping ones still show."""
    for regime, style, group in by_regime(view.points):
        for on_front in (False, True):
            points = group[group["on_front"] == on_front]
            markers = axes.scatter(
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
            if on_front or len(view.points) <= MAX_LINKED:
                markers.set_urls([f"#trial-{number}" for number in points["number"]])
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


def _draw_labels(axes: Axes, view: _View, teacher: str) -> None:
    """Write the teacher's value on its line, and depth and short id beside each member of the front.

    Each text has the first place where it lies on no marker, no other text and, if possible, no line; a member's label
    that has none is left out.
    """
    figure = _figure_of(axes)
    figure.draw_without_rendering()  # places the axes
    scale = figure.dpi / 72
    markers = [*view.points[["x", "y"]].itertuples(index=False, name=None)]
    if all(map(math.isfinite, view.teacher)):
        markers.append(view.teacher)
    taken = [_box_around(axes, point, MARKER_POINTS * scale) for point in markers]
    lines: list[Bbox] = []
    small = _is_narrow(axes)
    y = view.teacher[1]
    if math.isfinite(y):
        height = axes.transData.transform((0, y))[1]
        lines.append(Bbox([[0, height - scale], [figure.bbox.x1, height + scale]]))
        text = f"{teacher}: {y:.4g}"
        places = [(0.006, 4, "left"), (0.994, 4, "right"), (0.006, -4, "left"), (0.994, -4, "right")]
        drawn = [
            axes.annotate(
                text,
                (across, y),
                xycoords=("axes fraction", "data"),
                xytext=(0, up),
                textcoords="offset points",
                ha=side,
                va="bottom" if up > 0 else "top",
                color=MUTED,
                fontsize=8 if small else 9.5,
            )
            for across, up, side in places
        ]
        boxes = [label.get_window_extent() for label in drawn]
        best = min(range(len(drawn)), key=lambda place: (_count_overlaps(boxes[place], taken), place))
        for place, label in enumerate(drawn):
            if place != best:
                label.remove()
        taken.append(boxes[best])
    lines += _step_boxes(axes, view, scale)
    inside = axes.get_window_extent()
    for point in view.points[view.points["on_front"]].itertuples():
        box = _draw_label(axes, point, inside, taken, lines, 8 if small else 9.5)
        if box is not None:
            taken.append(box)


def _draw_label(
    axes: Axes, point: Any, inside: Bbox, taken: Sequence[Bbox], lines: Sequence[Bbox], size: float
) -> Bbox | None:
    """Write a member's label at the best place, and return its box; None if it has no place."""
    text = axes.annotate(
        f"{point.depth}L {point.Index[:8]}",
        (point.x, point.y),
        textcoords="offset points",
        xytext=(0, 0),
        fontsize=size,
        color=INK,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
    )
    found: tuple[int, tuple[Any, ...], Bbox] | None = None
    for place in LABEL_PLACES:
        right, up, horizontal, vertical = place
        text.set(position=(right, up), horizontalalignment=horizontal, verticalalignment=vertical)
        box = text.get_window_extent()
        is_inside = inside.x0 < box.x0 and box.x1 < inside.x1 and inside.y0 < box.y0 and box.y1 < inside.y1
        if not is_inside or _count_overlaps(box, taken):
            continue
        crossed = _count_overlaps(box, lines)
        if found is None or crossed < found[0]:
            found = crossed, place, box
        if not crossed:
            break
    if found is None:
        text.remove()
        return None
    _, (right, up, horizontal, vertical), box = found
    text.set(position=(right, up), horizontalalignment=horizontal, verticalalignment=vertical)
    if math.hypot(right, up) > 20:  # too far from its marker to be taken for its label
        line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}
        axes.annotate(
            "", (point.x, point.y), xytext=(right, up), textcoords="offset points", arrowprops=line, zorder=3
        )
    return box


def _box_around(axes: Axes, point: tuple[float, float], half: float) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox([[x - half, y - half], [x + half, y + half]])


def _step_boxes(axes: Axes, view: _View, half: float) -> list[Bbox]:
    """Return the boxes of the horizontal and vertical pieces of the front's line."""
    corners = []
    for line in axes.lines:
        if line.get_label() == "Pareto front":
            corners = [*axes.transData.transform(line.get_path().vertices)]
    boxes = []
    for (x, y), (next_x, next_y) in pairwise(corners):
        turn = (next_x, y) if view.x_direction == "min" else (x, next_y)
        for start, end in (((x, y), turn), (turn, (next_x, next_y))):
            low, high = np.minimum(start, end) - half, np.maximum(start, end) + half
            boxes.append(Bbox([low, high]))
    return boxes


def _count_overlaps(box: Bbox, others: Sequence[Bbox]) -> int:
    return sum(box.overlaps(other) for other in others)


def _draw_heading(figure: Figure, sweep: SweepRecord, trials: int, members: int) -> None:
    top = 0.955
    if sweep.data["generated"]:
        top = 0.9
        figure.add_artist(Rectangle((0, 0.935), 1, 0.065, facecolor=RED, transform=figure.transFigure))
        font: dict[str, Any] = {"color": "white", "fontsize": 12.5, "weight": "bold"}
        figure.text(0.5, 0.966, GENERATED_WARNING, ha="center", va="center", **font)
    title = textwrap.shorten(clean(f"{sweep.task}: sweep {sweep.name}"), 75, placeholder="...")
    counts = f"{plural(trials, 'trial')}, {members} on the front"
    about = textwrap.shorten(clean(f"{counts} | {sweep.data['description']}"), 105, placeholder="...")
    figure.text(0.085, top, title, va="top", color=INK, fontsize=14, weight="bold")
    figure.text(0.085, top - 0.058, about, va="top", color=MUTED, fontsize=9.5)
