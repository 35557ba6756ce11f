"""Every fast path trains the same weights as a plain loop, without dropout and with the same batches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.distill.evaluate import StudentEvaluator
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.regimes import REGIMES
from tests.helpers import plain_loop
from tests.helpers.shared_trials import PREFIXES
from tests.helpers.tiny_models import copy_state, make_encoder, make_targets

TOP = {"regime": "pid", "top_trains": "head"}


@pytest.fixture(scope="module")
def setting(data, tmp_path_factory):
    """Return data and a teacher's targets in float64: AdamW turns rounding errors of zero gradients into steps."""
    teacher = make_encoder(layers=6)
    teacher.model.double()
    return data, make_targets(tmp_path_factory.mktemp("double"), data, teacher)


def fast_states(distillation: Distillation):
    """Return the student's state after each stage."""
    states = {}
    for epoch in distillation:
        states[epoch.stage] = copy_state(distillation.student.model)
    return list(states.values())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_equal_to_the_plain_loop(distillation: Distillation) -> None:
    """Train, and compare the weights after each stage."""
    start = copy_state(distillation.student.model)
    expected = list(
        plain_loop.train_stages(
            distillation.student.model,
            distillation.targets.teacher.model,
            distillation.stages,
            distillation.trial,
            distillation.data,
            distillation.matched,
        )
    )
    found = fast_states(distillation)
    assert len(found) == len(expected) == len(distillation.stages)
    for a, b in zip(found, expected, strict=True):
        assert max(distance(a[name], b[name]) for name in b) < 1e-5
    assert max(distance(expected[-1][name], start[name]) for name in start) > 1e-3


def trial_of(fields) -> Trial:
    sizes = {"student_layers": 3, "batch_size": 7, "learning_rate": 2e-3, "epochs": 2, "epochs_per_layer": 2}
    return Trial(**(sizes | fields))


@pytest.mark.parametrize(
    "fields",
    [
        *({"regime": regime} for regime in REGIMES),
        {"regime": "id", "embeddings": "train", "internal_losses": "kl"},
        {"regime": "pid", "soft_labels": "always"},
        {"regime": "pid", "train": "upto", "internal_losses": "cos"},
        {"regime": "sid", "soft_labels": "always", "embeddings": "train"},
        TOP,
        {"regime": "sid", "top_trains": "head", "student_init": "first"},
        TOP | {"student_layers": 1},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_weights_after_each_stage_equal_the_plain_loops(setting, fields):
    assert_equal_to_the_plain_loop(Distillation(trial_of(fields), *setting))


@pytest.mark.parametrize("gigabytes", [1e-9, 4e-4])
@pytest.mark.parametrize(
    "fields", [{"regime": "id", "embeddings": "train"}, {"regime": "pid", "train": "upto"}, TOP]
)
def test_steps_of_several_micro_batches_train_the_plain_loops_weights(setting, fields, gigabytes):
    """The bounds allow one example, or about three."""
    assert_equal_to_the_plain_loop(Distillation(trial_of(fields), *setting, memory=StepMemory(gigabytes)))


@pytest.mark.parametrize("fields", [{"regime": "pid"}, TOP], ids=["all", "head"])
@pytest.mark.parametrize("place", ["disk", "recomputed"])
def test_the_storage_of_frozen_activations_changes_nothing(setting, fields, place):
    kept, other = (
        Distillation(trial_of(fields), *setting, prefix=PREFIXES[where]) for where in ("memory", place)
    )
    for a, b in zip(kept, other, strict=True):
        for name, value in a.metrics.items():
            if not name.startswith("time/"):
                assert value == pytest.approx(b.metrics[name], rel=1e-5), name
    a, b = copy_state(kept.student.model), copy_state(other.student.model)
    assert max(distance(a[name], b[name]) for name in b) < 1e-5


@pytest.mark.parametrize("fields", [{"regime": "pid"}, {"regime": "pid", "soft_labels": "always"}, TOP])
def test_dev_losses_of_frozen_layers_equal_a_fresh_evaluation(setting, fields):
    """The trial's evaluation skips layers that did not change; a fresh one runs all layers."""
    data, targets = setting
    distillation = Distillation(trial_of(fields), data, targets)
    for epoch in distillation:
        fresh = StudentEvaluator(distillation.student, data, targets, distillation.matched).evaluate()
        found = {name: value for name, value in epoch.metrics.items() if name in fresh}
        assert found == pytest.approx(fresh, rel=1e-6)
        assert found.keys() == fresh.keys()


def test_frozen_layers_with_stored_outputs_do_not_run(setting, monkeypatch):
    """After a stage's first epoch no frozen layer runs; where only the head trains, no layer at all."""
    data, targets = setting
    distillation = Distillation(trial_of(TOP), data, targets)
    calls = Counter()
    for number, layer in enumerate(distillation.student.layers, start=1):
        layer.attention.self.register_forward_hook(lambda *_, number=number: calls.update([number]))
    steps, ran = 7, {}
    for epoch in distillation:
        ran.setdefault(epoch.stage, []).append([calls[number] for number in (1, 2, 3)])
        calls.clear()
    assert len(data.train) == 48
    dev = 1  # its 20 examples are one batch
    # Stage 1: training runs layer 1 only, evaluation all three.
    assert ran[1] == [[steps + dev, dev, dev]] * 2
    # To store the outputs for the next stage layer 1 runs once over both splits, a batch each.
    assert ran[2] == [[2, steps + dev, dev], [0, steps + dev, dev]]
    assert ran[3] == [[0, 2, steps + dev], [0, 0, steps + dev]]
    assert ran[4] == [[0, 0, 2], [0, 0, 0]]
