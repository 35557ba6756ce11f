"""The search: accuracy against depth and against agreement with the teacher, and what Optuna draws of its study."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ikd_ray.analysis.comparison import has_comparison
from ikd_ray.analysis.sweep_analysis import AGREEMENT, SweepAnalysis
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import plural
from ikd_ray.report.components import Part, Picture, Section, View, num_layers, trial_title
from ikd_ray.report.sections.curves import DATA_SIZE, DEPTH, curve_parts
from ikd_ray.report.sections.optuna_plots import combinations_picture, importances_picture, open_study
from ikd_ray.report.style import (
    INK,
    axis_label,
    by_regime,
    decorate,
    fit_axis,
    legend_below,
    new_figure,
    teacher_line,
)

MIN_TRIALS = 10  # with fewer a random forest says nothing about parameters


def search_section(analysis: SweepAnalysis) -> Section:
    """Return the section on depth, agreement, and the parameters that were searched."""
    paragraphs: list[str] = []
    parts: list[Part] = [*_depth_parts(analysis), agreement_picture(analysis)]
    try:
        study = open_study(analysis)
        complete = len(study.get_trials(deepcopy=False))
        if complete < MIN_TRIALS:
            raise UnavailableError(
                f"The study has {plural(complete, 'complete trial')}. How much each parameter matters, and which "
                f"combinations did well, is not drawn for less than {MIN_TRIALS}."
            )
    except UnavailableError as error:
        return Section("search", "The search", [str(error)], parts)
    for draw in (importances_picture, combinations_picture):
        try:
            parts.append(draw(analysis, study))
        except UnavailableError as error:
            paragraphs.append(str(error))
    return Section("search", "The search", paragraphs, parts)


def _depth_parts(analysis: SweepAnalysis) -> list[Part]:
    by_depth = curve_parts(analysis, DEPTH) if has_comparison(analysis) else [depth_picture(analysis)]
    return [*by_depth, *curve_parts(analysis, DATA_SIZE)]


def depth_picture(analysis: SweepAnalysis) -> Picture:
    """Draw each regime's best trial at each depth as a line, and all trials as small markers."""
    frame, best = analysis.finished_frame, _best_by_depth(analysis)

    def draw(width: float) -> Figure:
        figure = new_figure(width, 4.0)
        axes = figure.subplots()
        decorate(axes, "Student layers", axis_label(analysis.metric)[0])
        for regime, style, group in by_regime(frame):
            line = best[best["regime"] == regime]
            dots: dict[str, Any] = {"c": style.colour, "marker": style.marker, "alpha": 0.45, "linewidths": 0}
            axes.scatter(group["depth"], group[analysis.metric], s=14, **dots)
            axes.plot(
                line["depth"],
                line[analysis.metric],
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                linewidth=1.6,
                label=regime,
            )
        teacher_line(
            axes, analysis.teacher_score, f"teacher ({num_layers(analysis.sweep.teacher['layers'])})"
        )
        fit_axis(axes.yaxis, [*frame[analysis.metric], analysis.teacher_score])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(frame["depth"].min() - 0.5, frame["depth"].max() + 0.5)
        legend_below(figure)
        return figure

    texts = []
    for regime, _, _ in by_regime(frame):
        line = best[best["regime"] == regime]
        values = zip(line["depth"], line[analysis.metric], strict=True)
        texts.append(f"{regime}: " + ", ".join(f"{depth} L {value:.3f}" for depth, value in values))
    caption = "The best of each regime at each depth that it was tried with, and all trials as small markers."
    alt = f"Lines. {caption} {'; '.join(texts)}."
    return Picture("depth", "What a layer is worth", caption, alt, [View.of(draw)])


def _best_by_depth(analysis: SweepAnalysis) -> pd.DataFrame:
    """Return the best trial of each regime and depth by the selection metric, sorted by depth."""
    metric = analysis.selection_metric
    ascending = analysis.direction(metric) == "min"
    ranked = analysis.finished_frame.sort_values(metric, ascending=ascending, kind="stable")
    return ranked.drop_duplicates(["regime", "depth"]).sort_values("depth", kind="stable")


def agreement_picture(analysis: SweepAnalysis) -> Picture:
    """Draw the metric against the agreement with the teacher."""
    x_label = "Share of dev examples answered as the teacher does"
    if analysis.task.is_regression:
        x_label = "Pearson correlation with the teacher's dev scores"
    known = analysis.finished_frame.dropna(subset=[AGREEMENT])

    def draw(width: float) -> Figure:
        figure = new_figure(width, 4.0)
        axes = figure.subplots()
        decorate(axes, x_label, axis_label(analysis.metric)[0])
        for regime, style, group in by_regime(known):
            axes.scatter(
                group[AGREEMENT],
                group[analysis.metric],
                s=[46 if on_front else 28 for on_front in group["on_front"]],
                c=style.colour,
                marker=style.marker,
                edgecolors=[INK if on_front else "white" for on_front in group["on_front"]],
                linewidths=0.9,
            )
            axes.scatter([], [], s=40, c=style.colour, marker=style.marker, label=regime)
        teacher_line(axes, analysis.teacher_score)
        fit_axis(axes.xaxis, known[AGREEMENT])
        fit_axis(axes.yaxis, [*known[analysis.metric], analysis.teacher_score])
        legend_below(figure)
        return figure

    members = [trial for trial in analysis.trials if trial in analysis.front and trial.id in known.index]
    numbers = ", ".join(f"{trial_title(trial)} {trial.metrics[AGREEMENT]:.3f}" for trial in members)
    caption = (
        "Agreement with the teacher against the metric; members of the front have dark rims. A student above the line "
        "beats its teacher where it does not agree with it."
    )
    alt = f"Scatter plot. {caption} Agreement on the front: {numbers or 'not known'}."
    return Picture("agreement", "Agreement with the teacher", caption, alt, [View.of(draw)])
