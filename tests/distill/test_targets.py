from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import HEADS, HIDDEN, make_encoder

from ikd_ray.config import TargetConfig
from ikd_ray.data import store
from ikd_ray.data.batches import collate
from ikd_ray.distill.targets import Targets, build_targets, key_of, size_gb, stores_attention
from ikd_ray.errors import UsageError

LAYERS = (1, 2, 3, 4)
HALF = {"rtol": 2e-3, "atol": 2e-4}  # float16 keeps 11 bits


def build(folder, data, teacher, layers=LAYERS, attention=True) -> list[tuple[int, int]]:
    return list(build_targets(folder, data, teacher, layers, attention))


def parts_of(folder: Path) -> dict[str, int]:
    """Each part's inode: a folder written anew has another."""
    return {path.name: os.stat(path).st_ino for path in folder.iterdir() if path.is_dir()}


def contents(folder: Path) -> dict[str, np.ndarray]:
    return {str(p.relative_to(folder)): np.load(p) for p in sorted(folder.rglob("*.npy"))}


def assert_equal_contents(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """To float16 precision: which layers record their attention decides the kernel, hence the last bit."""
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_allclose(array, expected[name], **HALF)


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
        online = teacher(batch, attend=LAYERS)
    assert stored.logits.dtype == torch.float32
    torch.testing.assert_close(stored.logits, online.logits, **HALF)
    pairs = (batch.mask[:, None, :, None] & batch.mask[:, None, None, :]).expand(-1, HEADS, -1, -1)
    for layer in LAYERS:
        torch.testing.assert_close(stored.cls[layer], online.cls[layer], **HALF)
        torch.testing.assert_close(stored.attention[layer][pairs], online.attention[layer][pairs], **HALF)
        assert float(stored.attention[layer][~pairs].abs().sum()) == 0
        assert stored.attention[layer].dtype == stored.cls[layer].dtype == torch.float32


def test_stored_rows_differ_from_one_another(targets, data):
    """Else the test above could not tell rows or layers apart."""
    batch = collate(data.train, np.arange(4), data.pad_id)
    out = targets.fetch("train", batch, cls=LAYERS)
    assert len({tuple(row.tolist()) for layer in LAYERS for row in out.cls[layer]}) == 16
    assert len(set(data.train.lengths.tolist())) > 3


def test_a_batch_of_equal_lengths(targets, data, teacher):
    lengths = data.train.lengths
    value, count = max(zip(*np.unique(lengths, return_counts=True), strict=True), key=lambda pair: pair[1])
    assert count > 1
    batch = collate(data.train, np.flatnonzero(lengths == value), data.pad_id)
    with torch.no_grad():
        online = teacher(batch, attend=[3])
    stored = targets.fetch("train", batch, attention=[3]).attention[3]
    torch.testing.assert_close(stored, online.attention[3], **HALF)


def test_fetch_gives_and_reads_only_what_is_asked(tmp_path, targets, data):
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
    """All of it, also a layer that another sweep has stored: what is read is decided once."""
    build(tmp_path, data, teacher, layers=[2])
    batch = collate(data.splits["dev"], np.array([5, 0, 9]), data.pad_id)
    with torch.no_grad():
        online = teacher(batch, attend=[2, 3])
    out = Targets(tmp_path, data, teacher, attention_stored=False).fetch("dev", batch, attention=[2, 3])
    for layer in (2, 3):
        torch.testing.assert_close(out.attention[layer], online.attention[layer])
        assert not out.attention[layer].requires_grad


def test_size_by_hand(data, teacher):
    cells = sum(int(n) ** 2 for split in data.splits.values() for n in split.lengths)
    assert size_gb(data, teacher, [2, 4]) == pytest.approx(cells * HEADS * 2 * 2 / 1e9)


@pytest.mark.parametrize("layer", LAYERS)
def test_size_is_what_the_files_take(targets, data, teacher, layer):
    stored = sum(path.stat().st_size for path in (targets.folder / f"attention-{layer}").glob("*.npy"))
    assert stored == pytest.approx(size_gb(data, teacher, [layer]) * 1e9, abs=2 * 128)  # two headers


@pytest.mark.parametrize(
    ("mode", "size", "free", "stores"),
    [
        ("auto", 1.9, 100, True),
        ("auto", 2.1, 100, False),
        ("auto", 1.9, 2, False),  # a full disk is nobody's friend
        ("stored", 50, 100, True),
        ("online", 0.1, 100, False),
    ],
)
def test_budget(mode, size, free, stores):
    assert stores_attention(size, free, TargetConfig(mode=mode, budget_gb=2)) is stores


def test_no_room_for_what_must_be_stored():
    with pytest.raises(UsageError, match=r"95\.0 GB and 100\.0 GB free"):
        stores_attention(95, 100, TargetConfig(mode="stored"))


def test_key_names_data_and_teacher(make_task_data, data):
    assert key_of(data, "a") == key_of(data, "a")
    assert len({key_of(data, "a"), key_of(data, "b"), key_of(make_task_data("stsb"), "a")}) == 3


def test_progress_counts_examples(tmp_path, data, teacher):
    steps = build(tmp_path, data, teacher, layers=[4])
    total = len(data.train) + len(data.splits["dev"])
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_the_files_are_float16_logits_and_vectors_by_row(targets, data):
    logits = np.load(targets.folder / "logits" / "train.npy")
    vectors = np.load(targets.folder / "cls-2" / "dev.npy")
    assert (logits.dtype, logits.shape) == (np.float16, (len(data.train), 2))
    assert (vectors.dtype, vectors.shape) == (np.float16, (len(data.splits["dev"]), HIDDEN))


def test_a_later_layer_builds_only_what_is_missing(tmp_path, data, teacher):
    assert build(tmp_path, data, teacher, layers=[2], attention=False)
    first = parts_of(tmp_path)
    assert set(first) == {"logits", "cls-2"}
    assert build(tmp_path, data, teacher, layers=[2, 4])
    second = parts_of(tmp_path)
    assert set(second) == {"logits", "cls-2", "cls-4", "attention-2", "attention-4"}
    assert {name: second[name] for name in first} == first
    assert build(tmp_path, data, teacher, layers=[2, 4]) == []
    assert parts_of(tmp_path) == second


@pytest.mark.parametrize("part", ["logits", "cls-2", "attention-2"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_part_is_rebuilt(tmp_path, data, teacher, part, damage):
    build(tmp_path, data, teacher, layers=[2])
    good, before = contents(tmp_path), parts_of(tmp_path)
    victim = tmp_path / part / ("manifest.json" if damage == "manifest" else "train.npy")
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "flip":
        content[-1] ^= 1
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[: len(content) // 2])
    assert build(tmp_path, data, teacher, layers=[2])
    assert_equal_contents(contents(tmp_path), good)
    after = parts_of(tmp_path)
    assert {name for name in before if before[name] == after[name]} >= set(before) - {part}
    assert store.is_intact(tmp_path / part)


def test_an_interrupted_build_leaves_nothing_half_written(tmp_path, data, teacher, monkeypatch):
    monkeypatch.setattr("ikd_ray.distill.targets.BATCH", 8)
    steps = build_targets(tmp_path, data, teacher, [2], True)
    next(steps)
    next(steps)
    assert not any(name for name in parts_of(tmp_path) if not name.startswith("."))
    steps.close()
    assert parts_of(tmp_path) == {}
    assert build(tmp_path, data, teacher, layers=[2])


def test_a_failing_build_leaves_what_was_there(tmp_path, data, teacher, monkeypatch):
    build(tmp_path, data, teacher, layers=[2])
    before = parts_of(tmp_path)
    broken = make_encoder()
    monkeypatch.setattr(broken, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, data, broken, layers=[2, 3])
    assert parts_of(tmp_path) == before
    assert all(store.is_intact(tmp_path / part) for part in before)


def test_two_processes_at_once_leave_one_intact_store(two_processes, targets):
    assert sorted(steps > 0 for steps in two_processes.built) == [False, True]
    parts = parts_of(two_processes.folder)
    assert set(parts) == {"logits", "cls-2", "cls-4", "attention-2", "attention-4"}
    assert all(store.is_intact(two_processes.folder / part) for part in parts)
    alone = {name: a for name, a in contents(targets.folder).items() if name.split("/")[0] in parts}
    assert_equal_contents(contents(two_processes.folder), alone)
