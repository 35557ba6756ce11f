"""The methods of a sweep, or else its regimes, side by side: means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ikd_ray.analysis.comparison import Comparison, group_names, has_comparison
from ikd_ray.analysis.error_overlap import shared_fractions
from ikd_ray.analysis.intervals import t_interval
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import AGREEMENT, ATTENTION_KL, SweepAnalysis
from ikd_ray.formatting import MISSING, clean
from ikd_ray.report.components import (
    Bold,
    Part,
    Picture,
    Section,
    Table,
    View,
    format_interval,
    format_number,
)
from ikd_ray.report.style import (
    MUTED,
    WIDE,
    LineStyle,
    axis_label,
    bar_places,
    decorate,
    legend_below,
    method_styles,
    new_figure,
)

TEXT = Path(__file__).with_name("methods.txt.jinja")
MAX_NAME = 44  # characters of a method's name
INTERVAL_MEANING = (
    "± is half the width of the 95% interval of the mean (Student's t over seeds). It covers the noise of training, "
    "not which examples the dev set happens to have."
)


def short_method(name: str) -> str:
    """Return a method's name as text of limited length."""
    return clean(name, MAX_NAME)


def group_styles(analysis: SweepAnalysis) -> dict[str, LineStyle]:
    """Return the style of each method, or of each regime where methods are not compared."""
    frame = analysis.finished_frame
    regimes = frame.groupby("group")["regime"].first()
    return method_styles({name: regimes[name] for name in group_names(analysis, frame)})


def methods_section(analysis: SweepAnalysis, loader: ModelLoader) -> Section | None:
    """Return the section that compares methods; None where neither methods nor seeds are compared."""
    if not has_comparison(analysis):
        return None
    comparison = Comparison(analysis, analysis.frame)
    absent = [
        f"{short_method(name)} has no row: none of its trials finished." for name in comparison.unfinished
    ]
    fractions: dict[str, float] = {}
    if not analysis.task.is_regression:
        compared = [trial for trial in analysis.trials if trial.id in comparison.runs.index]
        fractions, error = shared_fractions(loader, compared)
        if error:
            absent.append(f"Errors in common with the teacher are not known of all students: {error}")
    parts: list[Part] = [_table(comparison, fractions), _picture(comparison)]
    if len(comparison.groups) > 1:
        parts.append(_differences_table(comparison))
    return Section("methods", "Methods compared", [*_paragraphs(comparison), *absent], parts)


def _paragraphs(comparison: Comparison) -> list[str]:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"clean": clean, "short": short_method}
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        kind="method" if comparison.analysis.has_methods else "regime",
        metric=clean(comparison.analysis.metric),
        selection_metric=clean(comparison.analysis.selection_metric),
        groups=comparison.groups,
        baseline=comparison.baseline,
        best=comparison.best,
        has_fractions=comparison.has_fractions,
    )
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip()]


def _selection_text(comparison: Comparison) -> str:
    """Say on which data configurations were chosen."""
    if comparison.analysis.sweep.data.get("selection") == "holdout":
        return (
            "Configurations and epochs were chosen on a held-out part of the training set; the dev set was only "
            "scored."
        )
    if (comparison.groups["configurations"] <= 1).all():
        return "Each had one configuration, so none was chosen on the dev set."
    text = "Configurations were chosen on the dev set that is shown, which flatters students."
    if comparison.groups["retrained"].all():
        text += (
            " New seeds take the luck of a seed out of that, not that of a choice that suits these examples."
        )
    return text


def _table(comparison: Comparison, shared: Mapping[str, float]) -> Table:
    teacher, baseline = comparison.analysis.sweep.teacher, comparison.baseline
    header = [
        "method",
        "layers",
        *(["training data (%)"] if comparison.has_fractions else []),
        *map(clean, comparison.metrics),
        *([f"difference to {short_method(baseline)}"] if baseline else []),
        "attention KL (nats)",
        "agrees with teacher",
        "teacher's errors made too (%)",
        "epochs",
        "seeds",
        "trials tuned",
    ]
    row = ["teacher", str(teacher["layers"])] + ["100"] * comparison.has_fractions
    row += [format_number(teacher["metrics"].get(metric)) for metric in comparison.metrics]
    row += [MISSING] * (len(header) - len(row))
    rows = [row, *(_row(comparison, group, shared) for group in comparison.groups.itertuples())]
    caption = (
        f"{INTERVAL_MEANING} {_selection_text(comparison)} Epochs are those of all stages: equal trials are not equal "
        "training."
    )
    return Table(caption, header, [("", rows)], "methods")


def _row(comparison: Comparison, group: Any, shared: Mapping[str, float]) -> list[str]:
    name, baseline = group.Index, comparison.baseline
    cells = [short_method(name), str(group.depth)]
    if comparison.has_fractions:
        cells.append(f"{100 * group.train_fraction:.3g}")
    for metric in comparison.metrics:
        cell = format_interval(comparison.interval(name, metric))
        cells.append(Bold(cell) if comparison.best[metric] == name else cell)
    if baseline:
        difference = comparison.difference(name, baseline, comparison.analysis.metric)
        cells.append(MISSING if name == baseline else format_interval(difference, "+.3f"))
    cells += [format_interval(comparison.interval(name, metric)) for metric in (ATTENTION_KL, AGREEMENT)]
    errors = [100 * shared.get(trial, math.nan) for trial in comparison.of_group(name).index]
    # Of all seeds or none: a mean over some of them does not compare with the other rows'.
    cells.append(format_interval(t_interval(errors), ".0f") if all(map(math.isfinite, errors)) else MISSING)
    return [*cells, f"{group.epochs:.3g}", str(group.seeds), str(group.tuned)]


def _differences_table(comparison: Comparison) -> Table:
    """Return a table of every group less every other one."""
    names = list(comparison.groups.index)

    def cell(name: str, other: str, metric: str) -> str:
        if name == other:
            return MISSING
        difference = comparison.difference(name, other, metric)
        text = format_interval(difference, "+.3f")
        return Bold(text) if difference.excludes_zero else text

    groups = [
        (
            clean(metric),
            [[short_method(name), *(cell(name, other, metric) for other in names)] for name in names],
        )
        for metric in comparison.metrics
    ]
    pairs = len(names) * (len(names) - 1) // 2
    caption = (
        "The row's mean less the column's, paired by seed, ± half the width of its 95% interval; in bold where that "
        f"excludes 0. Each is an interval of one comparison: of {pairs} one in twenty would exclude 0 by chance."
    )
    return Table(caption, ["less", *map(short_method, names)], groups, "differences")


def _picture(comparison: Comparison) -> Picture:
    analysis, names = comparison.analysis, list(comparison.groups.index)
    labels = list(map(short_method, names))
    means = comparison.runs.reindex(columns=comparison.metrics).mean()
    metrics = [metric for metric in comparison.metrics if math.isfinite(means[metric])]
    styles = group_styles(analysis)
    places = bar_places(len(names))

    def draw(width: float) -> Figure:
        rows, columns = (1, len(metrics)) if width == WIDE else (len(metrics), 1)
        figure = new_figure(width, rows * (1.3 + 0.42 * len(names)))
        panels = [*figure.subplots(rows, columns, squeeze=False, sharey=True).flat]
        for axes, metric in zip(panels, metrics, strict=True):
            decorate(axes, axis_label(metric)[0])
            for place, name in zip(places, names, strict=True):
                _draw_interval(axes, place, comparison, name, metric, styles[name])
            teacher = analysis.sweep.teacher["metrics"].get(metric, math.nan)
            if math.isfinite(teacher):
                axes.axvline(teacher, color=MUTED, linewidth=1.2, linestyle="--", label="teacher", zorder=1)
            axes.set_yticks(places, labels)
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.grid(axis="y", visible=False)
        legend_below(figure, panels[:1])
        return figure

    numbers = "; ".join(
        f"{label} {format_interval(comparison.interval(name, analysis.metric))}"
        for label, name in zip(labels, names, strict=True)
    )
    caption = (
        f"Large markers: means over seeds; bars: the 95% interval of the mean, where there are two seeds or more; "
        f"small dots: the seeds. {clean(analysis.metric)}: {numbers}."
    )
    return Picture("methods", "How sure the means are", caption, f"Intervals. {caption}", [View.of(draw)])


def _draw_interval(
    axes: Axes, place: float, comparison: Comparison, name: str, metric: str, style: LineStyle
) -> None:
    interval = comparison.interval(name, metric)
    seeds = comparison.values(name, metric).dropna()
    # The dots are below the bar, so that neither hides the other.
    axes.scatter(seeds, np.full(len(seeds), place - 0.24), s=11, c=style.colour, alpha=0.7, linewidths=0)
    axes.errorbar(
        [interval.mean],
        [place],
        xerr=None if math.isnan(interval.half_width) else [interval.half_width],
        markersize=7,
        elinewidth=1.5,
        capsize=3.5,
        **style.marker_style,
    )
