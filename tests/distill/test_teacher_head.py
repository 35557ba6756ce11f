"""Heads that teachers bring: their classes in the task's order, their scores in the task's units."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.task_file import load_task
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.evaluate import predict, score
from ikd_ray.distill.teacher_head import (
    align_labels,
    label_order_by_name,
    output_layer,
    rescale_scores,
    scale_output,
)
from ikd_ray.tasks import get_task
from tests.helpers.tiny_models import WORDS, make_data, make_encoder, write_tokenizer

FAMILIES = ["bert", "roberta", "electra", "distilbert"]


def score_data(root, score_range, labels):
    """Return train and dev with one text for each gold score."""
    (root / "task.yaml").write_text(
        f"name: scores\ntext: text\nlabel: score\nrange: {score_range}\nmetric: pearson\n"
    )
    task = load_task(root / "task.yaml")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in labels]
    split = Split(texts, None, np.array(labels, np.float32))
    dataset = Dataset(task, {"train": split, "dev": split}, "folder", "")
    return tokenize(dataset, write_tokenizer(root / "tokenizer"), "tiny", 32, root / "data")


@pytest.mark.parametrize(
    ("names", "task", "order"),
    [
        (["unacceptable", "acceptable"], "cola", [0, 1]),
        (["Acceptable", "UNACCEPTABLE"], "cola", [1, 0]),
        (["LABEL_0", "LABEL_1"], "cola", [0, 1]),
        (["LABEL_1", "LABEL_0"], "cola", [1, 0]),
        (["1", "0"], "cola", [1, 0]),  # as the tables write them
        (["CONTRADICTION", "ENTAILMENT", "NEUTRAL"], "mnli", [1, 2, 0]),
        (["POS", "NEG"], "cola", None),
        (["acceptable", "acceptable"], "cola", None),
    ],
)
def test_names_tell_the_order(names, task, order):
    assert label_order_by_name(names, get_task(task)) == order


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_is_put_in_the_order_of_its_names(tmp_path, family):
    data, teacher = make_data(tmp_path, "mnli"), make_encoder(family, 2, 3)
    before = predict(teacher, data.train, data.pad_id)
    note = align_labels(teacher, ["contradiction", "entailment", "neutral"], data)
    np.testing.assert_array_equal(predict(teacher, data.train, data.pad_id), before[:, [1, 2, 0]])
    assert note == (
        "output 1 (entailment) is entailment, output 2 (neutral) is neutral, output 0 (contradiction) is contradiction "
        "(by name)"
    )
    assert align_labels(teacher, ["entailment", "neutral", "contradiction"], data) == ""


def test_names_that_say_nothing_are_measured_on_train(tmp_path):
    """The gold labels are the teacher's own answers, with two classes exchanged."""
    data, teacher = make_data(tmp_path, "mnli", train=200), make_encoder("bert", 2, 3)
    answers = predict(teacher, data.train, data.pad_id)
    gold = np.array([2, 1, 0])[answers.argmax(1)]
    assert len(set(gold)) == 3, "the test needs all classes"
    data.train.labels[:] = gold
    note = align_labels(teacher, ["A", "B", "C"], data)
    assert note == (
        "output 2 (C) is entailment, output 1 (B) is neutral, output 0 (A) is contradiction "
        "(by its answers: so 100% of a sample of train are right)"
    )
    assert (predict(teacher, data.train, data.pad_id).argmax(1) == gold).all()


def test_names_that_the_answers_contradict_are_kept_and_told(tmp_path):
    data, teacher = make_data(tmp_path, "cola", train=200), make_encoder("bert", 2, 2)
    answers = predict(teacher, data.train, data.pad_id)
    data.train.labels[:] = 1 - answers.argmax(1)
    note = align_labels(teacher, ["LABEL_0", "LABEL_1"], data)
    assert note == (
        "output 0 (LABEL_0) is unacceptable, output 1 (LABEL_1) is acceptable (by name), but so only 0% of a sample of "
        "train are right, and 100% if output 1 (LABEL_1) is unacceptable, output 0 (LABEL_0) is acceptable; correct "
        "id2label in its config.json"
    )
    np.testing.assert_array_equal(predict(teacher, data.train, data.pad_id), answers)


def test_measuring_takes_a_sample_of_train(tmp_path, monkeypatch):
    monkeypatch.setattr("ikd_ray.distill.teacher_head.SAMPLE_SIZE", 10)
    data, teacher = make_data(tmp_path), make_encoder("bert", 2)
    gold = predict(teacher, data.train, data.pad_id).argmax(1)
    data.train.labels[:] = gold
    data.train.labels[1] = 1 - gold[1]  # between the first two of the sample
    assert "100%" in align_labels(teacher, ["x", "y"], data)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_in_the_tasks_units_are_kept(tmp_path, family):
    score_range, teacher = [0, 100], make_encoder(family, 2, 1)
    texts = score_data(tmp_path, score_range, np.zeros(60))
    scale_output(output_layer(teacher), 20.0, 50.0)
    answers = predict(teacher, texts.train, texts.pad_id)[:, 0]
    data = score_data(tmp_path, score_range, answers)
    assert rescale_scores(teacher, data) == ""
    np.testing.assert_allclose(predict(teacher, data.train, data.pad_id)[:, 0], answers / 20, rtol=1e-4)
    metrics = score(teacher, data)
    assert metrics["dev/rmse"] < 0.01
    assert metrics["dev/std_ratio"] == pytest.approx(1, abs=1e-3)


def test_scores_on_another_scale_are_mapped_to_the_tasks(tmp_path):
    score_range, teacher = [0, 100], make_encoder("bert", 2, 1)
    texts = score_data(tmp_path, score_range, np.zeros(60))
    answers = predict(teacher, texts.train, texts.pad_id)[:, 0]  # about from -1 to 1
    noise = np.random.default_rng(1).normal(0, 1, 60)
    data = score_data(tmp_path, score_range, 30 * answers + 40 + noise)
    note = rescale_scores(teacher, data)
    assert note.startswith("its scores on train were from ")
    assert score(teacher, data)["dev/rmse"] == pytest.approx(1, rel=0.3)


def test_scores_that_do_not_follow_train_are_left(tmp_path):
    score_range, teacher = [-10, 10], make_encoder("bert", 2, 1)
    texts = score_data(tmp_path, score_range, np.zeros(60))
    answers = predict(teacher, texts.train, texts.pad_id)[:, 0]
    data = score_data(tmp_path, score_range, -answers)
    assert rescale_scores(teacher, data) == ""
    np.testing.assert_allclose(predict(teacher, data.train, data.pad_id)[:, 0], answers / 4 + 2.5, rtol=1e-4)


def test_a_scaled_layer_returns_scaled_outputs():
    layer, inputs = torch.nn.Linear(3, 1), torch.randn(4, 3)
    before = layer(inputs)
    scale_output(layer, 20.0, -1.5)
    torch.testing.assert_close(layer(inputs), 20 * before - 1.5)
