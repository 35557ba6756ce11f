"""The parts of a report: pictures, tables, matrices, texts; and text for their cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeAlias, Union

from ikd_ray.formatting import MISSING, clean, plural
from ikd_ray.records import TrialRecord
from ikd_ray.report.style import NARROW, WIDE, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ikd_ray.analysis.intervals import Interval

_NUMBER = re.compile(r"[~+-]?\d")


@dataclass(frozen=True)
class View:
    """A figure for a page: as it is drawn for a desk, and for a phone where that is another one."""

    wide: Figure
    narrow: Figure | None = None
    label: str = ""  # of its button, where a picture has several views

    @classmethod
    def of(cls, draw: Callable[[float], Figure], label: str = "") -> View:
        """Draw a figure twice, given its width in inches."""
        return cls(draw(WIDE), draw(NARROW), label)


@dataclass(frozen=True)
class Picture:
    """A figure: on the page its views, of which one is shown at a time, and a PNG file."""

    kind: ClassVar[str] = "picture"
    name: str  # of the PNG file, without its ending
    title: str
    caption: str
    alt: str
    views: Sequence[View]
    paper: bytes = b""  # the PNG; by default the first view
    tips: Mapping[str, str] = field(default_factory=dict)  # text beside the pointer, by the link of a point

    @cached_property
    def png(self) -> bytes:
        """The content of the PNG file."""
        return self.paper or png(self.views[0].wide)


class Bold(str):
    """Text of a cell that is shown in bold."""

    bold = True


class Link(str):
    """Text of a cell that leads to a place in the page."""

    href: str

    def __new__(cls, text: str, href: str) -> Link:
        """Return the text with its link, such as `#trial-3`."""
        link = super().__new__(cls, text)
        link.href = href
        return link


@dataclass(frozen=True)
class Table:
    """Rows of text in groups, each with a heading or none. A table with a name is also written as a Markdown file."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    name: str = ""  # of the Markdown file, without its ending
    sortable: bool = False  # by a click on a column's heading
    row_ids: Sequence[str] = ()  # targets of links, for the rows of a table of one group

    @property
    def text_columns(self) -> list[bool]:
        """For each column whether it holds text, which is aligned to the left, and not numbers."""
        rows = [row for _, rows in self.groups for row in rows]
        return [
            any(cell not in ("", MISSING) and not _NUMBER.match(cell) for cell in column)
            for column in zip(*rows, strict=True)
        ] or [True] * len(self.header)

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
class Tile:
    """A number that a reader should see first, and what is behind it."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The student to take: why, by which command, and the other students of the front."""

    kind: ClassVar[str] = "verdict"
    title: str
    tiles: Sequence[Tile]
    reason: str
    command: str
    others: Sequence[str] = ()


@dataclass(frozen=True)
class Matrix:
    """Counts of examples, by gold class in rows and by answered class in columns."""

    title: str
    classes: Sequence[str]
    counts: Sequence[Sequence[int]]
    shares: Sequence[Sequence[float]]  # of the row, for the shade of a cell


@dataclass(frozen=True)
class Matrices:
    """Matrices of the same classes beside each other."""

    kind: ClassVar[str] = "matrices"
    caption: str
    matrices: Sequence[Matrix]


@dataclass(frozen=True)
class ExampleAnswer:
    """Who answers what to an example; `verdict` is "right", "wrong" or empty."""

    who: str
    answer: str
    verdict: str = ""


@dataclass(frozen=True)
class Example:
    """An example of the data, with its number (from 1), its text or pair of texts, and the answers to it."""

    number: int
    texts: Sequence[str]
    answers: Sequence[ExampleAnswer]


@dataclass(frozen=True)
class Examples:
    """Examples of the data one below the other."""

    kind: ClassVar[str] = "examples"
    caption: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Fold:
    """Parts that are hidden until they are asked for."""

    kind: ClassVar[str] = "fold"
    title: str
    parts: Sequence[Part]


Part: TypeAlias = Union[Picture, Table, Verdict, Matrices, Examples, Fold]  # noqa: UP007 - evaluated


@dataclass(frozen=True)
class Section:
    """A section of the report."""

    key: str  # of its link
    title: str
    paragraphs: Sequence[str] = ()
    parts: Sequence[Part] = ()
    dev_rows: frozenset[int] = frozenset()  # dev examples whose texts are shown

    @property
    def all_parts(self) -> list[Part]:
        """The parts, those that are folded away included."""
        found: list[Part] = []
        for part in self.parts:
            found += part.parts if isinstance(part, Fold) else [part]
        return found


def num_layers(count: float) -> str:
    """Return `1 layer`, `3 layers`."""
    return plural(round(count), "layer")


def trial_title(trial: TrialRecord) -> str:
    """Return `t003 (sid, 3 layers)`."""
    return f"{clean(trial.id)} ({trial.params['regime']}, {num_layers(len(trial.layer_map))})"


def trial_link(trial: TrialRecord) -> str:
    """Return the link to a trial's row in the table of all trials."""
    return f"#trial-{trial.number}"


def format_number(value: float | None, spec: str = ".3f") -> str:
    """Return a value, or a dash if it is not known."""
    return MISSING if value is None or not math.isfinite(value) else format(value, spec)


def format_size(value: float | None) -> str:
    """Return a size or a latency as a cell: `22.7`, `1,340.0`, `0.013`; a dash if it is not known."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.1f}" if abs(value) >= 1 else f"{value:.2g}"


def format_interval(interval: Interval, spec: str = ".3f") -> str:
    """Return `0.412 ± 0.013`, or the mean alone where there is no interval."""
    half = interval.half_width
    spread = f" ± {format(half, spec.lstrip('+'))}" if math.isfinite(half) else ""
    return format_number(interval.mean, spec) + spread
