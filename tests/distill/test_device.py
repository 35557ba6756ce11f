"""What a run on a GPU rests on, as far as a machine without one can show it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ikd_ray.config import Trial
from ikd_ray.distill import loop, training
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.targets import TargetBatch
from tests.helpers.tiny_models import make_encoder, make_targets

STEPS = 6  # of 48 examples in batches of 8


@pytest.mark.parametrize(
    ("regime", "embeddings", "attention"),
    [*((regime, "frozen", True) for regime in REGIMES), ("kd", "train", True), ("sid", "train", False)],
)
def test_the_host_waits_for_the_device_at_an_epochs_end_alone(
    data, tmp_path, monkeypatch, regime, embeddings, attention
):
    """Tensors without values: whatever asks for one, as every host synchronisation does, raises."""
    targets = make_targets(tmp_path, data, make_encoder(), attention)
    trial = Trial(regime=regime, student_layers=2, batch_size=8, embeddings=embeddings)
    steps, step = [], training.StageTrainer._step
    monkeypatch.setattr(training.StageTrainer, "_step", lambda *given: steps.append(1) or step(*given))
    with FakeTensorMode(allow_non_fake_inputs=True):
        student, targets.teacher = make_encoder(layers=2), make_encoder()
        for stage in REGIMES[regime](trial):
            steps.clear()
            stages = training.StageTrainer(student, stage, trial, data, targets, (2, 4), DistributedContext())
            epochs = training.train_stage(stages)
            with pytest.raises(DataDependentOutputException):
                next(epochs)
            assert len(steps) == STEPS


@dataclass(frozen=True)
class Bfloat16(DistributedContext):
    """On the CPU what `DistributedContext` does on a GPU."""

    def autocast(self):
        return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("regime", REGIMES)
def test_bfloat16_trains_alike_with_losses_in_float32(data, targets, monkeypatch, regime):
    kinds = set()

    def spy(*given):
        total, losses = stage_losses(*given)
        kinds.update(tensor.dtype for tensor in (total, *losses.values()))
        return total, losses

    stage_losses = training.stage_losses
    monkeypatch.setattr(training, "stage_losses", spy)
    trial = Trial(regime=regime, student_layers=2, batch_size=8, learning_rate=1e-3, epochs=2)
    wide, narrow = (loop.distill(trial, data, targets, world=world).metrics for world in (None, Bfloat16()))
    assert kinds == {torch.float32}
    for name in (name for name in wide if name.startswith("train/")):
        assert narrow[name] == pytest.approx(wide[name], rel=0.1, abs=0.02), name
    assert narrow["train/loss"] != wide["train/loss"]


def test_what_goes_to_a_gpu_is_pinned(data, targets, monkeypatch):
    """Every tensor that the background thread reads, and on a CPU none."""
    pinned = []
    monkeypatch.setattr(training, "_pin", lambda tensor: pinned.append(tensor) or tensor)
    trial = Trial(regime="id", student_layers=2)
    stage = REGIMES["id"](trial)[0]
    rows = data.train.lengths.argsort()[:4]
    for device, count in (("cpu", 0), ("cuda", 4 + 1 + 2 + 2)):
        world = DistributedContext(device=torch.device(device))
        loader = training.StageDataLoader(stage, trial, data, rows, targets, (2, 4), world, None)
        batch, target, start = loader._read(rows)
        assert isinstance(target, TargetBatch)
        assert start is None
        assert len(pinned) == count
    assert all(any(tensor is one for one in pinned) for tensor in (batch.input_ids, target.logits))
