"""A report's tables as GitHub's Markdown, for a README."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ikd_ray.report.components import Table


def table_text(table: Table, warning: str = "") -> str:
    """The table and, below it, its caption; a group's heading is a row of its own.

    Args:
        warning: what no reader may miss, above the table.
    """
    lines = [_line(table.header), "|:--|" + "--:|" * (len(table.header) - 1)]
    for heading, rows in table.groups:
        if heading:
            lines.append(_line([heading, *[""] * (len(table.header) - 1)], bold=True))
        lines += map(_line, rows)
    parts = [f"**{_plain(warning)}**"] * bool(warning) + ["\n".join(lines), _plain(table.caption)]
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str], bold: bool = False) -> str:
    shown = (
        f"**{_plain(cell)}**" if cell and (bold or hasattr(cell, "bold")) else _plain(cell) for cell in cells
    )
    return f"| {' | '.join(shown)} |"


def _plain(text: str) -> str:
    """Text that stays text; what names is a table's business, so it has no control characters any more."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", text)
