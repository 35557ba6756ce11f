"""The texts that the front's members get wrong, the surest mistakes first."""

from __future__ import annotations

from collections.abc import Sequence

from ikd_ray.analysis.mistakes import Answer, Mistakes, find_mistakes
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.errors import UnavailableError
from ikd_ray.formatting import clean, number, plural
from ikd_ray.report.components import Example, ExampleAnswer, Examples, Fold, Part, Section, trial_title

TITLE = "The texts they get wrong"
MAX_MEMBERS = 6
MAX_TEXTS = 10  # of each member
MAX_CHARS = 400  # of a text


def mistakes_section(analysis: SweepAnalysis, loader: ModelLoader) -> Section:
    """Return the section with the surest mistakes of the front's members; those of the first one are not folded away.

    Raises:
        UnavailableError: the teacher's weights or the tokens are missing, or those of every student.
    """
    task, labels = analysis.task, loader.dev.labels
    teacher = loader.logits(loader.teacher)
    parts: list[Part] = []
    problems: list[str] = []
    rows: set[int] = set()
    for trial in analysis.front_sample(MAX_MEMBERS):
        try:
            student = loader.logits(loader.student(trial))
        except UnavailableError as error:
            problems.append(str(error))
            continue
        found = find_mistakes(task, labels, student, teacher, MAX_TEXTS)
        own = [mistake.row for mistake in found.surest]
        rows |= set(own)
        examples = _examples(found, loader.texts(own), trial_title(trial))
        parts.append(Fold(f"{trial_title(trial)}: {_total(found)}", [examples]) if parts else examples)
    if not parts:
        raise UnavailableError(" ".join(problems) or "No student is on the front.")
    text = (
        "The dev examples with the largest errors"
        if task.is_regression
        else "The wrong answers on dev that a student is surest of: it gives them the highest probability. "
        "Labels that are wrong themselves are found among them, too"
    )
    source = (
        "Texts are as in the data."
        if loader.original_dev is not None
        else "Texts are the tokens that the models read, as text: in the data they may be written otherwise."
    )
    return Section("mistakes", TITLE, [f"{text}. {source}", *problems], parts, frozenset(rows))


def _total(found: Mistakes) -> str:
    if found.surest and found.surest[0].student.is_right is None:
        return f"the {plural(len(found.surest), 'largest error')} on {plural(found.examples, 'dev example')}"
    return f"{plural(found.total, 'wrong answer')} to {plural(found.examples, 'example')}"


def _examples(found: Mistakes, texts: Sequence[Sequence[str]], title: str) -> Examples:
    shown = [
        Example(
            mistake.row + 1,
            [clean(text, MAX_CHARS) for text in own],
            [
                ExampleAnswer("gold", mistake.gold),
                ExampleAnswer("student", *_answer(mistake.student)),
                ExampleAnswer("teacher", *_answer(mistake.teacher)),
            ],
        )
        for mistake, own in zip(found.surest, texts, strict=True)
    ]
    count = len(shown)
    if not count:
        return Examples(f"{title} answers all {found.examples:,} dev examples rightly.", [])
    if found.surest[0].student.is_right is not None and count < found.total:
        caption = f"{title}: {count} of {_total(found)}."
    else:
        caption = f"{title}: {_total(found)}."
    return Examples(caption, shown)


def _answer(answer: Answer) -> tuple[str, str]:
    """Return the answer with its probability, or with its distance from the gold score; and its verdict."""
    if answer.is_right is None:
        return f"{answer.text} (off by {number(answer.confidence)})", ""
    return f"{answer.text} ({_percent(answer.confidence)})", "right" if answer.is_right else "wrong"


def _percent(probability: float) -> str:
    """Return a probability with a decimal, and none as certain."""
    return "over 99.9 %" if probability > 0.9994 else f"{100 * probability:.1f} %"
