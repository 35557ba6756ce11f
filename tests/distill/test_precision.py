"""Training in bfloat16 of every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.data.batches import collate
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.families import FAMILIES
from ikd_ray.distill.loop import distill
from tests.helpers.tiny_models import make_encoder, make_targets


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_alike_in_bfloat16(family, make_task_data, tmp_path):
    data = make_task_data("cola")
    targets = make_targets(tmp_path, data, make_encoder(family, layers=2))
    trial = Trial(regime="id", student_layers=1, batch_size=16, epochs=1, learning_rate=1e-4)
    wide, narrow = (
        distill(trial, data, targets, world=DistributedContext(precision=precision)).metrics
        for precision in ("float32", "bfloat16")
    )
    for name in (name for name in wide if name.startswith("train/")):
        assert narrow[name] == pytest.approx(wide[name], rel=0.05, abs=0.02), name
    assert narrow["train/loss"] != wide["train/loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_stays_in_float32_within_autocast(family, data):
    encoder, batch = make_encoder(family, layers=2), collate(data.train, np.arange(4), data.pad_id)
    with torch.autocast("cpu", torch.bfloat16):
        attention = encoder(batch, attention_layers=(1, 2)).attention
        assert torch.is_autocast_enabled("cpu"), "also after a module that runs outside of it"
    assert {probabilities.dtype for probabilities in attention.values()} == {torch.float32}
