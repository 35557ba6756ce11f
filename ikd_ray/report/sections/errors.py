"""Errors that students share with their teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import jaccard_score

from ikd_ray.analysis.error_overlap import ErrorOverlap, dev_errors, error_overlap
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import clean, plural
from ikd_ray.records import TrialRecord
from ikd_ray.report.components import Part, Picture, Section, Table, View, trial_title
from ikd_ray.report.style import (
    INK,
    MUTED,
    WIDE,
    colour_bar,
    decorate,
    legend_below,
    new_figure,
    stacked_bars,
)

MAX_STUDENTS = 25
COUNT_BOX = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none"}


def errors_section(analysis: SweepAnalysis, loader: ModelLoader) -> Section:
    """Return the section that compares the dev errors of students and teacher.

    Raises:
        UnavailableError: weights or tokens are missing, or the task is a regression.
    """
    if analysis.task.is_regression:
        raise UnavailableError(
            f"{analysis.task.name} is a regression task: its answers are near or far, not right or wrong."
        )
    teacher = dev_errors(loader, loader.teacher)
    errors, problems = {}, []
    for trial in analysis.highlighted[:MAX_STUDENTS]:
        try:
            errors[trial.id] = dev_errors(loader, loader.student(trial))
        except UnavailableError as error:
            problems.append(str(error))
    trials = [trial for trial in analysis.highlighted if trial.id in errors]
    if not trials:
        raise UnavailableError(" ".join(problems))
    text = (
        f"Of {plural(len(teacher), 'dev example')} the teacher answers {int(teacher.sum()):,} wrongly. An error of "
        "both is inherited, or hard for any model; one of the student alone is what compression cost; one of the "
        "teacher alone was mended. Shown are the front's members and the best of each regime "
        f"({plural(len(trials), 'student')}); their answers are computed from their weights."
    )
    overlaps = {trial_title(trial): error_overlap(errors[trial.id], teacher) for trial in trials}
    parts: list[Part] = [_table(overlaps), _bars(overlaps)]
    members = [trial for trial in trials if trial in analysis.front]
    if members:
        parts.append(_matrix(members, errors, teacher))
    return Section("errors", "Errors, shared and own", [text, *problems], parts)


def _table(overlaps: Mapping[str, ErrorOverlap]) -> Table:
    rows = [
        (
            title,
            str(overlap.both),
            f"{100 * overlap.shared_fraction:.0f} %",
            str(overlap.student_only),
            str(overlap.teacher_only),
        )
        for title, overlap in overlaps.items()
    ]
    header = (
        "student",
        "errors of both",
        "of the teacher's errors",
        "of the student alone",
        "of the teacher alone",
    )
    return Table("Dev errors of student and teacher, examples.", header, [("", rows)])


def _bars(overlaps: Mapping[str, ErrorOverlap]) -> Picture:
    parts = {
        "both": [overlap.both for overlap in overlaps.values()],
        "student alone": [overlap.student_only for overlap in overlaps.values()],
        "teacher alone (mended)": [overlap.teacher_only for overlap in overlaps.values()],
    }

    longest = max(sum(counts) for counts in zip(*parts.values(), strict=True))

    def draw(width: float) -> Figure:
        figure = new_figure(width, 1.3 + 0.36 * len(overlaps))
        axes = figure.subplots()
        decorate(axes, "Dev examples answered wrongly")
        least = longest * (0.02 if width == WIDE else 0.08)  # that has room for its number
        for bars, counts in zip(stacked_bars(axes, list(overlaps), parts, 0.7), parts.values(), strict=True):
            labels = [f"{count:,}" if count > least else "" for count in counts]
            axes.bar_label(bars, labels, label_type="center", fontsize=8, color=INK, bbox=COUNT_BOX)
        legend_below(figure)
        return figure

    numbers = "; ".join(
        f"{title} {100 * overlap.shared_fraction:.0f} %" for title, overlap in overlaps.items()
    )
    caption = "The errors of each student and of the teacher, those of both first."
    alt = f"Stacked bars. Of the teacher's errors the students make these shares too: {numbers}."
    return Picture("errors", "Errors beside the teacher's", caption, alt, [View.of(draw)])


def _matrix(members: Sequence[TrialRecord], errors: Mapping[str, np.ndarray], teacher: np.ndarray) -> Picture:
    models = {"teacher": teacher} | {clean(trial.id): errors[trial.id] for trial in members}
    names = list(models)
    values = np.array(
        [
            [jaccard_score(first, second, zero_division=1.0) for second in models.values()]
            for first in models.values()
        ]
    )
    side = 1.6 + 0.5 * len(names)
    places = range(len(names))

    def draw(width: float) -> Figure:
        figure = new_figure(min(width, side + 1.4), min(0.9 * width, side))
        axes = figure.subplots()
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, interpolation="none")
        size = min(8.5, 11 * width / len(names))
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value > 0.65 else INK
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour)
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, names)
        axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5, length=0)
        colour_bar(figure, image, axes, "Jaccard index")
        return figure

    pairs = [f"{names[i]} and {names[j]} {values[i, j]:.2f}" for i, j in combinations(places, 2)]
    caption = (
        "Dev errors that two models share, over those that either makes (Jaccard index): 1 where both fail on the "
        "same examples, 0 where on none in common."
    )
    title, alt = "Overlap of errors on the front", f"Matrix of Jaccard indices. {', '.join(pairs[:10])}."
    return Picture("errors-jaccard", title, caption, alt, [View.of(draw)])
