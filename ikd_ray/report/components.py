"""The parts of a report: sections of text, tables and pictures; and text for their cells."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ikd_ray.formatting import MISSING, clean
from ikd_ray.records import TrialRecord

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ikd_ray.analysis.intervals import Interval


@dataclass(frozen=True)
class Picture:
    """A figure: `png` on paper; on a screen `plot`, where there is one."""

    name: str  # of the PNG file, without its ending
    title: str
    caption: str
    alt: str
    png: bytes
    plot: Figure | None = None
    wide: bool = False  # whether the plot needs more room than a phone has


class Bold(str):
    """Text of a cell that is shown in bold."""

    bold = True


@dataclass(frozen=True)
class Table:
    """Rows of text in groups, each with a heading or none. A table with a name is also written as a Markdown file."""

    caption: str
    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    name: str = ""  # of the Markdown file, without its ending

    def markdown(self, warning: str = "") -> str:
        """Return the table in GitHub's Markdown, `warning` above and its caption below; a group's heading is a row."""
        lines = [_markdown_row(self.header), "|:--|" + "--:|" * (len(self.header) - 1)]
        for heading, rows in self.groups:
            if heading:
                lines.append(_markdown_row([Bold(heading), *[""] * (len(self.header) - 1)]))
            lines += map(_markdown_row, rows)
        above = [f"**{_escape(warning)}**"] if warning else []
        return "\n\n".join([*above, "\n".join(lines), _escape(self.caption)]) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    shown = (f"**{_escape(cell)}**" if isinstance(cell, Bold) else _escape(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def _escape(text: str) -> str:
    """Escape Markdown's special characters."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)


@dataclass(frozen=True)
class Section:
    """A section of the report."""

    key: str  # of its link
    title: str
    paragraphs: Sequence[str] = ()
    parts: Sequence[Picture | Table] = ()


def num_layers(count: float) -> str:
    """Return `1 layer`, `3 layers`."""
    return f"{count:.0f} layer{'' if count == 1 else 's'}"


def trial_title(trial: TrialRecord) -> str:
    """Return `t003 (sid, 3 layers)`."""
    return f"{clean(trial.id)} ({trial.params['regime']}, {num_layers(len(trial.layer_map))})"


def format_number(value: float | None, spec: str = ".3f") -> str:
    """Return a value, or a dash if it is not known."""
    return MISSING if value is None or not math.isfinite(value) else format(value, spec)


def format_interval(interval: Interval, spec: str = ".3f") -> str:
    """Return `0.412 ± 0.013`, or the mean alone where there is no interval."""
    half = interval.half_width
    spread = f" ± {format(half, spec.lstrip('+'))}" if math.isfinite(half) else ""
    return format_number(interval.mean, spec) + spread
