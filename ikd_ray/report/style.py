"""How figures look: what stands for which regime, names of measures, and how a figure becomes a PNG."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from ikd_ray.analysis import comparison
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.formatting import clean

DPI = 160
INK, MUTED, GRID, RED = "#1f2430", "#667085", "#e7e9ee", "#c1121f"
# Okabe and Ito's palette, which colour-blind readers tell apart; the markers say the same again.
STYLES = {
    "hard": ("#5f6673", "X"),
    "kd": ("#0072B2", "o"),
    "id": ("#E69F00", "s"),
    "pid": ("#009E73", "^"),
    "sid": ("#CC79A7", "D"),
}
OTHER = ("#56B4E9", "P")  # a regime that has no style of its own
LINES = {
    "hard": (0, (1, 1)),
    "kd": "-",
    "id": (0, (5, 2)),
    "pid": (0, (5, 1.5, 1, 1.5)),
    "sid": (0, (2, 1.5)),
}
# Of further methods of a regime: shades of its colour; markers that no regime has, and lines.
SHADES = (0.6, 0.35, 0.8)
FURTHER = (
    ("v", (0, (4, 1, 1, 1, 1, 1))),
    ("p", (0, (1, 2.5))),
    ("<", (0, (8, 3))),
    ("h", (0, (3, 1, 3, 3))),
    (">", (0, (8, 2, 1, 2))),
    ("*", (0, (2, 4))),
)
# matplotlib's markers -> plotly's.
SYMBOLS = {"X": "x", "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "P": "cross"}
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")  # of layers
MEASURES = {
    "mcc": "Matthews correlation",
    "f1": "F1",
    "macro_f1": "macro F1",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "attention_kl": "attention KL (nats)",
}
# Metric -> (axis label, what a shown unit is worth).
UNITS = {
    "student/params": ("Parameters (millions)", 1e6),
    "student/encoder_params": ("Parameters without embeddings (millions)", 1e6),
    "student/size_mb": ("Size (MB)", 1.0),
    "student/latency_ms": ("CPU latency, one sequence (ms)", 1.0),
}


def axis_label(metric: str) -> tuple[str, float]:
    """What an axis says of a metric, and what a shown unit is worth."""
    split, _, measure = clean(metric).partition("/")
    plain = f"{MEASURES.get(measure, measure.replace('_', ' '))}, {split}"
    return UNITS.get(metric, (plain[0].upper() + plain[1:], 1.0))


def style_of(regime: str) -> tuple[str, str]:
    """A regime's colour and marker."""
    return STYLES.get(regime, OTHER)


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str
    line: Any
    filled: bool

    @property
    def marked(self) -> dict[str, Any]:
        """matplotlib's arguments of a marker."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgewidth": 1.4,
        }


def looks(regimes: Mapping[str, str]) -> dict[str, Look]:
    """How each method is drawn, by its regime: the first of a regime as this, the others in a way of their own."""
    found: dict[str, Look] = {}
    further = 0
    for name, regime in regimes.items():
        colour, marker = style_of(regime)
        before = sum(regimes[other] == regime for other in found)
        if before == 0:
            found[name] = Look(colour, marker, LINES.get(regime, "-"), True)
        else:
            shade, (marker, line) = SHADES[(before - 1) % len(SHADES)], FURTHER[further % len(FURTHER)]
            further += 1
            red, green, blue = to_rgb(colour)
            darker = to_hex((shade * red, shade * green, shade * blue))
            found[name] = Look(darker, marker, line, False)
    return found


def looks_of(subject: SweepAnalysis) -> dict[str, Look]:
    """How each method is drawn."""
    methods = comparison.of_methods(subject, subject.finished)
    return looks({name: trials[0].params["regime"] for name, trials in methods.items()})


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """An empty figure, inches, that belongs to nobody's global state and lays itself out."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def decorate(axes: Axes, across: str = "", up: str = "", title: str = "", size: float = 9.5) -> None:
    """A grid, no more frame than is needed, and the axes' names. `size`: of these, in points."""
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b6bcc8")
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=size - 1, length=3)
    axes.set_xlabel(across, color=INK, fontsize=size)
    axes.set_ylabel(up, color=INK, fontsize=size)
    if title:
        axes.set_title(title, color=INK, fontsize=10.5, loc="left", parse_math=False)


def teacher_line(axes: Axes, value: float, label: str = "teacher") -> None:
    """What the teacher has, across; nothing where it is not known."""
    if math.isfinite(value):
        axes.axhline(value, color=MUTED, linewidth=1.2, linestyle="--", label=label)


def number_axis(axis: Axis, low: float, high: float) -> None:
    """Ticks of an axis from `low` to `high`, in plain numbers: 0.01 is read sooner than a power of ten."""
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    if spans(low, high):
        few = high > 1e3 * low
        axis.set_major_locator(LogLocator(subs=(1.0,) if few else (1.0, 2.0, 5.0), numticks=12))
    else:
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())


def spans(low: float, high: float) -> bool:
    """Whether values lie so far apart that they are drawn on a logarithmic scale."""
    return high >= 10 * low > 0


def png(figure: Figure) -> bytes:
    """The figure as a PNG, cut to what is drawn."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of a text in a script that matplotlib's font lacks boxes are shown; the page has it in letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(
            content, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.08, facecolor="white"
        )
    return content.getvalue()
