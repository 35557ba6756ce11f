"""Every fast path gives what the plain way gives: the weights after each stage, dropout off, the same batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.regimes import REGIMES
from tests.helpers import plain_loop
from tests.helpers.tiny_models import copy_state, make_encoder, make_targets

IN_MEMORY, ON_DISK, RECOMPUTED = (
    PrefixConfig(),
    PrefixConfig(memory_gb=0),
    PrefixConfig(memory_gb=0, disk_gb=0),
)
TOP = {"regime": "pid", "top_trains": "head"}


@pytest.fixture(scope="module")
def setting(data, tmp_path_factory):
    """Data and targets of a teacher in float64: AdamW turns the rounding error of a zero gradient into a step."""
    teacher = make_encoder(layers=6)
    teacher.model.double()
    return data, make_targets(tmp_path_factory.mktemp("double"), data, teacher)


def fast_states(course: Distillation):
    """The student's state after each stage."""
    states = {}
    for epoch in course:
        states[epoch.stage] = copy_state(course.student.model)
    return list(states.values())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


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
    data, targets = setting
    trial = trial_of(fields)
    course = Distillation(trial, data, targets)
    start = copy_state(course.student.model)
    expected = list(
        plain_loop.train_stages(
            course.student.model, targets.teacher.model, course.stages, trial, data, course.matched
        )
    )
    found = fast_states(course)
    assert len(found) == len(expected) == len(course.stages)
    for a, b in zip(found, expected, strict=True):
        assert max(distance(a[name], b[name]) for name in b) < 1e-5
    assert max(distance(expected[-1][name], start[name]) for name in start) > 1e-3


@pytest.mark.parametrize("fields", [{"regime": "pid"}, TOP], ids=["all", "head"])
@pytest.mark.parametrize("config", [ON_DISK, RECOMPUTED], ids=["on disk", "recomputed"])
def test_where_the_frozen_prefix_is_kept_changes_nothing(setting, fields, config):
    data, targets = setting
    kept, other = (
        Distillation(trial_of(fields), data, targets, prefix=place) for place in (IN_MEMORY, config)
    )
    for a, b in zip(kept, other, strict=True):
        for name, value in a.metrics.items():
            if not name.startswith("time/"):
                assert value == pytest.approx(b.metrics[name], rel=1e-5), name
    a, b = copy_state(kept.student.model), copy_state(other.student.model)
    assert max(distance(a[name], b[name]) for name in b) < 1e-5


@pytest.mark.parametrize("fields", [{"regime": "pid"}, {"regime": "pid", "soft_labels": "always"}, TOP])
def test_what_frozen_layers_gave_on_dev_is_what_they_give(setting, fields):
    """Evaluation leaves out layers that did not change; a fresh one runs them all."""
    from ikd_ray.distill.evaluate import StudentEvaluator

    data, targets = setting
    course = Distillation(trial_of(fields), data, targets)
    for epoch in course:
        fresh = StudentEvaluator(course.student, data, targets, course.matched).evaluate()
        found = {name: value for name, value in epoch.metrics.items() if name in fresh}
        assert found == pytest.approx(fresh, rel=1e-6)
        assert found.keys() == fresh.keys()


def test_a_stored_prefix_is_read_not_run(setting, monkeypatch):
    """In an epoch after the first no frozen layer runs; with the head alone, none at all."""
    data, targets = setting
    course = Distillation(trial_of(TOP), data, targets)
    calls = np.zeros(4, int)
    for number, layer in enumerate(course.student.layers, start=1):
        for part in (layer.attention.self,):
            part.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    steps, ran = 7, {}
    for epoch in course:
        ran.setdefault(epoch.stage, []).append(calls.copy())
        calls[:] = 0
    assert len(data.train) == 48
    dev = 1  # its 20 examples are one batch
    # Layer 1's turn: training runs it alone, evaluation all three.
    assert [list(counts[1:]) for counts in ran[1]] == [[steps + dev, dev, dev]] * 2
    # To fill the store of the next stage layer 1 runs once over both splits, a batch each.
    assert [list(counts[1:]) for counts in ran[2]] == [[2, steps + dev, dev], [0, steps + dev, dev]]
    assert [list(counts[1:]) for counts in ran[3]] == [[0, 2, steps + dev], [0, 0, steps + dev]]
    assert [list(counts[1:]) for counts in ran[4]] == [[0, 0, 2], [0, 0, 0]]
