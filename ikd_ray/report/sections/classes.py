"""Confusion matrices and per-class scores of the front's members beside their teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ikd_ray.analysis.class_scores import ClassScores, class_scores
from ikd_ray.analysis.model_loader import Model, ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import MISSING
from ikd_ray.report.components import Fold, Matrices, Matrix, Part, Section, Table, format_number, trial_title

TITLE = "Class by class"
MAX_MEMBERS = 6
MAX_CLASSES = 12  # of a matrix
MAX_CONFUSIONS = 15


def classes_section(analysis: SweepAnalysis, loader: ModelLoader) -> Section:
    """Return the section with the scores of each class, the teacher's and those of the front's members.

    Raises:
        UnavailableError: the teacher's weights or the tokens are missing, or those of every student.
    """
    task, labels = analysis.task, loader.dev.labels

    def scores(model: Model) -> ClassScores:
        return class_scores(task, labels, loader.logits(model))

    models, problems = {"teacher": scores(loader.teacher)}, []
    members = analysis.front_sample(MAX_MEMBERS)
    for trial in members:
        try:
            models[trial_title(trial)] = scores(loader.student(trial))
        except UnavailableError as error:
            problems.append(str(error))
    if len(models) == 1:
        raise UnavailableError(" ".join(problems) or "No student is on the front.")
    kind = "range of gold scores" if task.is_regression else "class"
    text = f"The {len(labels):,} dev examples by {kind}, for the teacher and {_count(analysis, members)}."
    classes, table = models["teacher"].classes, _scores_table(models, kind)
    parts: list[Part] = [table, _matrices(models, task.is_regression)]
    if len(classes) > MAX_CLASSES:
        parts = [_confusions_table(models), Fold(f"Scores of all {len(classes)} classes", [table])]
    return Section("classes", TITLE, [text, *problems], parts)


def _count(analysis: SweepAnalysis, members: Sequence[object]) -> str:
    if len(members) == len(analysis.front):
        return "the front's only member" if len(members) == 1 else f"the front's {len(members)} members"
    return f"{len(members)} of the front's {len(analysis.front)} members"


def _scores_table(models: Mapping[str, ClassScores], kind: str) -> Table:
    """Return a group of rows for each score: a row a class, a column a model."""
    teacher = models["teacher"]
    titles = list(teacher.scores)
    header = [kind, "examples", *map(_unbroken, models)]
    groups = []
    for title in reversed(titles):  # F1, which sums up the others, first
        rows = [
            [
                name,
                f"{int(teacher.support[place]):,}",
                *(format_number(float(found.scores[title][place])) for found in models.values()),
            ]
            for place, name in enumerate(teacher.classes)
        ]
        groups.append((title, rows))
    caption = f"Scores of each {kind}. {MISSING}: not defined, such as the precision of a class that is never answered."
    if "mean error" in titles:
        caption = (
            f"Answer less gold score, in the task's units, for each {kind}. {MISSING}: no example is there."
        )
    return Table(caption, header, groups)


def _unbroken(title: str) -> str:
    """Return a trial's title that is broken before its parenthesis alone."""
    name, _, about = title.partition(" ")
    return f"{name} {about.replace(' ', chr(0xA0))}".rstrip()


def _matrices(models: Mapping[str, ClassScores], is_regression: bool) -> Matrices:
    what = "range" if is_regression else "class"
    caption = (
        f"Confusion matrices: numbers of dev examples, the gold {what} in rows, the answered {what} in columns; a "
        "stronger blue is a larger share of the row. On the diagonal the answer is right."
    )
    if is_regression:
        caption += " An answer outside the task's range counts in the nearest one."
    return Matrices(
        caption,
        [
            Matrix(name, found.classes, found.confusion.tolist(), found.shares.tolist())
            for name, found in models.items()
        ],
    )


def _confusions_table(models: Mapping[str, ClassScores]) -> Table:
    groups = [
        (name, [[gold, answer, f"{count:,}"] for gold, answer, count in found.most_confused(MAX_CONFUSIONS)])
        for name, found in models.items()
    ]
    caption = f"The most frequent confusions, up to {MAX_CONFUSIONS} of each model, in dev examples."
    return Table(caption, ["gold class", "answered class", "examples"], groups)
