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
REGIMES = {
    "hard": "trained on the gold labels alone.",
    "kd": "standard knowledge distillation: the teacher's soft labels and, weighed by lambda, the gold labels. "
    "The best of these is the baseline.",
    "id": "internal distillation: every layer imitates its teacher layer while the classification is trained.",
    "pid": "progressive internal distillation: one layer after the other, from the bottom, then the classification.",
    "sid": "stacked internal distillation: the lowest layer, then the lowest two, and so on, then the classification.",
}
TERMS = {
    "mcc": "Matthews correlation, the main metric of CoLA: 1 is perfect, 0 no better than a constant answer.",
    "Pareto front": "The students that no other one beats in one of the sweep's objectives without losing in another.",
    "attention KL": "How far a student's attention is from its teacher's in the layers that are matched: "
    "Kullback-Leibler divergence, the mean over the tokens that look, heads and examples, in nats. 0: the same.",
    "[CLS] cosine": "1 - cos² of the two models' vectors of the first token, by layer. 0: they point the same way, "
    "or the opposite one.",
    "agreement": "The share of dev examples where student and teacher choose the same class; for regression the "
    "Pearson correlation of their scores.",
    "latency": "Median milliseconds of one sequence of at most 128 tokens on one CPU thread.",
    "taken from others": "Epochs that another trial had trained bit for bit as this one would have.",
}


def render(analysis: SweepAnalysis, sections: Sequence[Section]) -> str:
    """Return the page's HTML, with its images and scripts inside."""
    pictures = [part for section in sections for part in section.parts if isinstance(part, Picture)]
    plots = {part.name: _plot(part.name, part.plot) for part in pictures if part.plot is not None}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=clean(f"{analysis.sweep.task}: sweep {analysis.sweep.name}"),
        banner=GENERATED_WARNING if analysis.sweep.data["generated"] else "",
        about=_about(analysis),
        sections=sections,
        images={part.name: _data_uri(part.png) for part in pictures},
        plots=plots,
        plotly=get_plotlyjs() if plots else "",
        terms=_terms(analysis),
    )


def _about(analysis: SweepAnalysis) -> dict[str, str]:
    """Return the lines above the first section by their labels."""
    sweep, teacher, ended = analysis.sweep, analysis.sweep.teacher, len(analysis.trials)
    warning = f"{GENERATED_WARNING}. " if sweep.data["generated"] else ""
    scores = ", ".join(f"{clean(name)} {value:.4g}" for name, value in teacher["metrics"].items())
    failed = sum(trial.status != "finished" for trial in analysis.trials)
    return {
        "task": sweep.task,
        "data": f"{warning}{clean(sweep.data['description'])}",
        "teacher": f"{clean(teacher['name'])}, {teacher['layers']} layers; {scores}",
        "trials": f"{ended} of {sweep.trials} have ended, {len(analysis.finished)} finished, {failed} failed",
        "seed": str(sweep.seed),
        "command": clean(sweep.command),
        "code version": f"{clean(sweep.code_version)}; this page by {code_version()}",
    }


def _terms(analysis: SweepAnalysis) -> dict[str, str]:
    """Return the glossary: the sweep's regimes, and the measures of its task."""
    regimes = {trial.params["regime"] for trial in analysis.finished}
    explained = {f"{name} (regime)": text for name, text in REGIMES.items() if name in regimes}
    return explained | {
        term: text for term, text in TERMS.items() if term != "mcc" or analysis.task.metric == "mcc"
    }


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
