"""What a report is made of: sections of words, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Picture:
    """A figure. On paper it is `png`; on a screen, where there is one, `plot`."""

    name: str  # of the PNG's file, without its ending
    title: str
    caption: str
    alt: str
    png: bytes
    plot: Figure | None = None
    wide: bool = False  # the plot needs more room than a phone has


class Bold(str):
    """The text of a cell that stands out."""

    bold = True


@dataclass(frozen=True)
class Table:
    """Rows of text, in groups that have a heading each, or none. One with a name is a file in Markdown, too."""

    caption: str
    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]
    name: str = ""  # of that file, without its ending


@dataclass(frozen=True)
class Section:
    key: str  # of its link
    title: str
    words: Sequence[str] = ()  # paragraphs
    parts: Sequence[Picture | Table] = field(default_factory=list)
