"""The parts of a report's section."""

from __future__ import annotations

from ikd_ray.report.components import Picture, Section, Table


def pictures(section: Section) -> dict[str, Picture]:
    """Return the section's pictures by name, those that are folded away included."""
    return {part.name: part for part in section.all_parts if isinstance(part, Picture)}


def table(section: Section) -> Table:
    """Return the section's only table."""
    (only,) = (part for part in section.parts if isinstance(part, Table))
    return only
