from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest
import torch

from ikd_ray.config import PrefixConfig
from ikd_ray.data.batches import collate
from ikd_ray.distill.frozen_activations import FrozenActivations
from tests.helpers.tiny_models import HIDDEN, make_encoder

LAYERS = 3


def outputs(student, data, split, rows, depth):
    """Return the output of layer `depth`, 0 at padding; of the last layer its [CLS] vectors if they are enough."""
    batch = collate(data.splits[split], rows, data.pad_id)
    with torch.no_grad():
        if depth == LAYERS and student.reads_cls_only:
            return student(batch, classify=False).cls[LAYERS]
        return student.hidden(batch, depth) * batch.attention_mask[:, :, None]


@pytest.mark.parametrize("config", [PrefixConfig(), PrefixConfig(memory_gb=0)], ids=["memory", "disk"])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert", "mpnet", "modernbert", "eurobert"])
@pytest.mark.parametrize("depths", [[1, 2, 3], [2, 3], [3], [1], [2, 1], [1, 0, 2]], ids=str)
def test_stored_outputs_equal_those_of_the_layers(data, family, depths, config):
    student = make_encoder(family, LAYERS, dropout=0.3).train()
    frozen = FrozenActivations(student, data, config)
    for depth in depths:
        frozen.advance(depth)
    assert frozen.depth == depths[-1]
    rng = np.random.default_rng(0)
    student.eval()
    for split in data.splits:
        rows = rng.permutation(len(data.splits[split]))[:9]
        found = frozen.read(split, rows)
        torch.testing.assert_close(
            found, outputs(student, data, split, rows, depths[-1]), rtol=1e-5, atol=1e-5
        )


def test_nothing_is_stored_at_depth_0(data):
    frozen = FrozenActivations(make_encoder(layers=LAYERS), data, PrefixConfig())
    assert frozen.read("train", np.arange(2)) is None
    frozen.advance(1)
    frozen.advance(0)
    assert frozen.read("train", np.arange(2)) is None


def gigabytes(data) -> float:
    return sum(int(split.lengths.sum()) for split in data.splits.values()) * HIDDEN * 4 / 1e9


@pytest.mark.parametrize(
    ("memory", "disk", "where"), [(1.01, 0, "memory"), (0.99, 1.01, "disk"), (0.99, 0.99, None)]
)
def test_the_budgets_decide_where_outputs_are_stored(data, memory, disk, where):
    size = gigabytes(data)
    frozen = FrozenActivations(
        make_encoder(layers=LAYERS), data, PrefixConfig(memory_gb=memory * size, disk_gb=disk * size)
    )
    frozen.advance(1)
    assert frozen.depth == (0 if where is None else 1)
    mapped = [isinstance(array.values, np.memmap) for array in frozen._arrays.values()]
    assert mapped == ([] if where is None else [where == "disk"] * 2)
    # [CLS] vectors alone are far smaller.
    frozen.advance(LAYERS)
    assert frozen.depth == LAYERS


def test_on_a_full_disk_nothing_is_stored(data, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    frozen = FrozenActivations(make_encoder(layers=LAYERS), data, PrefixConfig(memory_gb=0))
    frozen.advance(1)
    assert frozen.depth == 0
    assert frozen.read("train", np.arange(2)) is None


def test_the_temporary_file_has_no_name(data, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    frozen = FrozenActivations(make_encoder(layers=LAYERS), data, PrefixConfig(memory_gb=0))
    frozen.advance(1)
    assert frozen.depth == 1
    assert list(tmp_path.iterdir()) == []
