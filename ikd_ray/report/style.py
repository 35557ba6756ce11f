"""The look of figures: styles of regimes and methods, axis labels, and functions that every figure shares."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ikd_ray.config import sort_regimes
from ikd_ray.formatting import clean

if TYPE_CHECKING:
    import pandas as pd

# Names of methods, classes and teachers are drawn as they are written: `$` begins no formula.
matplotlib.rcParams["text.parse_math"] = False

DPI = 160
WIDE, NARROW = 8.8, 4.1
"""Widths of figures in inches: on paper and at a desk, and on a phone."""
INK, MUTED, GRID, FRAME, RED = "#1f2430", "#667085", "#e7e9ee", "#b6bcc8", "#c1121f"
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
LAYER_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")


class LineStyle(NamedTuple):
    """Colour, marker and dash pattern of a regime or a method."""

    colour: str
    marker: str
    line: Any
    filled: bool = True

    @property
    def marker_style(self) -> dict[str, Any]:
        """Keyword arguments of matplotlib for lines with markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgewidth": 1.4,
        }


# Okabe and Ito's palette, which colour-blind readers can tell apart; markers and dashes repeat the distinction.
REGIME_STYLES = {
    "hard": LineStyle("#5f6673", "X", (0, (1, 1))),
    "kd": LineStyle(BLUE, "o", "-"),
    "id": LineStyle(ORANGE, "s", (0, (5, 2))),
    "pid": LineStyle(GREEN, "^", (0, (5, 1.5, 1, 1.5))),
    "sid": LineStyle("#CC79A7", "D", (0, (2, 1.5))),
}
OTHER_REGIME = LineStyle("#56B4E9", "P", "-")

# Colours of lines that are told apart by nothing else.
LINE_COLOURS = (
    BLUE, ORANGE, GREEN, "#CC79A7", "#5f6673", "#D55E00", "#6A3D9A", "#8C6D1F", "#A00000", "#00838F",
)  # fmt: skip

# Further methods of a regime: shades of its colour, and markers and dashes that no regime has.
SHADES = (0.6, 0.35, 0.8)
METHOD_MARKERS = (
    ("v", (0, (4, 1, 1, 1, 1, 1))),
    ("p", (0, (1, 2.5))),
    ("<", (0, (8, 3))),
    ("h", (0, (3, 1, 3, 3))),
    (">", (0, (8, 2, 1, 2))),
    ("*", (0, (2, 4))),
)

MEASURES = {
    "mcc": "Matthews correlation",
    "f1": "F1",
    "macro_f1": "macro F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "attention_kl": "attention KL (nats)",
    "nll": "NLL",
    "rmse": "RMSE",
    "mae": "MAE",
}
UNITS = {
    "student/params": ("Parameters (millions)", 1e6),
    "student/encoder_params": ("Parameters without embeddings (millions)", 1e6),
    "student/size_mb": ("Size (MB)", 1.0),
    "student/latency_ms": ("CPU latency, one sequence (ms)", 1.0),
}
"""Axis label of a metric, and the size of its unit."""


def axis_label(metric: str) -> tuple[str, float]:
    """Return a metric's axis label, and the size of the unit in which the axis shows it."""
    split, _, measure = clean(metric).partition("/")
    plain = f"{MEASURES.get(measure, measure.replace('_', ' '))}, {split}"
    return UNITS.get(metric, (plain[0].upper() + plain[1:], 1.0))


def regime_style(regime: str) -> LineStyle:
    """Return the style of a regime."""
    return REGIME_STYLES.get(regime, OTHER_REGIME)


def by_regime(trials: pd.DataFrame) -> Iterator[tuple[str, LineStyle, pd.DataFrame]]:
    """Iterate over the regimes of a frame of trials in their usual order: name, style and rows."""
    for regime in sort_regimes(list(trials["regime"])):
        yield regime, regime_style(regime), trials[trials["regime"] == regime]


def method_styles(regimes: Mapping[str, str]) -> dict[str, LineStyle]:
    """Return a style for each method, given its regime: the regime's own for the first, variants of it for others."""
    styles: dict[str, LineStyle] = {}
    further = 0
    for name, regime in regimes.items():
        style = regime_style(regime)
        if before := sum(regimes[other] == regime for other in styles):
            shade = SHADES[(before - 1) % len(SHADES)]
            marker, line = METHOD_MARKERS[further % len(METHOD_MARKERS)]
            further += 1
            red, green, blue = to_rgb(style.colour)
            style = LineStyle(to_hex((shade * red, shade * green, shade * blue)), marker, line, filled=False)
        styles[name] = style
    return styles


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """Return an empty figure, outside matplotlib's global state. Width and height are in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def decorate(axes: Axes, x: str = "", y: str = "", size: float = 9.5) -> None:
    """Draw a grid and a light frame, and label the axes with text of `size` points."""
    axes.set_axisbelow(True)
    axes.set_facecolor("none")
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FRAME)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=size - 1, length=3)
    axes.set_xlabel(x, color=INK, fontsize=size)
    axes.set_ylabel(y, color=INK, fontsize=size)


def legend_below(figure: Figure, axes: Sequence[Axes] = (), size: float = 9) -> None:
    """Put a legend below the figure, each label once, in as many columns as fit; by default of all its axes."""
    handles = {}
    for panel in axes or figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles[label] = handle
    if handles:
        longest = max(map(len, handles)) * 0.6 * size / 72 + 0.6  # inches, with the marker
        columns = max(1, min(len(handles), int(figure.get_figwidth() / longest)))
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        figure.legend(handles.values(), handles.keys(), **place, fontsize=size, labelcolor=INK)


def legend_label(name: str) -> str:
    """Return a name as a legend's label: matplotlib leaves out those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def fit_limits(values: Iterable[float]) -> tuple[float, float] | None:
    """Return limits that hold the finite values and a margin; None without any.

    Equal values get limits so near that small differences from them would show.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.01, 0.02 * abs(middle)) * 1.16
    return middle - half, middle + half


def fit_axis(axis: Axis, values: Iterable[float]) -> None:
    """Set the limits of a linear axis by `fit_limits`."""
    limits = fit_limits(values)
    if limits:
        set_limits = axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim
        set_limits(*limits)


def teacher_line(axes: Axes, value: float, label: str = "teacher") -> None:
    """Draw a horizontal line at the teacher's value; none if it is not known."""
    if math.isfinite(value):
        axes.axhline(value, color=MUTED, linewidth=1.2, linestyle="--", label=label)


def stacked_bars(
    axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], height: float
) -> list[Any]:
    """Draw a horizontal bar for each name, the first on top; return matplotlib's container of bars for each part.

    `parts` maps the legend's label to the length of that part of each of the bars, for at most three parts;
    `height` is a bar's, where the distance of two bars is 1.
    """
    places = bar_places(len(names))
    start = np.zeros(len(names))
    drawn = []
    for (label, lengths), colour, hatch in zip(
        parts.items(), (BLUE, ORANGE, GREEN), ("", "///", "\\\\\\"), strict=False
    ):
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "height": height}
        drawn.append(axes.barh(places, lengths, left=start, label=label, **look))
        start += np.asarray(lengths)
    axes.set_yticks(places, names)
    axes.grid(axis="y", visible=False)
    return drawn


def bar_places(count: int) -> np.ndarray:
    """Return the vertical places of bars, the first on top."""
    return np.arange(count)[::-1]


def colour_bar(figure: Figure, image: Any, axes: Any, label: str, **options: Any) -> Any:
    """Add the colour bar of an image."""
    bar = figure.colorbar(image, ax=axes, **({"pad": 0.02} | options))
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # 256 rectangles otherwise
    bar.set_label(label, fontsize=8.5)
    bar.ax.tick_params(labelsize=7.5)
    return bar


def number_axis(axis: Axis, low: float, high: float) -> None:
    """Label an axis from `low` to `high` in plain numbers: 0.01 is easier to read than a power of ten."""
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if is_log_range(low, high):
        subs = (1.0,) if high > 1e3 * low else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    else:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())


def is_log_range(low: float, high: float) -> bool:
    """Return whether values from `low` to `high` are so far apart that they need a logarithmic scale."""
    return high >= 10 * low > 0


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, cropped to what is drawn."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Scripts that matplotlib's font lacks are drawn as boxes; the page has them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(
            content, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08, facecolor="white"
        )
    return content.getvalue()
