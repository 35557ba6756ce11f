"""The methods of a sweep side by side: means over seeds, and how sure these are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ikd_ray.analysis import comparison
from ikd_ray.analysis.comparison import (
    Runs,
    best_configuration,
    difference,
    estimate,
    is_baseline,
    of_methods,
    values,
    winner,
)
from ikd_ray.analysis.configurations import by_configuration, by_seed, configuration
from ikd_ray.analysis.intervals import mean_interval
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, depth, interval, number
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Bold, Picture, Section, Table
from ikd_ray.report.figures.errors import overlap
from ikd_ray.report.style import MUTED, Look, axis_label, decorate, looks_of, new_figure, png

KL, AGREES = "dev/attention_kl", "dev/teacher_agreement"
NAME = 44  # characters of a method's name
COVERS = (
    "± is half the width of the 95% interval of the mean (Student's t over seeds). It covers the noise of training, "
    "not which examples the dev set happens to have."
)


@dataclass(frozen=True)
class Row:
    """A method: the trials that speak for it, by seed, and what it cost to find their configuration."""

    name: str
    runs: Runs
    ended: Sequence[TrialRecord]

    @property
    def shown(self) -> str:
        return clean(self.name, NAME)

    @property
    def first(self) -> TrialRecord:
        return next(iter(self.runs.values()))

    @property
    def again(self) -> bool:
        return self.first.retrained

    @property
    def searched(self) -> list[TrialRecord]:
        """All that ended, those that were run again aside."""
        return [trial for trial in self.ended if not trial.retrained]

    @property
    def missing(self) -> int:
        """Seeds of its configuration that were lost, or are still to come."""
        own = configuration(self.first.params)
        alike = (trial for trial in self.ended if trial.retrained == self.again)
        tried = by_seed(trial for trial in alike if configuration(trial.params) == own)
        return max(self.first.seeds, len(tried)) - len(self.runs)

    @property
    def epochs(self) -> float:
        """Of all stages, on average over the seeds."""
        return statistics.fmean(len(trial.history) for trial in self.runs.values())

    @property
    def fraction(self) -> float:
        return float(self.first.params.get("train_fraction", 1.0))


@dataclass(frozen=True)
class Compared:
    """The rows, and what is said of them."""

    subject: SweepAnalysis
    rows: Sequence[Row]

    @cached_property
    def metrics(self) -> list[str]:
        """The task's on the dev set, its main one first."""
        task = self.subject.task
        names = [self.subject.metric, *(f"dev/{name}" for name in task.metrics)]
        return list(dict.fromkeys(names))

    @cached_property
    def fractions(self) -> bool:
        """Whether the rows have seen different shares of the training set."""
        return len({row.fraction for row in self.rows}) > 1

    @cached_property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if is_baseline(row.runs)), None)

    @cached_property
    def bold(self) -> dict[str, str | None]:
        """Metric -> the method that is better than every other one, if there is one."""
        return {
            metric: winner(
                {row.name: values(row.runs, metric) for row in self.rows}, self.subject.sign_of(metric)
            )
            for metric in self.metrics
        }


def section(subject: SweepAnalysis, weights: ModelLoader) -> Section | None:
    """None where neither methods nor seeds are compared."""
    if not comparison.is_made(subject):
        return None
    ended = of_methods(subject, subject.trials)
    every = [Row(name, best_configuration(subject, trials), trials) for name, trials in ended.items()]
    rows = [row for row in every if row.runs]
    compared = Compared(subject, rows)
    absent = [f"{row.shown} has no row: none of its trials finished." for row in every if not row.runs]
    shares, unknown = inherited(subject, weights, [trial for row in rows for trial in row.runs.values()])
    parts: list[Picture | Table] = [_table(compared, shares), _picture(compared)]
    if len(rows) > 1:
        parts.append(_differences_table(compared))
    return Section("methods", "Methods compared", [*_words(compared), *absent, *unknown], parts)


def inherited(
    subject: SweepAnalysis, weights: ModelLoader, trials: Sequence[TrialRecord]
) -> tuple[dict[str, float], list[str]]:
    """By trial the share of the teacher's dev errors that its student makes too; and why of some there is none."""
    if subject.task.is_regression:
        return {}, []
    found: dict[str, float] = {}
    try:
        labels = weights.dev.labels
        teacher = weights.logits(weights.teacher).argmax(1) != labels
        for trial in trials:
            wrong = weights.logits(weights.student(trial)).argmax(1) != labels
            found[trial.id] = overlap(wrong, teacher).inherited if teacher.any() else math.nan
    except UnavailableError as error:
        return found, [f"Errors in common with the teacher are not known of all students: {error}"]
    return found, []


def _words(compared: Compared) -> list[str]:
    subject, rows = compared.subject, compared.rows
    kind = "method" if comparison.has_methods(subject) else "regime"
    how = f"A row is a {kind} in its best configuration, by mean {clean(subject.chosen_by)}: means over its seeds."
    if all(row.again for row in rows):
        how += " It was trained again, with new seeds; what the search saw of it does not count."
    elif any(row.again for row in rows):
        how += " Where it was trained again, with new seeds, these alone count."
    words = [f"{how} {_differences(compared)}"]
    words += [
        f"{row.shown}: {row.missing} of {len(row.runs) + row.missing} seeds failed, or have not ended; its means "
        "are of the others alone, which may be the lucky ones."
        for row in rows
        if row.missing
    ]
    if len({depth(row.first) for row in rows}) > 1:
        words.append("The rows are not of equal depth: part of what they differ in is the number of layers.")
    if compared.fractions:
        words.append(
            "The rows have not seen equal shares of the training set: part of what they differ in is that."
        )
    if any(row.first.params.get("assistant_layers") for row in rows):
        words.append(
            "All seeds of a row have the same assistant: how another one would teach, no interval says. Its students "
            "are cut from it, and their attention is compared with the teacher's at the layers that any student of "
            "their depth is matched with, which need not be those that the assistant's come from."
        )
    for metric in compared.metrics if len(rows) > 1 else ():
        best, name = compared.bold[metric], clean(metric)
        if best is None:
            words.append(
                f"No {kind} is in bold for {name}: of none does the 95% interval of its paired difference to every "
                "other one exclude 0, so these trials do not say which is the best."
            )
        else:
            words.append(
                f"In bold for {name}: {clean(best, NAME)}, whose paired difference to every other one has a 95% "
                "interval that excludes 0."
            )
    return words


def _differences(compared: Compared) -> str:
    if compared.baseline is None:
        return "No row is of standard distillation (kd) by the teacher itself, so there is no baseline."
    return (
        f"The baseline is {compared.baseline.shown}: standard distillation by the teacher itself. Differences to it "
        f"are of {clean(compared.subject.metric)}, paired by seed. Intervals are each of one comparison; with many "
        "rows some exclude 0 by chance."
    )


def chosen_by(compared: Compared) -> str:
    """On which data configurations were chosen, in a sentence."""
    subject, rows = compared.subject, compared.rows
    if subject.sweep.data.get("selection") == "holdout":
        return (
            "Configurations and epochs were chosen on a held-out part of the training set; the dev set was only "
            "scored."
        )
    if all(len(by_configuration(row.searched)) <= 1 for row in rows):
        return "Each had one configuration, so none was chosen on the dev set."
    luck = (
        "New seeds take the luck of a seed out of that, not that of a choice that suits these examples."
        * all(row.again for row in rows)
    )
    return (
        f"Configurations were chosen on the dev set that is shown, which flatters students. {luck}".rstrip()
    )


def _table(compared: Compared, shares: Mapping[str, float]) -> Table:
    subject, base = compared.subject, compared.baseline
    header = [
        "method",
        "layers",
        *(["training data (%)"] if compared.fractions else []),
        *map(clean, compared.metrics),
        *([f"difference to {base.shown}"] if base else []),
        "attention KL (nats)",
        "agrees with teacher",
        "teacher's errors made too (%)",
        "epochs",
        "seeds",
        "trials tuned",
    ]
    taught = [number(subject.sweep.teacher["metrics"].get(metric)) for metric in compared.metrics]
    teacher = ["teacher", str(subject.sweep.teacher["layers"])] + ["100"] * compared.fractions + taught
    teacher += ["-"] * (len(header) - len(teacher))
    rows = [teacher, *(_row(compared, row, shares) for row in compared.rows)]
    caption = (
        f"{COVERS} {chosen_by(compared)} Epochs are those of all stages: equal trials are not equal training."
    )
    return Table(caption, header, [("", rows)], "methods")


def _row(compared: Compared, row: Row, shares: Mapping[str, float]) -> list[str]:
    cells = [row.shown, str(depth(row.first))] + [f"{100 * row.fraction:.3g}"] * compared.fractions
    for metric in compared.metrics:
        cell = interval(estimate(row.runs, metric))
        cells.append(Bold(cell) if compared.bold[metric] == row.name else cell)
    if base := compared.baseline:
        found = difference(row.runs, base.runs, compared.subject.metric)
        cells.append("-" if row is base else interval(found, "+.3f"))
    cells += [interval(estimate(row.runs, metric)) for metric in (KL, AGREES)]
    made = [100 * shares.get(trial.id, math.nan) for trial in row.runs.values()]
    # Of all or none: a mean over some of the seeds would be another row's.
    cells.append(interval(mean_interval(made), ".0f") if all(map(math.isfinite, made)) else "-")
    return [*cells, f"{row.epochs:.3g}", str(len(row.runs)), str(len(row.searched))]


def _differences_table(compared: Compared) -> Table:
    """Every row less every other one."""
    rows = compared.rows

    def cell(row: Row, other: Row, metric: str) -> str:
        found = difference(row.runs, other.runs, metric)
        shown = "-" if row is other else interval(found, "+.3f")
        return Bold(shown) if found.excludes_zero else shown

    groups = [
        (clean(metric), [[row.shown, *(cell(row, other, metric) for other in rows)] for row in rows])
        for metric in compared.metrics
    ]
    pairs = len(rows) * (len(rows) - 1) // 2
    caption = (
        "The row's mean less the column's, paired by seed, ± half the width of its 95% interval; in bold where that "
        f"excludes 0. Each is an interval of one comparison: of {pairs} one in twenty would exclude 0 by chance."
    )
    return Table(caption, ["less", *(row.shown for row in rows)], groups, "differences")


def _picture(compared: Compared) -> Picture:
    subject, rows = compared.subject, compared.rows
    metrics = [metric for metric in compared.metrics if any(_known(row, metric) for row in rows)]
    figure = new_figure(8.8, 1.3 + 0.42 * len(rows))
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    drawn = looks_of(subject)
    places = range(len(rows))[::-1]
    for axes, metric in zip(panels, metrics, strict=True):
        decorate(axes, axis_label(metric)[0])
        for place, row in zip(places, rows, strict=True):
            _draw(axes, place, row, metric, drawn[row.name])
        taught = subject.sweep.teacher["metrics"].get(metric, math.nan)
        if math.isfinite(taught):
            axes.axvline(taught, color=MUTED, linewidth=1.2, linestyle="--", label="teacher", zorder=1)
        axes.set_yticks(places, [row.shown for row in rows], parse_math=False)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", visible=False)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    told = "; ".join(f"{row.shown} {interval(estimate(row.runs, subject.metric))}" for row in rows)
    caption = (
        f"Large markers: means over seeds; bars: the 95% interval of the mean, where there are two seeds or more; "
        f"small dots: the seeds. {clean(subject.metric)}: {told}."
    )
    title = "How sure the means are"
    return Picture("methods", title, caption, f"Intervals. {caption}", png(figure))


def _known(row: Row, metric: str) -> bool:
    return math.isfinite(estimate(row.runs, metric).mean)


def _draw(axes: Any, place: int, row: Row, metric: str, look: Look) -> None:
    found = estimate(row.runs, metric)
    seeds = [value for value in values(row.runs, metric).values() if math.isfinite(value)]
    # Below the bar, so that neither hides the other.
    axes.scatter(seeds, np.full(len(seeds), place - 0.24), s=11, c=look.colour, alpha=0.7, linewidths=0)
    axes.errorbar(
        [found.mean],
        [place],
        xerr=None if math.isnan(found.half) else [found.half],
        markersize=7,
        elinewidth=1.5,
        capsize=3.5,
        **look.marked,
    )
