"""Accuracy against what a student costs: its parameters, its size, its latency."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from ikd_ray.analysis.configurations import have_seeds
from ikd_ray.analysis.pareto import front_candidates
from ikd_ray.analysis.sweep_analysis import IDLE, SweepAnalysis, depth, number, title
from ikd_ray.config import sort_regimes
from ikd_ray.formatting import clean
from ikd_ray.records import Direction, TrialRecord
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.front_plot import pareto_png
from ikd_ray.report.style import GRID, INK, MUTED, SYMBOLS, axis_label, style_of

COSTS = {  # metric -> what its button says
    "student/params": "parameters",
    "student/size_mb": "size",
    "student/latency_ms": "latency",
}
SHOWN_PARAMS = 8


def section(subject: SweepAnalysis, teacher_size: Mapping[str, float]) -> Section:
    """
    Args:
        teacher_size: the teacher's own of `COSTS`, as far as it is known.
    """
    label = axis_label(subject.metric)[0]
    caption = (
        f"{label}, against what a student costs, for {len(subject.finished)} finished trials; "
        f"{len(subject.front)} are on the front, with dark rims. {_against(subject)} The steps are the best value "
        "to be had at each cost. Of the two axes the sweep's objectives decide who is on the front: "
        f"{', '.join(f'{clean(name)} {way}' for name, way in subject.sweep.objectives.items())}."
    )
    if have_seeds(subject.finished):
        caption += (
            " Of a configuration with several seeds the mean counts, and the trial nearest to it is the member; where "
            "it was run again, with new seeds, these alone count."
        )
    members = ", ".join(_point(subject, trial) for trial in subject.front)
    picture = Picture(
        "pareto",
        "Accuracy against cost",
        caption,
        f"Scatter plot of {label} against parameters. Members of the front: {members}.",
        pareto_png(subject.sweep, subject.trials, subject.front),
        plot(subject, teacher_size),
    )
    return Section("front", "The Pareto front", [], [picture, _table(subject, teacher_size)])


def _against(subject: SweepAnalysis) -> str:
    """What the best student has of the teacher and of the baseline."""
    best, baseline, name = subject.best, subject.baseline, clean(subject.metric)
    value = best.metrics[subject.metric]
    words = f"The front's best, {title(best)}, has {name} {value:.3f}"
    if math.isfinite(subject.taught):
        words += f"; the teacher has {subject.taught:.3f}"
    if baseline is None:
        return f"{words}; no trial of standard distillation (kd) has finished, so there is no baseline."
    if baseline is best:
        return f"{words}. It is of standard distillation (kd) itself: no other regime did better."
    return f"{words}; the best of standard distillation, {title(baseline)}, has {baseline.metrics[subject.metric]:.3f}."


def _point(subject: SweepAnalysis, trial: TrialRecord) -> str:
    params = trial.metrics.get("student/params", math.nan)
    return (
        f"{title(trial)} {trial.metrics[subject.metric]:.3f} with {number(params / 1e6, '.3g')} M parameters"
    )


def _table(subject: SweepAnalysis, teacher_size: Mapping[str, float]) -> Table:
    def row(name: str, regime: str, layers: str, metrics: Mapping[str, float]) -> tuple[str, ...]:
        return (
            name,
            regime,
            layers,
            number(metrics.get(subject.metric)),
            number(metrics.get("student/params", math.nan) / 1e6, ".3g"),
            number(metrics.get("student/size_mb"), ".3g"),
            number(metrics.get("student/latency_ms"), ".3g"),
            number(metrics.get("dev/attention_kl")),
            number(metrics.get("dev/teacher_agreement")),
        )

    teacher = subject.sweep.teacher
    rows = [row("teacher", "", str(teacher["layers"]), teacher["metrics"] | dict(teacher_size))]
    on_front = [row(clean(t.id), t.params["regime"], str(depth(t)), t.metrics) for t in subject.front]
    baseline = subject.baseline
    if baseline and baseline not in subject.front:
        rows.append(row(f"{clean(baseline.id)} (baseline)", "kd", str(depth(baseline)), baseline.metrics))
    sizes = ("params (M)", "size (MB)", "latency (ms)")
    header = (
        "trial",
        "regime",
        "layers",
        clean(subject.metric),
        *sizes,
        "attention KL (nats)",
        "agrees with teacher",
    )
    caption = "The front's members, by size. Latency: CPU, one thread, one sequence of at most 128 tokens."
    return Table(caption, header, [("", rows), ("on the front", on_front)])


def plot(subject: SweepAnalysis, teacher_size: Mapping[str, float]) -> go.Figure:
    """The interactive figure: a set of traces for each cost, of which one is shown."""
    costs = [cost for cost in COSTS if any(_known(trial, cost) for trial in subject.finished)]
    figure, of_cost = go.Figure(), []
    for cost in costs:
        for trace in _traces(subject, cost, teacher_size.get(cost, math.nan)):
            trace.visible = cost == costs[0]
            figure.add_trace(trace)
            of_cost.append(cost)
    buttons = [
        {
            "label": COSTS[cost],
            "method": "update",
            "args": [
                {"visible": [other == cost for other in of_cost]},
                {"xaxis.title.text": axis_label(cost)[0]},
            ],
        }
        for cost in costs
    ]
    based = subject.baseline.metrics[subject.metric] if subject.baseline else -math.inf
    upper = based >= subject.taught  # each line's words on its outer side, so that they stay apart
    _line(figure, subject.taught, "dash", "teacher", "bottom left" if upper else "top left")
    _line(figure, based, "dot", "baseline: best kd", "top left" if upper else "bottom left")
    _lay_out(figure, subject, costs, buttons)
    return figure


def _lay_out(
    figure: go.Figure, subject: SweepAnalysis, costs: list[str], buttons: list[dict[str, Any]]
) -> None:
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": "#b6bcc8",
        "showline": True,
        "automargin": True,
    }
    menu = {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
    }
    figure.update_layout(
        template="none",
        font={"color": INK, "family": "system-ui, sans-serif"},
        height=520,
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        xaxis=axis | {"title": {"text": axis_label(costs[0])[0] if costs else ""}},
        yaxis=axis | {"title": {"text": axis_label(subject.metric)[0]}},
        legend={"orientation": "h", "yanchor": "top", "y": -0.16, "x": 0},
        updatemenus=[menu | {"buttons": buttons, "showactive": True, "active": 0, "pad": {"b": 4}}],
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"color": INK}},
        hovermode="closest",
    )


def _known(trial: TrialRecord, cost: str) -> bool:
    return math.isfinite(trial.metrics.get(cost, math.nan))


def _line(figure: go.Figure, value: float, dash: str, words: str, where: str) -> None:
    if math.isfinite(value):
        note = {"text": f"{words}: {value:.3f}", "font": {"color": MUTED, "size": 12}}
        style = {"color": MUTED, "width": 1.3, "dash": dash}
        figure.add_hline(y=value, line=style, annotation=note, annotation_position=where, layer="below")


def _traces(subject: SweepAnalysis, cost: str, teacher: float) -> list[go.Scatter]:
    """Of one cost: each regime's trials, the baseline's ring, the teacher's star, the front's steps."""
    known = [trial for trial in subject.finished if _known(trial, cost)]
    unit = axis_label(cost)[1]
    regimes = sort_regimes([trial.params["regime"] for trial in known])
    # The steps come first, so that no trial is below them.
    traces = [_steps(subject, cost, known), *(_regime(subject, regime, known, cost) for regime in regimes)]
    baseline = subject.baseline
    if baseline in known:
        ring = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}}
        at = {"x": [baseline.metrics[cost] / unit], "y": [baseline.metrics[subject.metric]]}
        traces.append(
            go.Scatter(**at, mode="markers", marker=ring, name="baseline: best kd", hoverinfo="skip")
        )
    if math.isfinite(teacher) and math.isfinite(subject.taught):
        star = {"symbol": "star", "size": 15, "color": MUTED}
        text = f"<b>teacher</b><br>{_text(subject.sweep.teacher['name'])}"
        text += f"<br>{_text(subject.metric)} {subject.taught:.4f}"
        at = {"x": [teacher / unit], "y": [subject.taught]}
        shown = {"text": [text], "hovertemplate": "%{text}<extra></extra>"}
        traces.append(go.Scatter(**at, **shown, mode="markers", marker=star, name="teacher"))
    return traces


def _steps(subject: SweepAnalysis, cost: str, known: list[TrialRecord]) -> go.Scatter:
    """The best value to be had at each cost."""
    ways: dict[str, Direction] = {cost: "min", subject.metric: subject.direction(subject.metric)}
    unit = axis_label(cost)[1]
    best = front_candidates(known, ways)
    points = sorted((values[cost] / unit, values[subject.metric]) for _, values in best)
    across, up = zip(*points, strict=True)
    line = {"shape": "hv", "color": INK, "width": 1.6}
    return go.Scatter(x=across, y=up, mode="lines", line=line, name="front of these two", hoverinfo="skip")


def _regime(subject: SweepAnalysis, regime: str, known: list[TrialRecord], cost: str) -> go.Scatter:
    group = [trial for trial in known if trial.params["regime"] == regime]
    members = [trial in subject.front for trial in group]
    colour, marker = style_of(regime)
    return go.Scatter(
        x=[trial.metrics[cost] / axis_label(cost)[1] for trial in group],
        y=[trial.metrics[subject.metric] for trial in group],
        text=[_hover(subject, trial) for trial in group],
        mode="markers",
        name=_text(regime),
        marker={
            "symbol": SYMBOLS[marker],
            "color": colour,
            "size": [13 if member else 10 for member in members],
            "opacity": [1.0 if member else 0.6 for member in members],
            "line": {"color": [INK if member else "white" for member in members], "width": 1.5},
        },
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(subject: SweepAnalysis, trial: TrialRecord) -> str:
    """What the pointer is told of a trial, in plotly's kind of HTML."""
    idle = IDLE.get(trial.params["regime"], set())
    shown = [name for name in subject.varied if name not in idle][:SHOWN_PARAMS]
    params = [f"{_text(name)} {_text(_short(trial.params.get(name)))}" for name in shown]
    lines = [f"<b>{_text(trial.id)}</b>{', on the front' if trial in subject.front else ''}"]
    lines += [f"regime {_text(trial.params['regime'])}, {depth(trial)} layers"]
    lines += [", ".join(params[start : start + 2]) for start in range(0, len(params), 2)]
    lines += [f"{_text(subject.metric)} {trial.metrics[subject.metric]:.4f}"]
    costs = [
        f"{axis_label(cost)[0]}: {trial.metrics[cost] / axis_label(cost)[1]:.4g}"
        for cost in COSTS
        if _known(trial, cost)
    ]
    return "<br>".join(lines + costs)


def _text(value: object) -> str:
    """Plotly takes text for HTML, links among it."""
    return html.escape(clean(value, 60))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
