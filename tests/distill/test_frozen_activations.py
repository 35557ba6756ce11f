from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest
import torch

from ikd_ray.config import PrefixConfig
from ikd_ray.data.batches import collate
from ikd_ray.distill.encoder import FAMILIES
from ikd_ray.distill.frozen_activations import FrozenActivations
from tests.helpers.tiny_models import HIDDEN, make_encoder

LAYERS = 3


def outputs(student, data, split, rows, depth):
    """Layer `depth`'s output, 0 at padding; of the last layer [CLS] alone."""
    batch = collate(data.splits[split], rows, data.pad_id)
    with torch.no_grad():
        if depth == LAYERS:
            return student(batch, classify=False).cls[LAYERS]
        return student.hidden(batch, depth) * batch.attention_mask[:, :, None]


@pytest.mark.parametrize("config", [PrefixConfig(), PrefixConfig(memory_gb=0)], ids=["memory", "disk"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depths", [[1, 2, 3], [2, 3], [3], [1], [2, 1], [1, 0, 2]], ids=str)
def test_holds_what_the_layers_give(data, family, depths, config):
    student = make_encoder(family, LAYERS, dropout=0.3).train()
    prefix = FrozenActivations(student, data, config)
    for depth in depths:
        prefix.advance(depth)
    assert prefix.depth == depths[-1]
    rng = np.random.default_rng(0)
    student.eval()
    for split in data.splits:
        rows = rng.permutation(len(data.splits[split]))[:9]
        found = prefix.read(split, rows)
        torch.testing.assert_close(
            found, outputs(student, data, split, rows, depths[-1]), rtol=1e-5, atol=1e-5
        )


def test_nothing_is_held_at_depth_0(data):
    prefix = FrozenActivations(make_encoder(layers=LAYERS), data, PrefixConfig())
    assert prefix.read("train", np.arange(2)) is None
    prefix.advance(1)
    prefix.advance(0)
    assert prefix.read("train", np.arange(2)) is None


def gigabytes(data) -> float:
    return sum(int(split.lengths.sum()) for split in data.splits.values()) * HIDDEN * 4 / 1e9


@pytest.mark.parametrize(
    ("memory", "disk", "where"),
    [(1.01, 0, "memory"), (0.99, 1.01, "disk"), (0.99, 0.99, None)],
)
def test_the_budget_decides(data, memory, disk, where):
    size = gigabytes(data)
    prefix = FrozenActivations(
        make_encoder(layers=LAYERS), data, PrefixConfig(memory_gb=memory * size, disk_gb=disk * size)
    )
    prefix.advance(1)
    assert prefix.depth == (0 if where is None else 1)
    mapped = [isinstance(array.values, np.memmap) for array in prefix._arrays.values()]
    assert mapped == ([] if where is None else [where == "disk"] * 2)
    # [CLS] vectors alone are far smaller.
    prefix.advance(LAYERS)
    assert prefix.depth == LAYERS


def test_a_full_disk_means_to_recompute(data, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    prefix = FrozenActivations(make_encoder(layers=LAYERS), data, PrefixConfig(memory_gb=0))
    prefix.advance(1)
    assert prefix.depth == 0
    assert prefix.read("train", np.arange(2)) is None


def test_on_disk_it_leaves_no_file(data, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prefix = FrozenActivations(make_encoder(layers=LAYERS), data, PrefixConfig(memory_gb=0))
    prefix.advance(1)
    assert prefix.depth == 1
    assert list(tmp_path.iterdir()) == []
