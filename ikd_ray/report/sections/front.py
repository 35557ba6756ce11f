"""The Pareto front: accuracy against parameters, size and latency."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

from ikd_ray.analysis.dataframes import has_several_seeds
from ikd_ray.analysis.objectives import metric_on_test
from ikd_ray.analysis.sweep_analysis import UNUSED_PARAMS, SweepAnalysis
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section, Table, format_number, trial_title
from ikd_ray.report.front_plot import COSTS, interactive_front, pareto_png
from ikd_ray.report.style import axis_label

MAX_PARAMS = 8  # of a trial, beside the pointer


def front_section(analysis: SweepAnalysis, teacher_size: Mapping[str, float]) -> Section:
    """Return the section with the front's figure and table; `teacher_size` has the teacher's `COSTS` that are known."""
    label = axis_label(analysis.metric)[0]
    objectives = ", ".join(
        f"{clean(name)} {direction}" for name, direction in analysis.sweep.objectives.items()
    )
    caption = (
        f"{label}, against what a student costs, for {len(analysis.finished)} finished trials; "
        f"{len(analysis.front)} are on the front, with dark rims. {_comparison(analysis)} The steps are the best value "
        f"to be had at each cost. Of the two axes the sweep's objectives decide who is on the front: {objectives}."
    )
    if has_several_seeds(analysis.finished_frame):
        caption += (
            " Of a configuration with several seeds the mean counts, and the trial nearest to it is the member; where "
            "it was run again, with new seeds, these alone count."
        )
    members = ", ".join(_point(analysis, trial) for trial in analysis.front)
    picture = Picture(
        "pareto",
        "Accuracy against cost",
        caption,
        f"Scatter plot of {label} against parameters. Members of the front: {members}.",
        pareto_png(analysis.sweep, analysis.trials, analysis.front),
        interactive_front(
            analysis.finished,
            analysis.front,
            (analysis.metric, analysis.direction(analysis.metric)),
            analysis.sweep.teacher["metrics"] | dict(teacher_size),
            analysis.baseline,
            hover_texts(analysis),
        ),
    )
    return Section("front", "The Pareto front", [], [picture, _table(analysis, teacher_size)])


def _comparison(analysis: SweepAnalysis) -> str:
    """Compare the best student with the teacher and the baseline, in a sentence."""
    best, baseline, metric = analysis.best, analysis.baseline, analysis.metric
    text = f"The front's best, {trial_title(best)}, has {clean(metric)} {best.metrics[metric]:.3f}"
    if math.isfinite(analysis.teacher_score):
        text += f"; the teacher has {analysis.teacher_score:.3f}"
    if baseline is None:
        return f"{text}; no trial of standard distillation (kd) has finished, so there is no baseline."
    if baseline is best:
        return f"{text}. It is of standard distillation (kd) itself: no other regime did better."
    return f"{text}; the best of standard distillation, {trial_title(baseline)}, has {baseline.metrics[metric]:.3f}."


def _point(analysis: SweepAnalysis, trial: TrialRecord) -> str:
    params = format_number(trial.metrics.get("student/params", math.nan) / 1e6, ".3g")
    return f"{trial_title(trial)} {trial.metrics[analysis.metric]:.3f} with {params} M parameters"


def _table(analysis: SweepAnalysis, teacher_size: Mapping[str, float]) -> Table:
    on_test = metric_on_test(analysis.metric)
    is_tested = any(on_test in trial.metrics for trial in analysis.front)
    columns = {
        clean(analysis.metric): (analysis.metric, 1.0, ".3f"),
        **({clean(on_test): (on_test, 1.0, ".3f")} if is_tested else {}),
        "params (M)": ("student/params", 1e6, ".3g"),
        "size (MB)": ("student/size_mb", 1.0, ".3g"),
        "latency (ms)": ("student/latency_ms", 1.0, ".3g"),
        "attention KL (nats)": ("dev/attention_kl", 1.0, ".3f"),
        "agrees with teacher": ("dev/teacher_agreement", 1.0, ".3f"),
    }
    if analysis.task.is_regression:
        columns |= {"RMSE": ("dev/rmse", 1.0, ".3g"), "MAE": ("dev/mae", 1.0, ".3g")}
    else:
        columns |= {"nll": ("dev/nll", 1.0, ".3f"), "KL from teacher": ("dev/teacher_kl", 1.0, ".3f")}

    def cells(metrics: Mapping[str, float]) -> list[str]:
        return [
            format_number(metrics.get(name, math.nan) / unit, spec) for name, unit, spec in columns.values()
        ]

    def row(trial: TrialRecord, note: str = "") -> list[str]:
        name = f"{clean(trial.id)}{note}"
        return [name, trial.params["regime"], str(len(trial.layer_map)), *cells(trial.metrics)]

    teacher, baseline = analysis.sweep.teacher, analysis.baseline
    rows = [["teacher", "", str(teacher["layers"]), *cells(teacher["metrics"] | dict(teacher_size))]]
    if baseline and baseline not in analysis.front:
        rows.append(row(baseline, " (baseline)"))
    caption = "The front's members, by size. Latency: CPU, one thread, one sequence of at most 128 tokens."
    if is_tested:
        caption += f" {clean(on_test)} was measured once, when the sweep had ended; nothing was chosen by it."
    on_front = [row(trial) for trial in analysis.front]
    return Table(caption, ["trial", "regime", "layers", *columns], [("", rows), ("on the front", on_front)])


def hover_texts(analysis: SweepAnalysis) -> dict[str, str]:
    """Return the text beside the pointer for each finished trial and for the teacher, in plotly's HTML."""
    metric, score = _escape(analysis.metric), analysis.teacher_score
    teacher = f"<b>teacher</b><br>{_escape(analysis.sweep.teacher['name'])}<br>{metric} {score:.4f}"
    return {trial.id: _hover_text(analysis, trial) for trial in analysis.finished} | {"teacher": teacher}


def _hover_text(analysis: SweepAnalysis, trial: TrialRecord) -> str:
    regime = trial.params["regime"]
    names = [name for name in analysis.varied_params if name not in UNUSED_PARAMS.get(regime, set())][
        :MAX_PARAMS
    ]
    params = [f"{_escape(name)} {_escape(_short(trial.params.get(name)))}" for name in names]
    costs = {name: trial.metrics[name] for name in COSTS if math.isfinite(trial.metrics.get(name, math.nan))}
    lines = [
        f"<b>{_escape(trial.id)}</b>{', on the front' if trial in analysis.front else ''}",
        f"regime {_escape(regime)}, {len(trial.layer_map)} layers",
        *(", ".join(params[start : start + 2]) for start in range(0, len(params), 2)),
        f"{_escape(analysis.metric)} {trial.metrics[analysis.metric]:.4f}",
        *(f"{axis_label(name)[0]}: {value / axis_label(name)[1]:.4g}" for name, value in costs.items()),
    ]
    return "<br>".join(lines)


def _escape(value: object) -> str:
    """Escape text for plotly, which reads it as HTML."""
    return html.escape(clean(value, 60))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
