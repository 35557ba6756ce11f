"""The time of each trial, and the epochs that trials reused from each other."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.analysis.training_costs import Savings, compute_savings, trial_costs
from ikd_ray.formatting import MISSING, duration, plural
from ikd_ray.report.components import Picture, Section, Table, View, trial_title
from ikd_ray.report.style import (
    INK,
    MUTED,
    WIDE,
    bar_places,
    decorate,
    legend_below,
    new_figure,
    stacked_bars,
)
from ikd_ray.search.planned_work import predict_costs
from ikd_ray.search.sampler import SearchSettings

MAX_BARS = 60
MIN_PREDICTIONS = 5


def costs_section(analysis: SweepAnalysis) -> Section:
    """Return the section with the reused training and the time of each trial."""
    savings = compute_savings(analysis.finished)
    text = f"Of all that the finished trials went through: {savings}."
    if not savings.reused:
        text += " No trial took an epoch from another one."
    text += _describe_prediction(analysis)
    costs = trial_costs(analysis.finished).assign(title=list(map(trial_title, analysis.finished)))
    longest = (costs["spent"] + costs["reused"]).sort_values(ascending=False, kind="stable").index[:MAX_BARS]
    shown = costs[costs.index.isin(longest)]
    caption = (
        f"Seconds of each trial: training its own epochs ({duration(costs['training'].sum())} of "
        f"{duration(costs['spent'].sum())} in all trials), and the rest: evaluation, starting, saving, waiting. "
        "Green: not spent, but what the epochs that it took from others had cost these."
    )
    if len(shown) < len(costs):
        caption += f" The {MAX_BARS} longest of {len(costs)} trials are shown."
    alt = f"Stacked bars of seconds for {plural(len(shown), 'trial')}. {caption}"
    picture = Picture(
        "costs", "Where the time went", caption, alt, [View.of(lambda width: _draw(shown, width))]
    )
    return Section("costs", "What it cost, and what sharing saved", [text], [_table(savings), picture])


def _describe_prediction(analysis: SweepAnalysis) -> str:
    """Say how well the search knew what trials cost, which it takes as given; nothing about a few trials."""
    spent = trial_costs(analysis.finished)["spent"]
    spent = spent[spent > 0]
    if len(spent) < MIN_PREDICTIONS:
        return ""
    settings = SearchSettings.of(analysis.sweep)
    planned = pd.Series(predict_costs(analysis.finished, settings.planned_work()))[spent.index]
    planned, spent = planned / planned.mean(), spent / spent.mean()
    errors = (planned - spent).abs() / pd.concat([planned, spent], axis=1).max(axis=1)
    return (
        " The search plans by what a configuration costs beside the others. Relative to the mean of all, plan "
        f"and time differed by at most {errors.median():.0%} of the larger one in half of the trials, and by at most "
        f"{errors.quantile(0.9):.0%} in nine of ten."
    )


def _table(savings: Savings) -> Table:
    def row(kind: str, trained: int, total: int, ratio: float | None) -> list[str]:
        return [kind, str(total), str(trained), str(total - trained), f"{ratio:.2f}x" if ratio else MISSING]

    internal = savings.internal_trained, savings.internal_total, savings.internal_ratio
    classification = (
        savings.classification_trained,
        savings.classification_total,
        savings.classification_ratio,
    )
    rows = [row("internal stages, layer-epochs", *internal), row("classification, epochs", *classification)]
    header = ("kind", "in all", "trained", "taken from others", "in all / trained")
    return Table("What the finished trials trained, and what they took.", header, [("", rows)])


def _draw(costs: pd.DataFrame, width: float) -> Figure:
    count = len(costs)
    figure = new_figure(width, 1.3 + (0.3 if count <= 25 else 0.17) * count)
    axes = figure.subplots()
    decorate(axes, "Seconds")
    parts = {
        "training": costs["training"],
        "the rest": costs["other"],
        "taken from others (not spent)": costs["reused"],
    }
    stacked_bars(axes, list(costs["title"]), parts, 0.72)
    totals = costs["training"] + costs["other"] + costs["reused"]
    note: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": MUTED}
    for place, total, spent in zip(bar_places(count), totals, costs["spent"], strict=True):
        axes.annotate(duration(spent), (total, place), xytext=(3, 0), **note)
    axes.tick_params(axis="y", labelsize=8.5 if count <= 25 else 6.5, labelcolor=INK)
    axes.set_ylim(-0.7, count - 0.3)
    axes.margins(x=0.1 if width == WIDE else 0.22)
    legend_below(figure)
    return figure
