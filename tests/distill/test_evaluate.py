from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ikd_ray.data.batches import collate
from ikd_ray.distill import memory
from ikd_ray.distill.evaluate import StudentEvaluator, score
from ikd_ray.distill.student import build_student, layer_map
from tests.helpers import numpy_losses
from tests.helpers.tiny_models import make_encoder, make_targets

TASKS = ["cola", "stsb", "mnli", "mrpc"]


@pytest.fixture(scope="module")
def setting(make_task_data, tmp_path_factory):
    """Return `setting("stsb")`: data, targets of a four-layer teacher, and a student of another seed."""
    made = {}

    def make(task):
        if task not in made:
            data = make_task_data(task, train=4, dev=23)
            teacher = make_encoder(labels=data.task.num_labels)
            targets = make_targets(tmp_path_factory.mktemp(task), data, teacher)
            made[task] = data, targets, make_encoder(layers=2, labels=data.task.num_labels, seed=5)
        return made[task]

    return make


def evaluated(data, targets, student, matched=(2, 4)) -> dict[str, float]:
    return StudentEvaluator(student, data, targets, matched).evaluate()


def one_by_one(split, pad_id):
    return [collate(split, np.array([row]), pad_id) for row in range(len(split))]


def plain_logits(model, split, pad_id) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([model(batch).logits for batch in one_by_one(split, pad_id)]).numpy()


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("task", TASKS)
def test_score_equals_the_tasks_score_of_a_plain_forward_pass(setting, task):
    data, _, student = setting(task)
    metrics = score(student, data)
    expected = {}
    for name, split in data.evaluation_splits.items():
        values = data.task.score(split.labels, plain_logits(student, split, data.pad_id))
        expected |= {f"{name}/{key}": value for key, value in values.items()}
        if data.task.is_regression:
            errors = plain_logits(student, split, data.pad_id)[:, 0] - split.labels
            expected[f"{name}/rmse"] = np.sqrt(np.square(errors).mean())
            expected[f"{name}/mae"] = np.abs(errors).mean()
            expected[f"{name}/std_ratio"] = (errors + split.labels).std() / split.labels.std()
        else:
            found = log_probabilities(plain_logits(student, split, data.pad_id))
            expected[f"{name}/nll"] = -found[np.arange(len(split)), split.labels].mean()
    assert metrics == pytest.approx(expected, abs=1e-5)
    assert set(metrics) >= {f"dev/{name}" for name in data.task.metrics}


def test_mnli_has_two_dev_sets(setting):
    metrics = evaluated(*setting("mnli"))
    names = {"accuracy", "attention_kl", "teacher_agreement", "nll", "teacher_kl"}
    names |= {f"layer_{i}/{loss}" for i in (1, 2) for loss in ("kl", "cos")}
    assert set(metrics) == {f"{split}/{name}" for split in ("dev", "dev_mismatched") for name in names}
    assert metrics["dev/layer_1/kl"] != metrics["dev_mismatched/layer_1/kl"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("matched", [(2, 4), (4, 1)])
def test_losses_are_means_over_the_examples(setting, task, matched):
    data, targets, student = setting(task)
    metrics = evaluated(data, targets, student, matched)
    for name, split in data.evaluation_splits.items():
        kl, cos = np.zeros((2, 2, len(split)))
        for row, batch in enumerate(one_by_one(split, data.pad_id)):
            target = targets.fetch(name, batch, cls=matched, attention=matched)
            with torch.no_grad():
                output = student(batch, attention_layers=[1, 2])
            for i, source in enumerate(matched):
                length = int(split.lengths[row])
                maps = output.attention[i + 1][0].numpy(), target.attention[source][0].numpy()
                kl[i, row] = numpy_losses.attention_kl_one(*maps, length)
                cos[i, row] = numpy_losses.cls_cosine(output.cls[i + 1].numpy(), target.cls[source].numpy())
        for i in range(2):
            assert metrics[f"{name}/layer_{i + 1}/kl"] == pytest.approx(kl[i].mean(), rel=1e-4)
            assert metrics[f"{name}/layer_{i + 1}/cos"] == pytest.approx(cos[i].mean(), rel=1e-4)
        assert metrics[f"{name}/attention_kl"] == pytest.approx(kl.mean(), rel=1e-4)
        assert kl.mean() > 0.01


@pytest.mark.parametrize("task", ["cola", "mnli"])
def test_answer_losses_are_means_over_the_examples(setting, task):
    data, targets, student = setting(task)
    split = data.splits["dev"]
    mine, theirs = (
        log_probabilities(plain_logits(m, split, data.pad_id)) for m in (student, targets.teacher)
    )
    metrics = evaluated(data, targets, student)
    assert metrics["dev/nll"] == pytest.approx(-mine[np.arange(len(split)), split.labels].mean(), rel=1e-4)
    kl = (np.exp(theirs) * (theirs - mine)).sum(1).mean()
    assert metrics["dev/teacher_kl"] == pytest.approx(kl, rel=1e-3)
    assert kl > 1e-3


def test_regression_has_no_losses_of_probabilities(setting):
    assert not {"dev/nll", "dev/teacher_kl"} & evaluated(*setting("stsb")).keys()


@pytest.mark.parametrize("size", [1, 7, 22])
def test_the_batch_size_changes_no_metric(setting, monkeypatch, size):
    expected = evaluated(*setting("mrpc"))
    monkeypatch.setattr(memory, "BATCH", size)
    assert evaluated(*setting("mrpc")) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("task", ["cola", "mnli"])
def test_agreement_is_the_share_of_equal_predictions(setting, task):
    data, targets, student = setting(task)
    split = data.splits["dev"]
    mine, theirs = (plain_logits(m, split, data.pad_id).argmax(1) for m in (student, targets.teacher))
    share = np.mean([a == b for a, b in zip(mine, theirs, strict=True)])
    assert 0 < share < 1
    assert evaluated(data, targets, student)["dev/teacher_agreement"] == pytest.approx(share)


def test_agreement_of_regression_is_pearsons_correlation(setting):
    data, targets, student = setting("stsb")
    split = data.splits["dev"]
    mine, theirs = (plain_logits(m, split, data.pad_id)[:, 0] for m in (student, targets.teacher))
    expected = np.corrcoef(mine, theirs)[0, 1]
    found = evaluated(data, targets, student)["dev/teacher_agreement"]
    assert found == pytest.approx(expected, abs=1e-3)
    assert abs(expected) < 0.99


def test_agreement_of_a_constant_regression_is_zero(setting):
    data, targets, student = setting("stsb")
    constant = copy.deepcopy(student)
    with torch.no_grad():
        for parameter in constant.head[-1].parameters():
            parameter.zero_()
    assert evaluated(data, targets, constant)["dev/teacher_agreement"] == 0


@pytest.mark.parametrize("task", TASKS)
def test_a_clone_of_the_teacher_agrees_with_it(setting, task):
    data, targets, _ = setting(task)
    clone = build_student(targets.teacher, 4, "mapped")
    metrics = evaluated(data, targets, clone, layer_map(4, 4))
    for layer in range(1, 5):
        assert metrics[f"dev/layer_{layer}/kl"] == pytest.approx(0, abs=1e-3)
        assert metrics[f"dev/layer_{layer}/cos"] == pytest.approx(0, abs=1e-5)
    assert metrics["dev/teacher_agreement"] == pytest.approx(1, abs=1e-5)
    teacher_scores = score(targets.teacher, data)
    assert {name: metrics[name] for name in teacher_scores} == pytest.approx(teacher_scores, abs=1e-5)


def test_evaluation_turns_dropout_off(setting):
    data, targets, _ = setting("cola")
    student = make_encoder(layers=2, dropout=0.5).train()
    assert evaluated(data, targets, student) == evaluated(data, targets, student.train())
    assert score(student.train(), data) == score(student.train(), data)


def test_score_and_evaluator_agree(setting):
    data, targets, student = setting("mrpc")
    scores, metrics = score(student, data), evaluated(data, targets, student)
    assert {name: metrics[name] for name in scores} == pytest.approx(scores, rel=1e-5)
