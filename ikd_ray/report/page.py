"""The report as one HTML page that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import plotly.io
from jinja2 import Environment, StrictUndefined
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.formatting import GENERATED_WARNING, clean
from ikd_ray.report.components import Picture, Section
from ikd_ray.version import code_version

TEMPLATE = Path(__file__).with_name("page.html")
# On a phone, more buttons than these two would cover those of the figure.
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "resetScale2d"]]}


def render(analysis: SweepAnalysis, sections: Sequence[Section]) -> str:
    """Return the page's HTML, with its images and scripts inside."""
    pictures = [part for section in sections for part in section.parts if isinstance(part, Picture)]
    plots = {part.name: _plot(part.name, part.plot) for part in pictures if part.plot is not None}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["clean"] = clean
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=clean(f"{analysis.sweep.task}: sweep {analysis.sweep.name}"),
        generated_warning=GENERATED_WARNING if analysis.sweep.data["generated"] else "",
        teacher_warnings=analysis.sweep.teacher_warnings,
        analysis=analysis,
        sweep=analysis.sweep,
        failed=sum(trial.status != "finished" for trial in analysis.trials),
        regimes={trial.params["regime"] for trial in analysis.finished},
        code_version=code_version(),
        sections=sections,
        images={part.name: _data_uri(part.png) for part in pictures},
        plots=plots,
        plotly=get_plotlyjs() if plots else "",
    )


def _data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _plot(name: str, figure: Figure) -> str:
    return plotly.io.to_html(
        figure,
        config=CONFIG,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name}",
        default_width="100%",
    )
