"""What a layer, and what an example, is worth to each method: means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from ikd_ray.analysis.comparison import (
    Runs,
    best_configuration,
    difference,
    estimate,
    is_baseline,
    of_methods,
)
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, depth, interval
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Table
from ikd_ray.report.figures.methods import COVERS, KL, NAME
from ikd_ray.report.style import Look, axis_label, decorate, looks_of, new_figure, png, teacher_line

MOST = 24  # values of an axis; with more a search is drawn, not a comparison


def fraction(trial: TrialRecord) -> float:
    """The share of the training set that it saw."""
    return float(trial.params.get("train_fraction", 1.0))


def _layers(count: float) -> str:
    return f"{count:.0f} layer{'s' * (count != 1)}"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


@dataclass(frozen=True)
class Axis:
    """What is varied, and how it is called; the trials that are compared have all the same of what is `held`."""

    name: str
    title: str
    label: str
    of: Callable[[TrialRecord], float]
    told: Callable[[float], str]
    held: Callable[[TrialRecord], float]
    held_told: Callable[[float], str]
    is_log: bool = False


DEPTH = Axis(
    "depth", "What a layer is worth", "Student layers", depth, _layers, fraction,
    lambda share: f"{percent(share)} of the training set",
)  # fmt: skip
DATA_SIZE = Axis(
    "data-size", "What an example is worth", "Share of the training set (%)", fraction, percent, depth, _layers,
    is_log=True,
)  # fmt: skip

Cells = Mapping[str, Mapping[float, Runs]]  # method -> place on the axis -> the trials that count


def curve(subject: SweepAnalysis, axis: Axis) -> list[Picture | Table]:
    """The figure and its numbers; nothing where all trials have the same of it, or too much is different."""
    held = _held(subject, axis)
    # Those that failed, too: a configuration that lost a seed is none of the best.
    trials = [trial for trial in subject.trials if axis.held(trial) == held]
    # What was run again was so at one place alone.
    trials = [trial for trial in trials if not trial.retrained] or trials
    places = sorted({axis.of(trial) for trial in trials if trial in subject.finished})
    if not 1 < len(places) <= MOST:
        return []
    cells: dict[str, dict[float, Runs]] = {}
    for name, of_method in of_methods(subject, trials).items():
        for place in places:
            runs = best_configuration(subject, [trial for trial in of_method if axis.of(trial) == place])
            if runs:
                cells.setdefault(name, {})[place] = runs
    alone = len({axis.held(trial) for trial in subject.finished}) == 1
    about = "" if alone else f" All with {axis.held_told(held)}."
    return [_picture(subject, axis, cells, about), _table(subject, axis, cells, places, about)]


def _held(subject: SweepAnalysis, axis: Axis) -> float:
    """The value of what is held which most places of the axis have; of equals the greatest."""
    groups: dict[float, list[TrialRecord]] = {}
    for trial in subject.finished:
        groups.setdefault(axis.held(trial), []).append(trial)
    return max(groups, key=lambda value: (len({axis.of(trial) for trial in groups[value]}), value))


def _table(subject: SweepAnalysis, axis: Axis, cells: Cells, places: Sequence[float], about: str) -> Table:
    def rows(found: Callable[[Runs, float], str], names: Iterable[str]) -> list[list[str]]:
        return [
            [clean(name, NAME)]
            + [found(runs, place) if (runs := cells[name].get(place)) else "-" for place in places]
            for name in names
        ]

    metric = subject.metric
    groups = [
        (clean(metric), rows(lambda runs, _: interval(estimate(runs, metric)), cells)),
        ("attention KL (nats)", rows(lambda runs, _: interval(estimate(runs, KL)), cells)),
    ]
    base = next((name for name, of in cells.items() if all(map(is_baseline, of.values()))), None)
    others = [name for name in cells if name != base]
    if base and others:

        def less_base(runs: Runs, place: float) -> str:
            return interval(difference(runs, cells[base].get(place, {}), metric), "+.3f")

        heading = f"{clean(metric)}, difference to {clean(base, NAME)}, paired by seed"
        groups.insert(1, (heading, rows(less_base, others)))
    counts = sorted({len(runs) for of in cells.values() for runs in of.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    caption = f"Means over the seeds of each method's best configuration ({seeds} of each). {COVERS}{about}"
    return Table(caption, ["method", *map(axis.told, places)], groups, axis.name)


def _picture(subject: SweepAnalysis, axis: Axis, cells: Cells, about: str) -> Picture:
    figure = new_figure(8.8, 4.2 + 0.25 * (len(cells) // 3))
    panels = figure.subplots(1, 2)
    drawn = looks_of(subject)
    for axes, metric in zip(panels, (subject.metric, KL), strict=True):
        decorate(axes, axis.label, axis_label(metric)[0])
        for name, of in cells.items():
            _line(axes, of, metric, drawn[name], clean(name, NAME))
    teacher_line(panels[0], subject.taught, f"teacher ({subject.sweep.teacher['layers']} layers)")
    places = sorted({place for of in cells.values() for place in of})
    for axes in panels:
        _place_ticks(axes, axis, places)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    caption = (
        f"Lines: means over the seeds of each method's best configuration at each {axis.name.replace('-', ' ')}; "
        f"bands: the 95% interval of the mean, where there are two seeds or more.{about}"
    )
    names = ", ".join(clean(name, NAME) for name in cells)
    measure = axis_label(subject.metric)[0]
    alt = f"Two panels of lines, {measure} and attention KL, for {names}. The table has the numbers."
    return Picture(axis.name, axis.title, caption, alt, png(figure), wide=True)


def _line(axes: Axes, of: Mapping[float, Runs], metric: str, look: Look, label: str) -> None:
    places = list(of)
    found = [estimate(runs, metric) for runs in of.values()]
    means, halves = np.array([it.mean for it in found]), np.array([it.half for it in found])
    axes.fill_between(places, means - halves, means + halves, color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(places, means, linestyle=look.line, linewidth=1.6, markersize=5.5, label=label, **look.marked)
    for place, mean, half, left, right in zip(
        places, means, halves, [np.nan, *halves[:-1]], [*halves[1:], np.nan], strict=True
    ):
        if np.isfinite(half) and np.isnan([left, right]).all():  # a band needs two
            axes.errorbar([place], [mean], yerr=[half], color=look.colour, elinewidth=1.3, capsize=2.5)


def _place_ticks(axes: Axes, axis: Axis, places: Sequence[float]) -> None:
    if not axis.is_log:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}"))
