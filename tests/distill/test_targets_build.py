"""Building targets: the files, and builds that are interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ikd_ray.data.batches import Batch, collate
from ikd_ray.distill import targets as module
from ikd_ray.distill.targets import build_targets, size_gb, stored_gb
from ikd_ray.errors import UsageError
from ikd_ray.storage import arrays, store
from ikd_ray.storage.arrays import LengthOrder
from tests.helpers.damage import flip, halve
from tests.helpers.target_files import (
    HALF,
    array_contents,
    assert_arrays_close,
    build_all,
    content_bytes,
    part_inodes,
)
from tests.helpers.tiny_models import HEADS, HIDDEN, make_encoder

STEPS = 6 + 3  # of 48 and 20 examples, 8 at once


@pytest.fixture
def passes(teacher, monkeypatch) -> list[tuple[Batch, dict]]:
    """Return a list that gets the batch and the options of each of the teacher's forward passes."""
    made, forward = [], teacher.forward
    monkeypatch.setattr(
        teacher, "forward", lambda batch, **keys: made.append((batch, keys)) or forward(batch, **keys)
    )
    return made


def test_progress_counts_examples(tmp_path, data, teacher):
    steps = build_all(tmp_path, data, teacher, layers=[4])
    total = len(data.train) + len(data.splits["dev"])
    assert steps[-1] == (total, total)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})


def test_arrays_are_float16_in_order_of_length(targets, data, teacher):
    """The order is that of evaluation. Attention has one example's maps after the other's."""
    rows = LengthOrder(data.train.lengths).rows
    logits, vectors, attention = (
        np.load(targets.folder / part / "train.npy") for part in ("logits", "cls-2", "attention-3")
    )
    assert {array.dtype for array in (logits, vectors, attention)} == {np.dtype(np.float16)}
    assert (logits.shape, vectors.shape) == ((len(rows), 2), (len(rows), HIDDEN))
    maps = []
    for position, row in enumerate(rows):
        with torch.no_grad():
            alone = teacher(
                collate(data.train, rows[position : position + 1], data.pad_id), attention_layers=[3]
            )
        np.testing.assert_allclose(logits[position], alone.logits[0], **HALF)
        np.testing.assert_allclose(vectors[position], alone.cls[2][0], **HALF)
        maps.append(alone.attention[3].flatten())
        assert len(maps[-1]) == HEADS * data.train.lengths[row] ** 2
    np.testing.assert_allclose(attention, np.concatenate(maps), **HALF)


def test_a_step_holds_at_most_max_attention(tmp_path, data, teacher, targets, passes, monkeypatch):
    cells = 20 * 4 * HEADS * 12**2
    monkeypatch.setattr(module, "MAX_ATTENTION", cells)
    build_all(tmp_path, data, teacher)
    shapes = [batch.input_ids.shape for batch, _ in passes]
    assert all(4 * HEADS * rows * length**2 <= cells for rows, length in shapes)
    assert len({rows for rows, _ in shapes}) > 2
    assert_arrays_close(array_contents(tmp_path), array_contents(targets.folder))


def test_only_missing_parts_are_computed(tmp_path, data, teacher, passes):
    build_all(tmp_path, data, teacher, layers=[1], attention=False)
    passes.clear()
    build_all(tmp_path, data, teacher, layers=[1, 2], attention=False)
    assert passes
    assert all(asked == {"depth": 2, "attention_layers": [], "classify": False} for _, asked in passes)


def test_only_missing_parts_are_written(tmp_path, data, teacher):
    assert build_all(tmp_path, data, teacher, layers=[2], attention=False)
    first = part_inodes(tmp_path)
    assert set(first) == {"logits", "cls-2"}
    assert build_all(tmp_path, data, teacher, layers=[2, 4])
    second = part_inodes(tmp_path)
    assert set(second) == {"logits", "cls-2", "cls-4", "attention-2", "attention-4"}
    assert {name: second[name] for name in first} == first
    assert build_all(tmp_path, data, teacher, layers=[2, 4]) == []
    assert part_inodes(tmp_path) == second


@pytest.mark.parametrize("part", ["logits", "cls-2", "attention-2"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_part_is_rebuilt(tmp_path, data, teacher, part, damage):
    build_all(tmp_path, data, teacher, layers=[2])
    good, before = array_contents(tmp_path), part_inodes(tmp_path)
    victim = tmp_path / part / ("manifest.json" if damage == "manifest" else "train.npy")
    {"flip": flip, "truncate": halve, "remove": Path.unlink, "manifest": halve}[damage](victim)
    assert build_all(tmp_path, data, teacher, layers=[2])
    assert_arrays_close(array_contents(tmp_path), good)
    after = part_inodes(tmp_path)
    assert {name for name in before if before[name] == after[name]} >= set(before) - {part}
    assert store.is_intact(tmp_path / part)


@pytest.fixture
def finish(tmp_path, data, teacher, passes, monkeypatch):
    """Make steps of 8 examples with a checkpoint after each, `STEPS` for `data`; return `finish(layers)`.

    It finishes the build in the folder `t`, compares it with one that was not interrupted, bit for bit if `exact`,
    and returns its progress.
    """
    monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(arrays, "CHECKPOINT_SECONDS", 0.0)

    def build(layers=(2, 3), exact: bool = True) -> list[tuple[int, int]]:
        passes.clear()
        progress = build_all(tmp_path / "t", data, teacher, layers)
        assert len(passes) == len(progress)
        build_all(tmp_path / "once", data, teacher, layers)
        assert_arrays_close(array_contents(tmp_path / "t"), array_contents(tmp_path / "once"))
        assert not exact or content_bytes(tmp_path / "t") == content_bytes(tmp_path / "once")
        return progress

    return build


def interrupt(folder, data, teacher, layers, after: int) -> None:
    """Start a build and interrupt it after some steps as Ctrl-C does."""
    building = build_targets(folder, data, teacher, layers, True)
    for _ in range(after):
        next(building)
    with pytest.raises(KeyboardInterrupt):
        building.throw(KeyboardInterrupt)


@pytest.mark.parametrize("after", [1, 4, 6, 7, 8])
def test_an_interrupted_build_is_continued(tmp_path, data, teacher, passes, finish, after):
    interrupt(tmp_path / "t", data, teacher, [2, 3], after)
    assert all(name.startswith(".") for name in part_inodes(tmp_path / "t")), "something half-written"
    assert len(passes) == after
    done = [8, 16, 24, 32, 40, 48, 56, 64, 68]
    assert finish() == [(count, len(data.train) + len(data.splits["dev"])) for count in done[after:]]
    assert set(part_inodes(tmp_path / "t")) == {"logits", "cls-2", "cls-3", "attention-2", "attention-3"}


def test_a_killed_build_is_continued(tmp_path, data, teacher, finish, monkeypatch):
    """A killed process leaves its files as they are between two steps."""
    building = build_targets(tmp_path / "running", data, teacher, [2, 3], True)
    for _ in range(3):
        next(building)
    monkeypatch.setattr(arrays, "CHECKPOINT_SECONDS", 1e9)  # two more steps without a checkpoint
    next(building)
    next(building)
    shutil.copytree(tmp_path / "running", tmp_path / "t")
    building.close()
    assert len(finish()) == STEPS - 3


def test_a_build_killed_while_publishing_needs_no_teacher(tmp_path, data, teacher, finish, monkeypatch):
    original, published = store.publish, []

    def publish(folder: Path, target: Path) -> None:
        if len(published) == 2:
            raise KeyboardInterrupt
        published.append(target.name)
        original(folder, target)

    with monkeypatch.context() as patch:
        patch.setattr(store, "publish", publish)
        with pytest.raises(KeyboardInterrupt):
            build_all(tmp_path / "t", data, teacher, layers=[2, 3])
    assert finish() == []


@pytest.mark.parametrize(
    ("before", "then", "goes_on"), [([2, 3], [3], True), ([2], [2, 3], False), ([1, 2], [2, 3], False)]
)
def test_an_interrupted_build_of_other_layers_is_continued_if_it_has_all(
    tmp_path, data, teacher, finish, before, then, goes_on
):
    """Nothing of the interrupted build is left in the end."""
    interrupt(tmp_path / "t", data, teacher, before, 4)
    assert len(finish(then, exact=False)) == STEPS - (4 if goes_on else 0)
    assert ".unfinished" not in part_inodes(tmp_path / "t")


def test_an_interrupted_build_with_other_steps_starts_over(tmp_path, data, teacher, finish, monkeypatch):
    interrupt(tmp_path / "t", data, teacher, [2], 4)
    monkeypatch.setattr(module, "BATCH", 9)
    assert len(finish([2])) == 6 + 3


def disk_with(monkeypatch, free: float) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


@pytest.mark.parametrize("attention", [True, False])
def test_a_full_disk_is_reported_before_anything_is_written(tmp_path, data, teacher, monkeypatch, attention):
    need = size_gb(data, teacher, [2], attention) * 1e9
    disk_with(monkeypatch, need)  # not all of it may be taken
    with pytest.raises(UsageError, match=rf"{tmp_path}: .* {need / 1e9:.3g} GB more .* --output") as caught:
        build_all(tmp_path, data, teacher, [2], attention)
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}
    disk_with(monkeypatch, need / 0.9 + 1)
    assert build_all(tmp_path, data, teacher, [2], attention)


def test_a_full_disk_does_not_matter_to_complete_targets(tmp_path, data, teacher, monkeypatch):
    build_all(tmp_path, data, teacher, [2])
    disk_with(monkeypatch, 0)
    assert build_all(tmp_path, data, teacher, [2]) == []


def test_an_interrupted_build_needs_no_space_again(tmp_path, data, teacher, finish, monkeypatch):
    interrupt(tmp_path / "t", data, teacher, [2], 6)
    # The whole files are reserved at the start.
    assert stored_gb(tmp_path / "t", [2]) >= size_gb(data, teacher, [2])
    disk_with(monkeypatch, 0)
    assert build_all(tmp_path / "t", data, teacher, [2])


def test_a_failing_build_leaves_existing_parts(tmp_path, data, teacher, monkeypatch):
    build_all(tmp_path, data, teacher, layers=[2])
    before = part_inodes(tmp_path)
    broken = make_encoder()
    monkeypatch.setattr(broken, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_all(tmp_path, data, broken, layers=[2, 3])
    after = part_inodes(tmp_path)
    assert after.keys() - before.keys() == {".unfinished"}
    assert {name: after[name] for name in before} == before
    assert all(store.is_intact(tmp_path / part) for part in before)
