from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.distill.student import layer_map, size_metrics
from ikd_ray.distill.targets import Targets
from ikd_ray.errors import UsageError
from tests.helpers.tiny_models import changed_tensors, copy_state, make_encoder, make_targets

FAST = {"student_layers": 2, "batch_size": 8, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 2}
LABELS, LAYER_1, LAYER_2 = {"soft", "hard"}, {"layer_1/kl", "layer_1/cos"}, {"layer_2/kl", "layer_2/cos"}
TRAIN = {"embeddings": "train"}


@pytest.fixture
def start(data, targets):
    """Return `start(regime="pid", ...)`, which creates a distillation of the two-layer student."""
    return lambda **fields: Distillation(Trial(**(FAST | fields)), data, targets)


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def stage_changes(distillation: Distillation) -> list[set[str]]:
    """Return the names of the tensors that each stage changed."""
    states = {0: copy_state(distillation.student)}
    for epoch in distillation:
        states[epoch.stage] = copy_state(distillation.student)
    return [changed_tensors(*pair) for pair in itertools.pairwise(states.values())]


def groups(distillation: Distillation) -> dict[str, set[str]]:
    """Return the tensor names of the embeddings, of each layer ("1", "2") and of the head."""
    student = distillation.student
    parts = {"embeddings": student.embeddings, "head": student.head}
    parts |= {str(number): layer for number, layer in enumerate(student.layers, start=1)}
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    return {part: {names[id(p)] for p in module.parameters()} for part, module in parts.items()}


@pytest.mark.parametrize("regime", REGIMES)
def test_every_regime_reduces_its_own_losses(start, regime):
    distillation = start(regime=regime, epochs=4, epochs_per_layer=4)
    losses = [epoch.metrics["train/loss"] for epoch in distillation]
    assert len(losses) == 4 * len(distillation.stages)
    for stage in range(len(distillation.stages)):
        assert losses[4 * stage + 3] < losses[4 * stage]


@pytest.mark.parametrize(
    ("regime", "losses"),
    [
        ("hard", [{"hard"}]),
        ("kd", [LABELS]),
        ("id", [LABELS | LAYER_1 | LAYER_2]),
        ("pid", [LAYER_1, LAYER_2, LABELS]),
        ("sid", [LAYER_1, LAYER_1 | LAYER_2, LABELS]),
    ],
)
def test_an_epoch_reports_each_loss_and_their_weighted_sum(start, regime, losses):
    distillation = start(
        regime=regime, epochs=1, epochs_per_layer=1, lambda_=0.3, internal_weight=0.25, temperature=3.0
    )
    epochs = list(distillation)
    assert len(epochs) == len(losses)
    dev = {"mcc", "attention_kl", "teacher_agreement", "nll", "teacher_kl"} | LAYER_1 | LAYER_2
    for number, (epoch, names) in enumerate(zip(epochs, losses, strict=True), start=1):
        expected = {f"train/{name}" for name in names | {"loss"}} | {f"dev/{name}" for name in dev}
        assert set(timeless(epoch.metrics)) == expected | {"stage", "reused_epochs", "trained_epochs"}
        assert (epoch.epoch, epoch.stage, epoch.stages) == (number, number, len(losses))
        assert epoch.remaining == len(losses) - number
        assert epoch.stage_name == distillation.stages[number - 1].name
        assert epoch.metrics["stage"] == number
        assert epoch.metrics["time/epoch_s"] > 0
        weights = {"soft": 1.0, "hard": 1.0 if regime == "hard" else 0.3}
        total = sum(epoch.metrics[f"train/{name}"] * weights.get(name, 0.25) for name in names)
        assert epoch.metrics["train/loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("regime", ["id", "sid", "pid"])
def test_training_losses_are_means_over_the_examples(data, teacher, tmp_path, regime):
    """At a learning rate of almost zero they equal those of the evaluation on the same examples."""
    data = replace(data, splits={"train": data.train, "dev": data.train})
    trial = Trial(**(FAST | {"regime": regime, "learning_rate": 1e-12, "batch_size": 7}))
    for epoch in Distillation(trial, data, make_targets(tmp_path, data, teacher)):
        names = [n for n in epoch.metrics if n.startswith("train/layer")]
        assert names or epoch.stage_name == "C"
        for name in names:
            dev = epoch.metrics[name.replace("train", "dev")]
            assert epoch.metrics[name] == pytest.approx(dev, rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        *(({"regime": regime}, ["1 2 head"]) for regime in ("hard", "kd", "id")),
        *(({"regime": regime, **TRAIN}, ["embeddings 1 2 head"]) for regime in ("hard", "kd", "id")),
        *(
            ({"regime": "pid", "internal_losses": losses}, ["1", "2", "1 2 head"])
            for losses in ("kl", "cos", "both")
        ),
        ({"regime": "pid", **TRAIN}, ["embeddings 1", "2", "embeddings 1 2 head"]),
        ({"regime": "pid", "train": "upto"}, ["1", "1 2", "1 2 head"]),
        ({"regime": "pid", "top_trains": "head"}, ["1", "2", "head"]),
        ({"regime": "pid", "soft_labels": "always"}, ["1 head", "2 head", "1 2 head"]),
        ({"regime": "sid"}, ["1", "1 2", "1 2 head"]),
        ({"regime": "sid", **TRAIN}, ["embeddings 1", "embeddings 1 2", "embeddings 1 2 head"]),
        ({"regime": "sid", "top_trains": "head"}, ["1", "1 2", "head"]),
    ],
    ids=str,
)
def test_a_stage_changes_what_it_trains(start, fields, trained):
    """Internal losses have no gradient for a part of a layer; labels have one for every tensor."""
    distillation = start(**fields)
    part = groups(distillation)
    changes = stage_changes(distillation)
    for changed, parts, stage in zip(changes, trained, distillation.stages, strict=True):
        expected = set().union(*(part[name] for name in parts.split()))
        assert changed <= expected
        assert all(len(changed & part[name]) > 1 for name in parts.split())
        assert changed == expected or not (stage.soft or stage.hard)


@pytest.mark.parametrize("init", ["mapped", "first"])
def test_the_student_starts_from_the_teacher(start, teacher, init):
    distillation = start(student_init=init)
    assert distillation.matched == layer_map(2, 4) == (2, 4)
    source = teacher.layers[1 if init == "mapped" else 0].state_dict()
    assert not changed_tensors(source, distillation.student.layers[0].state_dict())
    before = copy_state(teacher)
    list(distillation)
    assert not changed_tensors(before, copy_state(teacher))


def test_a_cosine_threshold_ends_a_stage_and_changes_nothing_else(start):
    """The threshold is the loss of the first stage's second epoch."""
    usual = list(start(regime="pid", epochs_per_layer=4))
    curve = [e.metrics["train/layer_1/cos"] for e in usual if e.stage == 1]
    assert len(curve) == 4
    assert curve[1] < curve[0]
    ended = list(start(regime="pid", epochs_per_layer=4, cosine_threshold=curve[1]))
    assert [e.stage for e in ended][:3] == [1, 1, 2]
    for a, b in zip(usual[:2], ended[:2], strict=True):
        assert timeless(a.metrics) == timeless(b.metrics)


@pytest.mark.parametrize("losses", ["kl", "cos"])
def test_a_threshold_of_one_ends_a_stage_after_one_epoch(start, losses):
    """This holds where the cosine loss has no weight, too. `remaining` is the maximum that may follow."""
    distillation = start(regime="sid", epochs_per_layer=3, cosine_threshold=1.0, internal_losses=losses)
    epochs = list(distillation)
    assert [e.stage for e in epochs] == [1, 2, 3, 3]
    assert [e.epoch for e in epochs] == [1, 2, 3, 4]
    assert [e.remaining for e in epochs] == [2 + 3 + 2, 2 + 2, 1, 0]


def test_epochs_and_remaining_without_a_threshold(start):
    epochs = list(start(regime="pid", epochs_per_layer=3, epochs=2))
    assert [e.stage for e in epochs] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert [e.remaining for e in epochs] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [e.stage_name for e in epochs] == ["1"] * 3 + ["2"] * 3 + ["C"] * 2


@pytest.mark.parametrize("regime", ["kd", "sid"])
def test_the_same_seed_twice_is_bit_identical(data, targets, regime):
    """This holds with dropout, and whatever the state of the global random generator is."""
    dropping = Targets(targets.folder, data, make_encoder(dropout=0.2))
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))
        reports = []
        trial = Trial(**(FAST | {"regime": regime, "seed": seed}))
        result = distill(trial, data, dropping, report=reports.append)
        results.append(([timeless(e.metrics) for e in reports], copy_state(result.student)))
    assert results[0][0] == results[1][0]
    assert not changed_tensors(results[0][1], results[1][1])
    assert results[0][0] != results[2][0]


def test_distill_returns_the_last_epoch_and_the_sizes(data, targets):
    reports = []
    result = distill(Trial(**FAST), data, targets, report=reports.append)
    assert result.metrics == reports[-1].metrics | size_metrics(result.student)
    assert len(reports) == 2


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_loss_is_an_error(start, regime, value):
    distillation = start(regime=regime)
    with torch.no_grad():
        distillation.student.layers[0].attention.self.query.weight.fill_(value)
    with pytest.raises(DivergedError, match=r"train/.* became (nan|inf) in stage .*, epoch 1"):
        list(distillation)


@pytest.mark.parametrize("regime", REGIMES)
def test_one_batch_and_one_epoch_per_stage(start, regime):
    epochs = list(start(regime=regime, batch_size=4096, epochs=1, epochs_per_layer=1))
    assert all(math.isfinite(e.metrics["train/loss"]) for e in epochs)


@pytest.mark.parametrize("task", ["stsb", "mnli"])
@pytest.mark.parametrize("regime", ["hard", "id", "pid"])
def test_students_of_other_tasks(make_task_data, tmp_path, task, regime):
    data = make_task_data(task, train=12, dev=5)
    targets = make_targets(tmp_path, data, make_encoder(labels=data.task.num_labels))
    result = distill(Trial(**(FAST | {"regime": regime})), data, targets)
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert all(f"dev/{name}" in result.metrics for name in data.task.metrics)


def test_online_attention_gives_the_same_epoch(tmp_path, data, targets, teacher):
    online = make_targets(tmp_path, data, teacher, attention=False)
    trial = Trial(**(FAST | {"regime": "id", "epochs": 1}))
    stored, computed = (timeless(distill(trial, data, t).metrics) for t in (targets, online))
    assert computed == pytest.approx(stored, rel=0.01, abs=0.002)


def test_a_batch_too_small_to_split_is_refused(data, targets):
    """A worker's share of a batch might be empty otherwise. One worker takes any size."""
    trial = Trial(**(FAST | {"regime": "id", "batch_size": 3, "epochs": 1}))
    with pytest.raises(UsageError, match="batch_size 3: too few examples for 2 workers"):
        Distillation(trial, data, targets, DistributedContext(1, 2))
    assert list(Distillation(trial, data, targets))
