"""Class by class, and the texts that students get wrong."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, f1_score

from ikd_ray.report.sections import classes
from ikd_ray.report.sections.classes import classes_section
from ikd_ray.report.sections.mistakes import mistakes_section
from tests.helpers.run_command import write_glue
from tests.helpers.sample_sweep import make_sweep, open_sweep
from tests.helpers.tiny_models import make_dataset

# Classes


def test_each_class_has_scikit_learn_s_scores(analysis, loader):
    scores, confusions = classes_section(analysis, loader).parts
    labels = loader.dev.labels
    models = [loader.teacher, *(loader.student(trial) for trial in analysis.front_sample(6))]
    answers = [loader.logits(model).argmax(1) for model in models]
    assert list(scores.header[:3]) == ["class", "examples", "teacher"]
    f1 = dict(scores.groups)["F1"]
    assert [row[0] for row in f1] == ["unacceptable", "acceptable"]
    for place, row in enumerate(f1):
        assert row[1] == str((labels == place).sum())
        assert row[2:] == [f"{f1_score(labels, of_model, pos_label=place):.3f}" for of_model in answers]
    for matrix, of_model in zip(confusions.matrices, answers, strict=True):
        assert np.array_equal(matrix.counts, confusion_matrix(labels, of_model))


def test_of_many_classes_the_most_frequent_confusions_are_listed(analysis, loader, monkeypatch):
    monkeypatch.setattr(classes, "MAX_CLASSES", 1)
    confusions, fold = classes_section(analysis, loader).parts
    assert fold.title == "Scores of all 2 classes"
    for (name, rows), matrix in zip(confusions.groups, [loader.teacher], strict=False):
        wrong = confusion_matrix(loader.dev.labels, loader.logits(matrix).argmax(1))
        assert name == "teacher"
        expected = {("unacceptable", "acceptable"): wrong[0, 1], ("acceptable", "unacceptable"): wrong[1, 0]}
        assert {(gold, answer): int(count) for gold, answer, count in rows} == {
            pair: count for pair, count in expected.items() if count
        }


def test_scores_are_compared_by_range(tmp_path):
    analysis, loader = open_sweep(make_sweep(tmp_path / "outputs", trials=2, task="stsb"))
    table, confusions = classes_section(analysis, loader).parts
    assert [row[0] for row in table.groups[0][1]] == ["0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"]
    assert sum(map(sum, confusions.matrices[0].counts)) == len(loader.dev)


# Mistakes


def test_the_surest_mistakes_are_those_of_the_models_own_forward_passes(analysis, loader):
    section = mistakes_section(analysis, loader)
    first, *others = section.parts
    trial = analysis.recommendation.trial
    logits, labels = loader.logits(loader.student(trial)), loader.dev.labels
    wrong = {int(row) for row in np.flatnonzero(logits.argmax(1) != labels)}
    shown = [example.number - 1 for example in first.examples]
    assert len(shown) == min(10, len(wrong))
    assert {*shown} <= wrong
    confidence = torch.tensor(logits).softmax(1).amax(1)[shown]
    assert all(one >= other for one, other in pairwise(confidence.tolist()))
    texts = make_dataset("cola").splits["dev"].text
    for example in first.examples:
        assert list(example.texts) == [texts[example.number - 1]]
        gold, student, teacher = example.answers
        assert gold.answer == analysis.task.labels[labels[example.number - 1]]
        assert student.verdict == "wrong"
        answer = loader.logits(loader.teacher)[example.number - 1].argmax()
        assert teacher.verdict == ("right" if answer == labels[example.number - 1] else "wrong")
    assert [part.kind for part in others] == ["fold"] * (len(analysis.front) - 1)
    numbers = {e.number - 1 for part in (first, *(fold.parts[0] for fold in others)) for e in part.examples}
    assert section.dev_rows == numbers
    assert "tokens that the models read" in section.paragraphs[0]


def test_long_and_hostile_texts_are_cut_and_cleaned(analysis, loader, monkeypatch):
    monkeypatch.setattr(loader, "texts", lambda rows: [("\x1b[31m" + "word " * 200,)] * len(rows))
    text = mistakes_section(analysis, loader).parts[0].examples[0].texts[0]
    assert len(text) == 400
    assert text.startswith("word word")
    assert text.endswith("…")


def test_texts_are_those_of_the_data_where_it_is_still_there(tmp_path):
    folder = write_glue(tmp_path / "glue", train=48, dev=20)
    sweep = make_sweep(tmp_path / "outputs", trials=1, settings={"data_dir": str(folder)})
    dev = make_dataset().splits["dev"]
    loader = open_sweep(sweep)[1]
    assert loader.original_dev.text == dev.text
    assert loader.texts([3, 1]) == [(dev.text[3],), (dev.text[1],)]
    (folder / "CoLA" / "dev.tsv").write_text("x\t1\t\tanother text\n")
    loader = open_sweep(sweep)[1]
    assert loader.original_dev is None
    assert loader.texts([3, 1]) == [(dev.text[3],), (dev.text[1],)]


def test_both_texts_of_a_pair_are_read_from_the_tokens(tmp_path):
    loader = open_sweep(make_sweep(tmp_path / "outputs", trials=1, task="mrpc"))[1]
    dev = make_dataset("mrpc").splits["dev"]
    assert loader.texts([3, 1]) == [(dev.text[row], dev.text_pair[row]) for row in (3, 1)]


def test_the_largest_errors_of_scores_come_first(tmp_path):
    analysis, loader = open_sweep(make_sweep(tmp_path / "outputs", trials=1, task="stsb"))
    examples = mistakes_section(analysis, loader).parts[0]
    task, rows = analysis.task, [example.number - 1 for example in examples.examples]
    errors = np.abs(loader.logits(loader.student(analysis.best))[:, 0] - loader.dev.labels)
    assert rows == [int(row) for row in np.argsort(-errors, kind="stable")[:10]]
    assert task.score_scale == 1
    assert f"(off by {errors[rows[0]]:.4g})" in examples.examples[0].answers[1].answer
    assert "10 largest errors on 20 dev examples" in examples.caption
