"""Which of the teacher's mistakes its students make too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, title
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import clean
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.style import BLUE, GREEN, INK, MUTED, ORANGE, decorate, new_figure, png

MOST = 25  # students in the figures
BOX = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none"}


@dataclass(frozen=True)
class Overlap:
    """A student's dev errors beside the teacher's."""

    shared: int  # both wrong
    own: int  # the student alone
    mended: int  # the teacher alone

    @property
    def inherited(self) -> float:
        """The share of the teacher's errors that the student makes; 0 where it makes none."""
        taught = self.shared + self.mended
        return self.shared / taught if taught else 0.0


def overlap(student: np.ndarray, teacher: np.ndarray) -> Overlap:
    """
    Args:
        student, teacher: (n,) whether each example is answered wrongly.
    """
    return Overlap(
        int((student & teacher).sum()), int((student & ~teacher).sum()), int((~student & teacher).sum())
    )


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Errors that both make over errors that either makes; 1 where neither makes any."""
    either = int((one | two).sum())
    return int((one & two).sum()) / either if either else 1.0


def section(subject: SweepAnalysis, weights: ModelLoader) -> Section:
    """
    Raises:
        UnavailableError: weights or tokens are not there any more, or the task has no right and wrong.
    """
    if subject.task.is_regression:
        raise UnavailableError(
            f"{subject.task.name} is a regression task: its answers are near or far, not right or wrong."
        )
    labels = weights.dev.labels
    teacher = weights.logits(weights.teacher).argmax(1) != labels
    wrong, absent = {}, []
    for trial in subject.closely[:MOST]:
        try:
            wrong[trial.id] = weights.logits(weights.student(trial)).argmax(1) != labels
        except UnavailableError as error:
            absent.append(str(error))
    trials = [trial for trial in subject.closely if trial.id in wrong]
    if not trials:
        raise UnavailableError(" ".join(absent))
    words = (
        f"Of {len(labels)} dev examples the teacher answers {int(teacher.sum())} wrongly. An error of both is "
        "inherited, or hard for any model; one of the student alone is what compression cost; one of the teacher alone "
        f"was mended. Shown are the front's members and the best of each regime ({len(trials)}); their answers are "
        "computed from their weights."
    )
    overlaps = {trial.id: overlap(wrong[trial.id], teacher) for trial in trials}
    parts: list[Picture | Table] = [_table(trials, overlaps), _bars(trials, overlaps)]
    members = [trial for trial in trials if trial in subject.front]
    if members:
        parts.append(_matrix(members, wrong, teacher))
    return Section("errors", "Errors, shared and own", [words, *absent], parts)


def _table(trials: Sequence[TrialRecord], overlaps: Mapping[str, Overlap]) -> Table:
    rows = [
        (title(trial), str(it.shared), f"{100 * it.inherited:.0f} %", str(it.own), str(it.mended))
        for trial in trials
        for it in (overlaps[trial.id],)
    ]
    header = (
        "student",
        "errors of both",
        "of the teacher's errors",
        "of the student alone",
        "of the teacher alone",
    )
    return Table("Dev errors of student and teacher, examples.", header, [("", rows)])


def _bars(trials: Sequence[TrialRecord], overlaps: Mapping[str, Overlap]) -> Picture:
    figure = new_figure(8.8, 1.3 + 0.36 * len(trials))
    axes = figure.subplots()
    decorate(axes, "Dev examples answered wrongly")
    places = np.arange(len(trials))[::-1]
    looks = {
        "both": (BLUE, "", [overlaps[t.id].shared for t in trials]),
        "student alone": (ORANGE, "///", [overlaps[t.id].own for t in trials]),
        "teacher alone (mended)": (GREEN, "...", [overlaps[t.id].mended for t in trials]),
    }
    start = np.zeros(len(trials))
    for label, (colour, hatch, values) in looks.items():
        bars = axes.barh(
            places, values, left=start, height=0.7, color=colour, hatch=hatch, edgecolor="white", label=label
        )
        counts = [str(value) if value else "" for value in values]
        axes.bar_label(bars, counts, label_type="center", fontsize=8, color=INK, bbox=BOX)
        start += values
    axes.set_yticks(places, [title(trial) for trial in trials], parse_math=False)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    numbers = "; ".join(f"{title(trial)} {100 * overlaps[trial.id].inherited:.0f} %" for trial in trials)
    caption = f"Of the teacher's errors the students make these shares too: {numbers}."
    return Picture("errors", "Errors beside the teacher's", caption, f"Stacked bars. {caption}", png(figure))


def _matrix(members: Sequence[TrialRecord], wrong: Mapping[str, np.ndarray], teacher: np.ndarray) -> Picture:
    every = {"teacher": teacher} | {clean(trial.id): wrong[trial.id] for trial in members}
    names = list(every)
    values = np.array([[jaccard(one, two) for two in every.values()] for one in every.values()])
    side = 1.6 + 0.5 * len(names)
    figure = new_figure(min(8.8, side + 1.4), min(8.0, side))
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    size = min(8.5, 95 / len(names))
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if value > 0.65 else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(
        range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", parse_math=False
    )
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=0)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("Jaccard index", fontsize=8.5)
    bar.ax.tick_params(labelsize=7.5)
    pairs = [f"{names[i]} and {names[j]} {values[i, j]:.2f}" for i, j in combinations(range(len(names)), 2)]
    caption = (
        "Dev errors that two models share, over those that either makes (Jaccard index): 1 where both fail on the "
        f"same examples, 0 where on none in common. {', '.join(pairs[:10])}."
    )
    return Picture(
        "errors-jaccard", "Overlap of errors on the front", caption, f"Matrix. {caption}", png(figure)
    )
