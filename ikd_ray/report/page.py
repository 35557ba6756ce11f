"""The report as one HTML page that needs no network, in the light or dark mode of who reads it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.formatting import (
    GENERATED_WARNING,
    clean,
    decimal,
    metric_title,
    number,
    plural,
    portable_command,
)
from ikd_ray.report.components import Picture, Section
from ikd_ray.report.svg import dark_colours, to_svg
from ikd_ray.version import code_version

FOLDER = Path(__file__).parent


def render(analysis: SweepAnalysis, sections: Sequence[Section]) -> str:
    """Return the page's HTML, with its figures, styles and script inside."""
    pictures = [part for section in sections for part in section.all_parts if isinstance(part, Picture)]
    figures = {picture.name: _figures(picture) for picture in pictures}
    svgs = [svg for views in figures.values() for _, *drawn in views for svg in drawn if svg]
    script = _read("page.js")
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "clean": clean,
        "number": number,
        "metric_title": metric_title,
        "decimal": decimal,
    }
    environment.globals["plural"] = plural
    return environment.get_template("page.html").render(
        title=clean(f"{analysis.sweep.task}: sweep {analysis.sweep.name}"),
        generated_warning=GENERATED_WARNING if analysis.sweep.data["generated"] else "",
        teacher_warnings=analysis.sweep.teacher_warnings,
        analysis=analysis,
        sweep=analysis.sweep,
        command=portable_command(analysis.sweep.command),
        failed=sum(trial.status != "finished" for trial in analysis.trials),
        regimes={trial.params["regime"] for trial in analysis.finished},
        code_version=code_version(),
        sections=sections,
        num_texts=len(frozenset().union(*(section.dev_rows for section in sections))),
        figures=figures,
        styles=Markup(_read("page.css")),
        colours=dark_colours(svgs),
        script=Markup(script),
        # The only script that the page may run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _figures(picture: Picture) -> list[tuple[str, Markup, Markup]]:
    """Return label, SVG for a desk and SVG for a phone of each view; the latter is empty where both are the same."""
    drawn = []
    for place, view in enumerate(picture.views):
        name = f"{picture.name}-{place}"
        wide = to_svg(view.wide, name, picture.tips)
        narrow = to_svg(view.narrow, f"{name}n", picture.tips) if view.narrow else ""
        drawn.append((view.label, Markup(wide), Markup(narrow)))
    return drawn
