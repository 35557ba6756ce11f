"""The memory of a step: batches are split by a bound, and a layer's attention is dropped before the next one's."""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.config import Trial
from ikd_ray.distill import evaluate
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.evaluate import StudentEvaluator, score
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.memory import BATCH, CELL_BYTES, ModelShape, StepMemory
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.stage_training import StageDataLoader
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import fine_tuning_stage
from tests.helpers.tiny_models import make_encoder

BERT_BASE = ModelShape(heads=12, hidden=768)
FAST = {"student_layers": 2, "epochs": 1, "epochs_per_layer": 1, "batch_size": 8}


def bound_of(examples: float, cells: int) -> StepMemory:
    return StepMemory((examples * cells + 1) * CELL_BYTES / 1e9)


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=2, max_size=90),
    fit=st.floats(0.01, 100),
    processes=st.integers(1, 4),
)
def test_parts_are_as_few_as_the_bound_allows(lengths, fit, processes):
    lengths, cells = np.sort(lengths), partial(BERT_BASE.cells, 7, 3)
    rows = np.arange(len(lengths))[: max(2 * processes, len(lengths) // 2)]
    processes = min(processes, len(rows))
    longest = cells(int(lengths[rows].max()))
    memory = bound_of(fit, longest)
    parts = memory.split(rows, lengths, cells, processes)
    assert np.concatenate(parts).tolist() == rows.tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= processes, "a process has no share"
    share, allowed = -(-max(sizes) // processes), memory.max_examples(longest)
    assert share <= allowed or min(sizes) < 2 * processes
    if len(parts) > 1:
        assert -(-len(rows) // (len(parts) - 1)) > allowed * processes, "fewer parts would do"


@pytest.mark.parametrize("length", [64, 128])
@pytest.mark.parametrize("regime", REGIMES)
def test_ordinary_steps_are_whole(length, regime):
    """With the default bound, 32 examples of 128 tokens train whole, students of 5 layers and BERT-base itself."""
    cells = [BERT_BASE.training_cells(stage, 5, length) for stage in REGIMES[regime](Trial(student_layers=5))]
    cells.append(BERT_BASE.training_cells(fine_tuning_stage(12, 1), 12, length))
    assert StepMemory().max_examples(max(cells)) >= 32
    assert StepMemory().max_examples(BERT_BASE.evaluation_cells(length)) >= BATCH


def test_a_stage_costs_the_layers_that_it_trains():
    pid = REGIMES["pid"](Trial(regime="pid", student_layers=3))
    (together,) = REGIMES["id"](Trial(regime="id", student_layers=3))
    layer, *_, top = (BERT_BASE.training_cells(stage, 3, 100) for stage in pid)
    assert BERT_BASE.training_cells(together, 3, 100) == 3 * layer
    assert layer == 35 * 768 * 100 + 6 * 12 * 100**2
    assert top == 3 * (35 * 768 * 100 + 3 * 12 * 100**2)


def test_a_step_is_split_by_its_own_stage_and_length(data, targets, monkeypatch):
    """Short batches stay whole where long ones are split."""
    (stage,) = REGIMES["id"](Trial(regime="id", **FAST))
    shape, longest = ModelShape.of(targets.teacher.config), int(data.train.lengths.max())
    memory = bound_of(4, shape.training_cells(stage, 2, longest))
    distillation = Distillation(Trial(regime="id", **FAST), data, targets, memory=memory)
    plans, load = [], StageDataLoader.load
    monkeypatch.setattr(StageDataLoader, "load", lambda self, plan: plans.append(plan) or load(self, plan))
    list(distillation)
    (plan,) = plans
    assert {len(step) for step in plan} == {1, 2}
    for step in plan:
        lengths = data.train.lengths[np.concatenate(step)]
        most = memory.max_examples(shape.training_cells(stage, 2, int(lengths.max())))
        assert (len(step) == 1) == (len(lengths) <= most)


@pytest.mark.parametrize("attention_stored", [True, False])
def test_evaluation_holds_the_attention_of_one_layer(data, targets, monkeypatch, attention_stored):
    """The attention of student and teacher is held for one layer at a time, be it stored or computed."""
    maps, attention_kl = [], evaluate.attention_kl

    def assert_dropped(*_):
        assert not any(reference() is not None for reference in maps)

    def watch(student, teacher, mask):
        assert_dropped()
        maps.extend(map(weakref.ref, (student, teacher)))
        return attention_kl(student, teacher, mask)

    monkeypatch.setattr(evaluate, "attention_kl", watch)
    student = make_encoder(layers=3, seed=1)
    for layer in student.layers:
        layer.attention.self.register_forward_pre_hook(assert_dropped)
    taught = Targets(targets.folder, data, targets.teacher, attention_stored)
    StudentEvaluator(student, data, taught, (1, 2, 4)).evaluate()
    assert len(maps) == 6


@pytest.mark.parametrize("regime", ["id", "sid"])
def test_micro_batches_train_alike_where_the_teacher_computes_attention(data, targets, regime):
    online = Targets(targets.folder, data, targets.teacher, attention_stored=False)
    trial = Trial(regime=regime, **FAST)
    whole, split = (
        [
            {name: value for name, value in epoch.metrics.items() if not name.startswith("time/")}
            for epoch in Distillation(trial, data, online, memory=memory)
        ]
        for memory in (None, StepMemory(3e-4))
    )
    for expected, found in zip(whole, split, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
        assert found != expected, "nothing was split"


@pytest.mark.parametrize("attention_stored", [True, False])
def test_split_evaluation_batches_give_the_same_metrics(data, targets, attention_stored):
    student = make_encoder(layers=2, seed=1)
    taught = Targets(targets.folder, data, targets.teacher, attention_stored)
    whole, split = (
        StudentEvaluator(student, data, taught, (2, 4), memory=memory).evaluate()
        for memory in (None, StepMemory(1e-9))
    )
    assert split == pytest.approx(whole, rel=1e-5)
    assert split != whole, "nothing was split"
    assert score(student, data, StepMemory(1e-9)) == pytest.approx(score(student, data), rel=1e-6)


def test_trials_share_epochs_unless_their_bounds_split_batches(data, targets, tmp_path):
    def reused(number, memory):
        cache = EpochCache(tmp_path, 1, f"t{number}", f"t{number}")
        trial = Trial(regime="pid", **FAST)
        *_, last = Distillation(trial, data, targets, checkpoints=cache, memory=memory)
        return last.metrics["reused_epochs"]

    bounds = [StepMemory(), StepMemory(100), StepMemory(3e-4), StepMemory(2e-4), StepMemory(3e-4)]
    assert [reused(*numbered) for numbered in enumerate(bounds)] == [0, 3, 0, 0, 3]


def test_a_key_has_the_bound_only_where_it_splits(make_task_data):
    """Training of the stage, or evaluation in batches of 64."""
    data, shape = make_task_data("cola", train=120), ModelShape(heads=4, hidden=32)
    longest = max(int(split.lengths.max()) for split in data.splits.values())
    (stage,) = REGIMES["id"](Trial(regime="id", student_layers=2))
    training, evaluation = shape.training_cells(stage, 2, longest), shape.evaluation_cells(longest)

    def key(memory, batch_size, processes=1):
        return memory.key(shape, 2, [stage], batch_size, data, processes)

    tight = bound_of(BATCH, evaluation)
    most = tight.max_examples(training)
    assert 1 < most < len(data.train)
    assert key(StepMemory(), 32) == key(tight, most) == key(tight, 2 * most, processes=2) == []
    assert key(tight, most + 1) == key(tight, 2 * most + 1, processes=2) == [tight.gigabytes]
    below = bound_of(BATCH - 0.5, evaluation)
    assert key(below, 1) == [below.gigabytes]
