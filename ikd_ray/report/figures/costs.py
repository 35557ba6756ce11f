"""Where the time of a sweep went, and what its trials took from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ikd_ray.analysis.savings import Savings, compute_savings
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, title
from ikd_ray.formatting import duration
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.style import BLUE, GREEN, INK, MUTED, ORANGE, decorate, new_figure, png

MOST = 60  # trials that have a bar


@dataclass(frozen=True)
class Cost:
    """Seconds of a trial."""

    training: float
    rest: float  # evaluation, starting, saving, waiting for others
    taken: float  # what the epochs that it took from others had cost these

    @property
    def spent(self) -> float:
        return self.training + self.rest


def cost(trial: TrialRecord) -> Cost:
    training = sum(epoch.get("time/epoch_s", 0.0) for epoch in trial.history)
    taken = sum(epoch.get("time/reused_s", 0.0) for epoch in trial.history)
    spent = trial.metrics.get("time/spent_s", trial.duration_s)
    return Cost(training, max(0.0, spent - training), taken)


def section(subject: SweepAnalysis) -> Section:
    found = compute_savings(subject.finished)
    words = f"Of all that the finished trials went through: {found}."
    if not found.reused:
        words += " No trial took an epoch from another one."
    costs = {trial.id: cost(trial) for trial in subject.finished}
    most = sorted(subject.finished, key=lambda trial: -(costs[trial.id].spent + costs[trial.id].taken))[:MOST]
    shown = [trial for trial in subject.finished if trial in most]
    total = sum(one.spent for one in costs.values())
    trained = sum(one.training for one in costs.values())
    caption = (
        f"Seconds of each trial: training its own epochs ({duration(trained)} of {duration(total)} in all trials), and "
        "the rest: evaluation, starting, saving, waiting. Hatched with dots: not spent, but what the epochs that it "
        "took from others had cost these."
    )
    if len(shown) < len(costs):
        caption += f" The {MOST} longest of {len(costs)} trials are shown."
    picture = Picture(
        "costs",
        "Where the time went",
        caption,
        f"Stacked bars of seconds for {len(shown)} trials. {caption}",
        _bars(shown, [costs[trial.id] for trial in shown]),
    )
    return Section("costs", "What it cost, and what sharing saved", [words], [_table(found), picture])


def _table(found: Savings) -> Table:
    def row(kind: str, trained: int, total: int, ratio: float | None) -> tuple[str, ...]:
        return (kind, str(total), str(trained), str(total - trained), f"{ratio:.2f}x" if ratio else "-")

    rows = [
        row("internal stages, layer-epochs", found.internal_trained, found.internal_total, found.internal_ratio),
        row("classification, epochs", found.classification_trained, found.classification_total,
            found.classification_ratio),
    ]  # fmt: skip
    header = ("kind", "in all", "trained", "taken from others", "in all / trained")
    return Table("What the finished trials trained, and what they took.", header, [("", rows)])


def _bars(trials: Sequence[TrialRecord], costs: Sequence[Cost]) -> bytes:
    figure = new_figure(8.8, 1.3 + (0.3 if len(trials) <= 25 else 0.17) * len(trials))
    axes = figure.subplots()
    decorate(axes, "Seconds")
    places = np.arange(len(trials))[::-1]
    looks = {
        "training": (BLUE, "", [one.training for one in costs]),
        "the rest": (ORANGE, "///", [one.rest for one in costs]),
        "taken from others (not spent)": (GREEN, "...", [one.taken for one in costs]),
    }
    start = np.zeros(len(trials))
    for label, (colour, hatch, values) in looks.items():
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "height": 0.72}
        axes.barh(places, values, left=start, label=label, **look)
        start += values
    for place, total, one in zip(places, start, costs, strict=True):
        note: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7, "color": MUTED}
        axes.annotate(duration(one.spent), (total, place), xytext=(3, 0), **note)
    axes.set_yticks(places, [title(trial) for trial in trials], parse_math=False)
    axes.tick_params(axis="y", labelsize=8.5 if len(trials) <= 25 else 6.5, labelcolor=INK)
    axes.set_ylim(-0.7, len(trials) - 0.3)
    axes.margins(x=0.1)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return png(figure)
