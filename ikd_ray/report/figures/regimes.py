"""Regimes side by side at equal depth: means over trials, and how far these spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ikd_ray.analysis.configurations import by_configuration, by_seed, contenders
from ikd_ray.analysis.intervals import mean_interval
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, depth, number
from ikd_ray.config import sort_regimes
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.style import axis_label, decorate, new_figure, png, style_of, teacher_line

STEP = 0.18  # layers between two regimes of a depth


@dataclass(frozen=True)
class Cell:
    """The trials of a regime at a depth."""

    trials: Sequence[TrialRecord]

    @property
    def shown(self) -> Sequence[TrialRecord]:
        """Those that count: of a configuration that was run again the new ones alone."""
        if not self.seeds_alone:
            return self.trials
        return list(by_seed(chain.from_iterable(contenders(self.trials, lambda finished: True))).values())

    def values(self, metric: str) -> list[float]:
        found = (trial.metrics.get(metric, math.nan) for trial in self.shown)
        return [value for value in found if math.isfinite(value)]

    def mean(self, metric: str) -> float:
        values = self.values(metric)
        return statistics.fmean(values) if values else math.nan

    def spread(self, metric: str) -> float:
        """Half the width of the mean's 95% interval over seeds, else the standard deviation; nan of less than two."""
        values = self.values(metric)
        if self.seeds_alone:
            return mean_interval(values).half
        return statistics.stdev(values) if len(values) > 1 else math.nan

    @property
    def seeds_alone(self) -> bool:
        """Whether the trials differ in nothing but their seeds."""
        return len(by_configuration(self.trials)) == 1

    @property
    def count(self) -> str:
        if len(self.shown) == 1:
            return "1"
        return f"{len(self.shown)} {'seeds' if self.seeds_alone else 'trials'}"


def cells(subject: SweepAnalysis) -> dict[tuple[int, str], Cell]:
    """(depth, regime) -> its trials."""
    found: dict[tuple[int, str], list[TrialRecord]] = {}
    for trial in subject.finished:
        found.setdefault((depth(trial), trial.params["regime"]), []).append(trial)
    return {key: Cell(trials) for key, trials in found.items()}


def section(subject: SweepAnalysis) -> Section:
    found = cells(subject)
    several = [cell for cell in found.values() if len(cell.trials) > 1]
    seeds = any(cell.seeds_alone for cell in several)
    words = _seeds_told() if seeds else _trials_told()
    if not several:
        words += (
            " Here no regime has more than one trial at a depth, so there is no spread, and no result either."
        )
    regimes = sort_regimes([regime for _, regime in found])
    metrics = (subject.metric, "dev/attention_kl", "dev/teacher_agreement")
    layers = sorted({layers for layers, _ in found})
    groups = [
        (
            f"{count} layer{'s' * (count != 1)}",
            [_row(regime, found[count, regime], metrics) for regime in regimes if (count, regime) in found],
        )
        for count in layers
    ]
    header = ("regime", clean(subject.metric), "attention KL (nats)", "agrees with teacher", "n")
    taught = number(subject.taught)
    teacher = ("", [("teacher", taught, "-", "-", f"{subject.sweep.teacher['layers']} layers")])
    table = Table("Regimes at equal depth.", header, [teacher, *groups])
    return Section("regimes", "Regimes at equal depth", [words], [table, _picture(subject, found, metrics)])


def _trials_told() -> str:
    return (
        "Mean and, after the sign ±, the standard deviation of the sample, for each regime and depth. "
        "Where n counts seeds, the trials differ in their seeds alone and the spread is the noise of training; "
        "where it counts trials, they differ in what was searched too, and the spread is mostly the search's."
    )


def _seeds_told() -> str:
    return (
        "Mean and, after the sign ±, how sure it is or how far the trials spread, for each regime and depth. Where n "
        "counts seeds, the trials differ in their seeds alone: ± is half the width of the mean's 95% interval "
        "(Student's t), the noise of training. Where it counts trials, they differ in what was searched too: ± is the "
        "standard deviation of the sample, mostly the search's."
    )


def _row(regime: str, cell: Cell, metrics: Sequence[str]) -> tuple[str, ...]:
    def shown(metric: str) -> str:
        spread = cell.spread(metric)
        return number(cell.mean(metric)) + (f" ± {spread:.3f}" if math.isfinite(spread) else "")

    return (regime, *map(shown, metrics), cell.count)


def _picture(subject: SweepAnalysis, found: dict[tuple[int, str], Cell], metrics: Sequence[str]) -> Picture:
    bars = "one standard deviation to each side,"
    if any(cell.seeds_alone and len(cell.trials) > 1 for cell in found.values()):
        bars = "the 95% interval of the mean over seeds, or, of trials that differ in more, one standard deviation,"
    figure = new_figure(8.8, 3.6)
    panels = figure.subplots(1, 3)
    regimes = sort_regimes([regime for _, regime in found])
    for axes, metric in zip(panels, metrics, strict=True):
        _panel(axes, found, regimes, metric)
    teacher_line(panels[0], subject.taught)
    handles = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=7, frameon=False, fontsize=9
    )
    return Picture(
        "regimes",
        "Means and spread of the regimes",
        f"Large markers: means over the trials of a regime at a depth; bars: {bars} "
        f"where there are two trials or more; small markers: the trials themselves ({len(subject.finished)}).",
        f"Three panels over student layers: {', '.join(axis_label(metric)[0] for metric in metrics)}, "
        f"for the regimes {', '.join(regimes)}. The table has the numbers.",
        png(figure),
    )


def _panel(axes: Axes, found: dict[tuple[int, str], Cell], regimes: Sequence[str], metric: str) -> None:
    decorate(axes, "Student layers", axis_label(metric)[0])
    for regime in regimes:
        colour, marker = style_of(regime)
        group = {
            _place(found, regimes, layers, regime): cell
            for (layers, other), cell in sorted(found.items())
            if other == regime
        }
        for place, cell in group.items():
            values = cell.values(metric)
            axes.scatter([place] * len(values), values, s=9, c=colour, marker=marker, alpha=0.5, linewidths=0)
        spreads = [0.0 if math.isnan(spread := cell.spread(metric)) else spread for cell in group.values()]
        axes.errorbar(
            list(group),
            [cell.mean(metric) for cell in group.values()],
            yerr=spreads,
            color=colour,
            marker=marker,
            markersize=6,
            linestyle="none",
            elinewidth=1.3,
            capsize=2.5,
            label=regime,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    layers = [layers for layers, _ in found]
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)


def _place(found: dict[tuple[int, str], Cell], regimes: Sequence[str], layers: int, regime: str) -> float:
    """Where a regime is drawn: beside the others that have this depth."""
    beside = [other for other in regimes if (layers, other) in found]
    return layers + STEP * (beside.index(regime) - (len(beside) - 1) / 2)
