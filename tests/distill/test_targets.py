"""Stored targets: reading them, and the decision whether attention is stored."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from ikd_ray.config import TargetConfig
from ikd_ray.data.batches import collate
from ikd_ray.distill.targets import Targets, should_store_attention, size_gb, stored_gb, targets_key
from ikd_ray.errors import UsageError
from tests.helpers.target_files import HALF, LAYERS, build_all
from tests.helpers.tiny_models import HEADS, HIDDEN, make_encoder


def pairs_of(batch) -> torch.Tensor:
    """Return (B, HEADS, L, L), true where both query and key are tokens."""
    return (batch.attention_mask[:, None, :, None] & batch.attention_mask[:, None, None, :]).expand(
        -1, HEADS, -1, -1
    )


def orders(count: int) -> list[np.ndarray]:
    shuffled = np.random.default_rng(1).permutation(count)
    return [np.arange(count), np.arange(count)[::-1].copy(), shuffled[:7], shuffled[7:8], shuffled[[3, 3, 0]]]


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("order", range(5))
def test_stored_equals_online(targets, data, teacher, split, order):
    rows = orders(len(data.splits[split]))[order]
    batch = collate(data.splits[split], rows, data.pad_id)
    stored = targets.fetch(split, batch, cls=LAYERS, attention=LAYERS)
    with torch.no_grad():
        online = teacher(batch, attention_layers=LAYERS)
    assert stored.logits.dtype == torch.float32
    torch.testing.assert_close(stored.logits, online.logits, **HALF)
    pairs = pairs_of(batch)
    for layer in LAYERS:
        torch.testing.assert_close(stored.cls[layer], online.cls[layer], **HALF)
        torch.testing.assert_close(stored.attention[layer][pairs], online.attention[layer][pairs], **HALF)
        assert float(stored.attention[layer][~pairs].abs().sum()) == 0
        assert stored.attention[layer].dtype == stored.cls[layer].dtype == torch.float32


def test_stored_rows_differ_from_one_another(targets, data):
    """Otherwise the test above could not distinguish rows or layers."""
    batch = collate(data.train, np.arange(4), data.pad_id)
    out = targets.fetch("train", batch, cls=LAYERS)
    assert len({tuple(row.tolist()) for layer in LAYERS for row in out.cls[layer]}) == 16
    assert len(set(data.train.lengths.tolist())) > 3


def test_stored_equals_online_for_equal_lengths(targets, data, teacher):
    lengths = data.train.lengths
    value, count = max(zip(*np.unique(lengths, return_counts=True), strict=True), key=lambda pair: pair[1])
    assert count > 1
    batch = collate(data.train, np.flatnonzero(lengths == value), data.pad_id)
    with torch.no_grad():
        online = teacher(batch, attention_layers=[3])
    stored = targets.fetch("train", batch, attention=[3]).attention[3]
    torch.testing.assert_close(stored, online.attention[3], **HALF)


def test_fetch_reads_only_what_is_asked_for(tmp_path, targets, data):
    shutil.copytree(targets.folder, tmp_path / "t")
    for part in ("logits", "cls-1", "attention-1", "attention-2"):
        shutil.rmtree(tmp_path / "t" / part)
    mine = Targets(tmp_path / "t", data, make_encoder(layers=1))  # would give no layer 3 online
    batch = collate(data.train, np.arange(5), data.pad_id)
    out = mine.fetch("train", batch, logits=False, cls=[2], attention=[3])
    assert out.logits is None
    assert (set(out.cls), set(out.attention)) == ({2}, {3})
    nothing = mine.fetch("train", batch, logits=False)
    assert (nothing.logits, nothing.cls, nothing.attention) == (None, {}, {})
    with pytest.raises(FileNotFoundError):
        mine.fetch("train", batch)


def test_stored_attention_needs_no_teacher_pass(targets, data, monkeypatch):
    monkeypatch.setattr(targets.teacher, "forward", lambda *_, **__: pytest.fail("the teacher ran"))
    batch = collate(data.train, np.arange(5), data.pad_id)
    assert set(targets.fetch("train", batch, cls=LAYERS, attention=LAYERS).attention) == set(LAYERS)


def test_attention_that_is_not_stored_is_computed(tmp_path, data, teacher):
    """Even of a layer that another sweep has stored: all layers of a trial come from one place."""
    build_all(tmp_path, data, teacher, layers=[2])
    batch = collate(data.splits["dev"], np.array([5, 0, 9]), data.pad_id)
    with torch.no_grad():
        online = teacher(batch, attention_layers=[2, 3])
    pairs = pairs_of(batch)
    assert not pairs.all()
    mine = Targets(tmp_path, data, teacher, attention_stored=False)
    out = mine.fetch("dev", batch, attention=[2, 3])
    for layer in (2, 3):
        torch.testing.assert_close(out.attention[layer][pairs], online.attention[layer][pairs])
        assert float(out.attention[layer][~pairs].abs().sum()) == 0
        assert not out.attention[layer].requires_grad
    assert mine.read("dev", batch.rows, attention=[2, 3]).attention == {}


def test_read_returns_float16_in_any_order_of_rows(targets, data):
    """Some rows are read twice. The values are those of the files."""
    rows = np.array([7, 0, 7, 30, 2])
    batch = collate(data.train, rows, data.pad_id)
    stored = targets.read("train", rows, cls=[1, 3], attention=[2])
    fetched = targets.fetch("train", batch, cls=[1, 3], attention=[2])
    assert stored.attention[2].shape == (5, HEADS, *[int(data.train.lengths[rows].max())] * 2)
    pairs = [(stored.logits, fetched.logits), (stored.cls[3], fetched.cls[3])]
    for mine, theirs in [*pairs, (stored.attention[2], fetched.attention[2])]:
        assert (mine.dtype, mine.device.type) == (torch.float16, "cpu")
        assert torch.equal(mine.float(), theirs)
    assert (set(stored.cls), set(stored.attention)) == ({1, 3}, {2})


def test_read_and_complete_equal_fetch(targets, data, teacher):
    """The training loop reads ahead in a thread and completes later."""
    batch = collate(data.train, np.array([4, 9, 1]), data.pad_id)
    for mine in (targets, Targets(targets.folder, data, teacher, attention_stored=False)):
        read = mine.read("train", batch.rows, logits=False, cls=[4], attention=[1, 4])
        halves = mine.complete(read, batch, [1, 4])
        whole = mine.fetch("train", batch, logits=False, cls=[4], attention=[1, 4])
        assert halves.logits is whole.logits is None
        assert torch.equal(halves.cls[4], whole.cls[4])
        assert set(halves.attention) == set(whole.attention) == {1, 4}
        assert all(torch.equal(halves.attention[layer], whole.attention[layer]) for layer in (1, 4))


def test_map_applies_to_every_tensor(targets):
    read = targets.read("dev", np.arange(3), cls=[1, 2], attention=[2])
    seen = []
    doubled = read.map(lambda tensor: seen.append(tensor) or tensor * 2)
    assert len(seen) == 4
    assert torch.equal(doubled.logits, read.logits * 2)
    assert torch.equal(doubled.cls[2], read.cls[2] * 2)
    assert torch.equal(doubled.attention[2], read.attention[2] * 2)
    assert targets.read("dev", np.arange(3), logits=False).map(torch.neg).logits is None


def test_size_by_hand(data, teacher):
    examples = sum(map(len, data.splits.values()))
    cells = sum(int(n) ** 2 for split in data.splits.values() for n in split.lengths)
    without = examples * (2 + 2 * HIDDEN) * 2
    assert size_gb(data, teacher, [2, 4], attention=False) == pytest.approx(without / 1e9)
    assert size_gb(data, teacher, [2, 4]) == pytest.approx((without + cells * HEADS * 2 * 2) / 1e9)


@pytest.mark.parametrize("attention", [True, False])
def test_size_is_what_the_files_take(tmp_path, data, teacher, attention):
    layers = [2, 3]
    assert stored_gb(tmp_path / "nothing", layers) == 0
    build_all(tmp_path, data, teacher, layers, attention)
    size, headers = size_gb(data, teacher, layers, attention), 10 * 128 / 1e9
    assert stored_gb(tmp_path, layers) == pytest.approx(size, abs=headers)
    assert stored_gb(tmp_path, [2]) == pytest.approx(size_gb(data, teacher, [2], attention), abs=headers)
    assert stored_gb(tmp_path, [1]) < size_gb(data, teacher, [1], attention)


@pytest.mark.parametrize(
    ("mode", "size", "free", "stored", "stores"),
    [
        ("auto", 1.9, 100, 0, True),
        ("auto", 2.1, 100, 0, False),
        ("auto", 1.9, 2, 0, False),  # more than 90 % of the disk
        ("stored", 50, 100, 0, True),
        ("online", 0.1, 100, 0, False),
        # What is stored needs no space again; else a resumed sweep would no longer use its attention.
        ("auto", 1.8, 1.9, 0, False),
        ("auto", 1.8, 1.9, 0.2, True),
        ("auto", 1.8, 0, 1.8, True),
        ("auto", 1.8, 0.1, 1.7, False),
    ],
)
def test_mode_budget_and_free_space_decide_whether_attention_is_stored(mode, size, free, stored, stores):
    assert should_store_attention(size, free, TargetConfig(mode=mode, budget_gb=2), stored) is stores


def test_mode_stored_without_space_is_refused():
    with pytest.raises(UsageError, match=r"95\.0 GB to store and 100\.0 GB free"):
        should_store_attention(95, 100, TargetConfig(mode="stored"))


def test_the_key_depends_on_data_and_teacher(make_task_data, data):
    cases = [(data, "a"), (data, "b"), (make_task_data("stsb"), "a")]
    assert len({targets_key(*case) for case in cases}) == 3
    assert targets_key(data, "a") == targets_key(data, "a")
