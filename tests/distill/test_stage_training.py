"""Training of a stage: what a GPU relies on, as far as a CPU can show it, and memory."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.utils import clip_grad_norm_

from ikd_ray.config import Trial
from ikd_ray.distill import distributed, loop, stage_training
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder_output import EncoderOutput
from ikd_ray.distill.regimes import REGIMES
from tests.helpers.tiny_models import make_encoder, make_targets

STEPS = 6  # of 48 examples in batches of 8


@pytest.mark.parametrize(
    ("regime", "embeddings", "attention"),
    [*((regime, "frozen", True) for regime in REGIMES), ("kd", "train", True), ("sid", "train", False)],
)
def test_a_step_never_waits_for_the_device(data, tmp_path, monkeypatch, regime, embeddings, attention):
    """With fake tensors, which have no values, whatever asks for a value raises, as the end of an epoch does."""
    targets = make_targets(tmp_path, data, make_encoder(), attention)
    trial = Trial(regime=regime, student_layers=2, batch_size=8, embeddings=embeddings)
    steps, step = [], stage_training.StageOptimizer.step
    monkeypatch.setattr(stage_training.StageOptimizer, "step", lambda *args: steps.append(1) or step(*args))
    # On a CPU, which these tensors are on, there is nothing to wait for, so gradients may be looked at.
    monkeypatch.setattr(stage_training, "clip_gradients", lambda parameters: clip_grad_norm_(parameters, 1.0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        student, targets.teacher = make_encoder(layers=2), make_encoder()
        for stage in REGIMES[regime](trial):
            steps.clear()
            trainer = stage_training.StageTrainer(
                student, stage, trial, data, targets, (2, 4), DistributedContext()
            )
            epochs = stage_training.train_stage(trainer)
            with pytest.raises(DataDependentOutputException):
                next(epochs)
            assert len(steps) == STEPS


@pytest.mark.parametrize("regime", REGIMES)
def test_bfloat16_trains_alike_with_losses_in_float32(data, targets, monkeypatch, regime):
    dtypes, stage_losses = set(), stage_training.stage_losses

    def spy(stage, output, *args):
        total, losses = stage_losses(stage, output, *args)
        dtypes.update(tensor.dtype for tensor in (total, *losses.values(), *output.attention.values()))
        return total, losses

    monkeypatch.setattr(stage_training, "stage_losses", spy)
    trial = Trial(regime=regime, student_layers=2, batch_size=8, learning_rate=1e-3, epochs=2)
    results = [
        loop.distill(trial, data, targets, world=DistributedContext(precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    wide, narrow = (list(result.student.parameters()) for result in results)
    assert not all(map(torch.equal, wide, narrow))
    assert dtypes == {parameter.dtype for parameter in narrow} == {torch.float32}
    wide, narrow = (result.metrics for result in results)
    for name in (name for name in wide if name.startswith("train/")):
        assert narrow[name] == pytest.approx(wide[name], rel=0.1, abs=0.02), name
    assert narrow["train/loss"] != wide["train/loss"]


def test_clipping_never_waits_for_a_gpu():
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            parameter = torch.nn.Parameter(torch.zeros(3, device=device))
            parameter.grad = torch.zeros_like(parameter)
            with nullcontext() if device == "cuda" else pytest.raises(DataDependentOutputException):
                stage_training.clip_gradients([parameter])


@pytest.mark.parametrize("norm", [0.5, 1.0, 4.0, float("nan")])
def test_gradients_are_clipped_as_pytorch_clips_them(norm):
    def parameters():
        made = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 4, 2)]
        for parameter in made[:2]:  # the third has no gradient
            parameter.grad = torch.full_like(parameter, norm / 7**0.5)
        return made

    found, expected = parameters(), parameters()
    stage_training.clip_gradients(found)
    clip_grad_norm_(expected, stage_training.CLIP_NORM)
    for a, b in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)
    assert found[2].grad is None


@pytest.mark.parametrize(("supported", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_precision_that_is_left_to_the_device(supported, precision, monkeypatch):
    asked = []
    monkeypatch.setattr(distributed, "supports_bfloat16", lambda device: asked.append(device) or supported)
    gpu = torch.device("cuda")
    assert DistributedContext(device=gpu, precision="auto").training_precision == precision
    assert asked == [gpu]
    assert DistributedContext().training_precision == "float32"


def test_everything_that_goes_to_a_gpu_is_pinned(data, targets, monkeypatch):
    """On a CPU nothing is."""
    pinned = []
    monkeypatch.setattr(stage_training, "_pin", lambda tensor: pinned.append(tensor) or tensor)
    trial = Trial(regime="id", student_layers=2)
    stage = REGIMES["id"](trial)[0]
    rows = data.train.lengths.argsort()[:4]
    for device, count in (("cpu", 0), ("cuda", 4 + 1 + 2 + 2)):
        world = DistributedContext(device=torch.device(device))
        loader = stage_training.StageDataLoader(
            stage, trial, data, rows, targets, (2, 4), world, None, lambda rows: [rows]
        )
        batch, target, start = loader._read(rows)
        assert isinstance(target, EncoderOutput)
        assert start is None
        assert len(pinned) == count
    assert all(any(tensor is one for one in pinned) for tensor in (batch.input_ids, target.logits))


def resident_mb() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it does nothing")
def test_trimming_returns_freed_memory_to_the_system():
    if stage_training._malloc_trim() is None:
        pytest.skip("this C library has no malloc_trim")
    arrays = [np.ones(1 << 13) for _ in range(3000)]  # 188 MB in blocks of 64 KB
    rest = arrays[::100]  # pieces that the C library alone would keep all the memory for
    before = resident_mb()
    del arrays
    stage_training.trim_heap()
    assert resident_mb() < before - 100
    assert len(rest) == 30


def test_training_trims_the_heap_from_time_to_time(data, monkeypatch):
    trimmed = []
    monkeypatch.setattr(stage_training, "TRIM_EVERY", 2)
    monkeypatch.setattr(stage_training, "trim_heap", lambda: trimmed.append(1))
    trial = Trial(regime="hard", student_layers=2, batch_size=8)
    stage = REGIMES["hard"](trial)[0]
    trainer = stage_training.StageTrainer(
        make_encoder(layers=2), stage, trial, data, None, (), DistributedContext()
    )
    trainer.train_epoch(1)
    assert len(trimmed) == STEPS / 2
