"""Texts without a label: students imitate the teacher on them, and nothing else uses them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ikd_ray.config import TeacherConfig, Trial
from ikd_ray.data.dataset import UNLABELLED, add_unlabelled
from ikd_ray.data.splits import hold_out, training_rows
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.loop import distill
from ikd_ray.distill.losses import hard_label_loss
from ikd_ray.distill.stage_training import StageTrainer, train_stage
from ikd_ray.distill.teacher import TeacherSource, fine_tuning_stage, teacher_key
from tests.helpers.tiny_models import (
    WORDS,
    changed_tensors,
    copy_state,
    make_dataset,
    make_encoder,
    make_targets,
    write_tokenizer,
)

MORE = 30


def more_texts(count: int = MORE, seed: int = 9) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


def make_setting(root, task: str = "cola", unlabelled: bool = True):
    """Return data, and the targets of a teacher of four layers."""
    dataset = make_dataset(task)
    if unlabelled:
        pairs = more_texts(seed=8) if dataset.task.is_pair else None
        dataset = add_unlabelled(dataset, more_texts(), pairs)
    folder = root / ("more" if unlabelled else "plain")
    data = tokenize(dataset, write_tokenizer(root / "tokenizer"), "tiny", 32, folder / "data")
    teacher = make_encoder(labels=data.task.num_labels)
    return data, make_targets(folder / "targets", data, teacher)


def train(data, targets, **options) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return the last epoch's metrics, and the weights."""
    defaults = {"student_layers": 2, "epochs": 2, "epochs_per_layer": 1, "batch_size": 16}
    result = distill(Trial(**defaults | options), data, targets)
    return result.metrics, copy_state(result.student.model)


@pytest.mark.parametrize("regime", ["kd", "id", "pid", "sid"])
@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_students_learn_from_texts_without_a_label(tmp_path, regime, task):
    data, targets = make_setting(tmp_path, task)
    metrics, weights = train(data, targets, regime=regime)
    assert all(np.isfinite(value) for value in metrics.values())
    _, without = train(data, targets, regime=regime, unlabelled_fraction=0.0)
    _, half = train(data, targets, regime=regime, unlabelled_fraction=0.5)
    assert changed_tensors(weights, without)
    assert changed_tensors(weights, half)


@pytest.mark.parametrize("regime", ["kd", "pid"])
def test_a_share_of_none_is_training_without_them(tmp_path, regime):
    """But for the last digits: the teacher's outputs are computed in other batches."""
    _, weights = train(*make_setting(tmp_path, unlabelled=False), regime=regime)
    _, same = train(*make_setting(tmp_path), regime=regime, unlabelled_fraction=0.0)
    torch.testing.assert_close(weights, same, rtol=0, atol=1e-3)


def test_gold_labels_alone_never_see_them(tmp_path):
    _, weights = train(*make_setting(tmp_path, unlabelled=False), regime="hard")
    _, same = train(*make_setting(tmp_path), regime="hard")
    assert not changed_tensors(weights, same)


def test_fine_tuning_a_teacher_does_without_them(tmp_path):
    """A batch without any labelled example would have no loss."""
    states = []
    for unlabelled in (False, True):
        data, _ = make_setting(tmp_path, unlabelled=unlabelled)
        model = make_encoder(layers=2)
        config = TeacherConfig(epochs=1, learning_rate=1e-3, batch_size=8)
        trainer = StageTrainer(
            model,
            fine_tuning_stage(2, 1),
            config,
            data,
            None,
            (),
            DistributedContext(device=torch.device("cpu")),
        )
        list(train_stage(trainer))
        states.append(copy_state(model))
    assert not changed_tensors(*states)


@pytest.mark.parametrize("regression", [False, True])
def test_a_missing_label_adds_nothing_to_loss_and_gradient(regression):
    logits = torch.randn(4, 1 if regression else 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1.0, np.nan, 0.5, 2.0]) if regression else torch.tensor([1, UNLABELLED, 0, 2])
    loss = hard_label_loss(logits, labels, some_unlabelled=True)
    labelled_rows = [0, 2, 3]
    expected = hard_label_loss(logits[labelled_rows], labels[labelled_rows]) * len(labelled_rows) / 4
    assert float(loss) == pytest.approx(float(expected))
    [gradient] = torch.autograd.grad(loss, logits)
    [expected_gradient] = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)
    assert (gradient[1] == 0).all()


def test_the_hard_loss_on_record_is_a_mean_over_labelled_examples(tmp_path):
    """With a learning rate of nearly nothing it is the teacher's own, with and without further texts."""
    options = {"regime": "kd", "learning_rate": 1e-12, "epochs": 1}
    plain, _ = train(*make_setting(tmp_path, unlabelled=False), **options)
    more, _ = train(*make_setting(tmp_path), **options)
    assert more["train/hard"] == pytest.approx(plain["train/hard"], rel=1e-4)


def test_fractions_of_labelled_and_unlabelled_rows_are_chosen_apart():
    labels = np.array([0, 1, UNLABELLED, 0, 1, UNLABELLED, UNLABELLED, UNLABELLED])
    assert training_rows(labels, 1.0, 1.0, 0).tolist() == list(range(8))
    assert training_rows(labels, 1.0, 0.0, 0).tolist() == [0, 1, 3, 4]
    rows = training_rows(labels, 0.5, 0.5, 0)
    assert sorted(labels[rows]) == [UNLABELLED, UNLABELLED, 0, 1]


def test_only_labelled_examples_are_held_out():
    dataset = add_unlabelled(make_dataset(), more_texts(), None)
    plain, with_texts = hold_out(make_dataset()), hold_out(dataset)
    assert with_texts.splits["holdout"].text == plain.splits["holdout"].text
    assert len(with_texts.splits["train"]) == len(plain.splits["train"]) + MORE


def test_a_teacher_is_fine_tuned_once_with_and_without_them(tmp_path):
    source = TeacherSource("tiny", "tiny", "key", 2, 8, 2, 30, has_head=False)
    plain, more = (make_setting(tmp_path, unlabelled=unlabelled)[0] for unlabelled in (False, True))
    assert plain.key != more.key
    assert teacher_key(source, plain, TeacherConfig()) == teacher_key(source, more, TeacherConfig())
