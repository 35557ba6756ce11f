from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.data.batches import evaluation_batches
from ikd_ray.storage import arrays
from ikd_ray.storage.arrays import PROGRESS, BucketedArray, LengthOrder, ResumableArrays

# Bucketed arrays

SHAPES = {
    "attention": lambda length: (2, length, length),
    "hidden states": lambda length: (length, 3),
    "vectors": lambda length: (4,),
}


@st.composite
def lengths_and_rows(draw):
    """Lengths, and row numbers in any order, repeats allowed."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    return np.array(lengths), np.array(
        draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10)), np.int64
    )


def make_entries(lengths: np.ndarray, shape) -> list[np.ndarray]:
    """Return an entry for each row; all values are distinct and none is 0."""
    sizes = [int(np.prod(shape(int(length)))) for length in lengths]
    values = np.split(np.arange(1, sum(sizes) + 1, dtype=np.float32), np.cumsum(sizes)[:-1])
    return [value.reshape(shape(int(length))) for value, length in zip(values, lengths, strict=True)]


def make_bucketed(lengths: np.ndarray, shape) -> BucketedArray:
    order, entries = LengthOrder(lengths), make_entries(lengths, shape)
    return BucketedArray(np.concatenate([entries[row].ravel() for row in order.rows]), order, shape)


def pad(entries: list[np.ndarray], shape) -> np.ndarray:
    padded = np.zeros((len(entries), *shape), np.float32)
    for target, entry in zip(padded, entries, strict=True):
        target[tuple(map(slice, entry.shape))] = entry
    return padded


@pytest.mark.parametrize("kind", SHAPES)
@given(lengths_and_rows())
def test_read_returns_padded_entries(kind, case):
    (lengths, rows), shape = case, SHAPES[kind]
    entries, read = make_entries(lengths, shape), make_bucketed(lengths, shape).read(rows)
    longest = max((int(lengths[row]) for row in rows), default=0)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, pad([entries[row] for row in rows], shape(longest)))


@pytest.mark.parametrize("kind", SHAPES)
@given(lengths_and_rows())
def test_write_is_the_inverse_of_read(kind, case):
    (lengths, rows), shape = case, SHAPES[kind]
    rows = np.unique(rows)[::-1].copy()
    full, target = make_bucketed(lengths, shape), BucketedArray(None, LengthOrder(lengths), shape)
    assert target.size == full.size == len(full.values)
    target.values = np.zeros(target.size, np.float32)
    entries = full.read(rows)
    entries[entries == 0] = 9  # padding, which must not be stored
    target.write(rows, entries)
    np.testing.assert_array_equal(target.read(rows), full.read(rows))
    others = np.setdiff1d(np.arange(len(lengths)), rows)
    assert not target.read(others).any(), "other rows were written"


@given(lengths_and_rows(), st.integers(1, 5))
def test_length_order_is_the_order_of_evaluation(case, batch_size):
    lengths, _ = case
    order = LengthOrder(lengths)
    assert order.rows.tolist() == np.concatenate(evaluation_batches(lengths, batch_size)).tolist()
    assert order.positions[order.rows].tolist() == list(range(len(lengths)))
    assert len(order) == len(lengths)
    for length, (first, count) in order.blocks.items():
        assert set(lengths[order.rows[first : first + count]].tolist()) == {length}
        assert count == (lengths == length).sum()


@given(lengths_and_rows())
def test_length_order_of_a_subset_of_the_rows(case):
    lengths, rows = case
    rows, shape = np.unique(rows), SHAPES["hidden states"]
    subset, alone = LengthOrder(lengths, rows), LengthOrder(lengths[rows])
    assert subset.rows.tolist() == rows[alone.rows].tolist()
    assert subset.blocks == alone.blocks
    assert subset.positions[rows].tolist() == alone.positions.tolist()
    array, entries = BucketedArray(None, subset, shape), make_entries(lengths, shape)
    array.values = np.zeros(array.size, np.float32)
    array.write(rows, pad([entries[row] for row in rows], shape(int(lengths[rows].max(initial=0)))))
    assert len(array.values) == 3 * lengths[rows].sum()
    for row in rows:
        np.testing.assert_array_equal(array.read(np.array([row]))[0], entries[row])
    for row in np.setdiff1d(np.arange(len(lengths)), rows):
        with pytest.raises((IndexError, KeyError)):
            array.read(np.array([row]))


def test_entries_read_from_a_memory_map_are_copies(tmp_path):
    lengths = np.array([2, 3, 2])
    expected = make_bucketed(lengths, SHAPES["attention"])
    np.save(tmp_path / "x.npy", expected.values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    stored = BucketedArray(mapped, LengthOrder(lengths), SHAPES["attention"])
    for rows in (np.array([0, 2]), np.array([0, 1])):
        entries = stored.read(rows)
        assert type(entries) is np.ndarray
        entries[:] = 0
        np.testing.assert_array_equal(stored.read(rows), expected.read(rows))


def test_bucketed_array_without_rows():
    order = LengthOrder(np.zeros(0, np.int64))
    array = BucketedArray(np.zeros(0, np.float16), order, SHAPES["attention"])
    assert (len(order), array.size, array.read(np.zeros(0, np.int64)).shape) == (0, 0, (0, 2, 0, 0))


def test_bucketed_arrays_exceed_32_bits():
    lengths = np.full(400_000, 512, np.int32)
    assert BucketedArray(None, LengthOrder(lengths), lambda n: (12, n, n)).size == 400_000 * 12 * 512**2


# Resumable arrays

STEPS = 6
SHAPE = {"a/x": (sum(range(1, STEPS + 1)), 2), "b/x": (sum(range(1, STEPS + 1)),)}


def append_step(files: ResumableArrays, step: int, shapes=SHAPE) -> None:
    """Append `step + 1` entries to each array."""
    for name, (_, *entry) in shapes.items():
        files.append(name, np.full((step + 1, *entry), step))
    files.end_step()


def fill(folder: Path, stop: int = STEPS, shapes=SHAPE) -> list[int]:
    """Continue up to a step; return the steps that this call made."""
    with ResumableArrays(folder, "key", np.float16, shapes) as files:
        steps = list(range(files.steps, stop))
        for step in steps:
            append_step(files, step, shapes)
    return steps


def file_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


def test_resumable_arrays_are_what_numpy_saves(tmp_path):
    fill(tmp_path / "x")
    for name, (_, *entry) in SHAPE.items():
        expected = np.concatenate([np.full((step + 1, *entry), step, np.float16) for step in range(STEPS)])
        np.save(tmp_path / "expected.npy", expected)
        assert (tmp_path / "x" / f"{name}.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_more_entries_than_the_shape_has_are_refused(tmp_path):
    with ResumableArrays(tmp_path, "key", np.float16, {"x": (4,)}) as files:
        files.append("x", np.arange(8)[::2])
        with pytest.raises(ValueError, match=r"x\.npy: 5 entries where 4 are expected"):
            files.append("x", np.zeros(1))
    assert np.load(tmp_path / "x.npy").tolist() == [0, 2, 4, 6]


def test_filling_continues_after_an_orderly_end(tmp_path):
    fill(tmp_path / "once")
    assert fill(tmp_path / "parts", 2) == [0, 1]
    assert fill(tmp_path / "parts", 5) == [2, 3, 4]
    assert fill(tmp_path / "parts") == [5]
    assert fill(tmp_path / "parts") == []
    assert file_contents(tmp_path / "parts") == file_contents(tmp_path / "once")


def fail_in_the_third_step(folder: Path) -> None:
    with ResumableArrays(folder, "key", np.float16, SHAPE) as files:
        append_step(files, 0)
        append_step(files, 1)
        files.append("a/x", np.full((3, 2), 7))
        raise ZeroDivisionError


@pytest.mark.parametrize(("seconds", "repeated"), [(0.0, [2, 3, 4, 5]), (60.0, list(range(STEPS)))])
def test_an_exception_loses_what_follows_the_last_checkpoint(tmp_path, monkeypatch, seconds, repeated):
    monkeypatch.setattr(arrays, "CHECKPOINT_SECONDS", seconds)
    with pytest.raises(ZeroDivisionError):
        fail_in_the_third_step(tmp_path / "x")
    assert fill(tmp_path / "x") == repeated
    fill(tmp_path / "once")
    assert file_contents(tmp_path / "x") == file_contents(tmp_path / "once")


def test_checkpoints_are_ten_seconds_apart(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(arrays.time, "monotonic", lambda: clock[0])
    with ResumableArrays(tmp_path, "key", np.float16, {"x": (1,)}) as files:
        saved = []
        for _ in range(25):
            clock[0] += 1
            files.end_step()
            saved.append(json.loads((tmp_path / PROGRESS).read_text())["steps"])
    assert saved == [0] * 9 + [10] * 10 + [20] * 6


def change_progress(folder: Path, **changes: object) -> None:
    path = folder / PROGRESS
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: change_progress(folder, key="another"),
        lambda folder: change_progress(folder, counts={"a/x": 6}),
        lambda folder: change_progress(folder, counts=None),
        lambda folder: (folder / PROGRESS).write_text("{"),
        lambda folder: (folder / PROGRESS).write_text("[]"),
        lambda folder: (folder / PROGRESS).unlink(),
        lambda folder: (folder / "a" / "x.npy").unlink(),
        lambda folder: (folder / "b" / "x.npy").write_bytes((folder / "b" / "x.npy").read_bytes()[:-1]),
        lambda folder: np.save(folder / "b" / "x.npy", np.zeros(22, np.float16)),
        lambda folder: np.save(folder / "b" / "x.npy", np.zeros(21, np.float32)),
    ],
)
def test_damaged_or_foreign_arrays_are_replaced(tmp_path, damage):
    fill(tmp_path / "once")
    fill(tmp_path / "x", 3)
    damage(tmp_path / "x")
    assert fill(tmp_path / "x") == list(range(STEPS))
    assert file_contents(tmp_path / "x") == file_contents(tmp_path / "once")


def test_fewer_arrays_are_continued_and_more_start_anew(tmp_path):
    fill(tmp_path, 3)
    assert fill(tmp_path, 4, {"b/x": SHAPE["b/x"]}) == [3]
    assert file_contents(tmp_path).keys() == {"b/x.npy"}
    assert fill(tmp_path) == list(range(STEPS))


@pytest.mark.parametrize(("number", "starts"), [(errno.EOPNOTSUPP, True), (errno.ENOSPC, False)])
def test_disk_space_is_reserved_at_the_start(tmp_path, monkeypatch, number, starts):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    if starts:
        assert fill(tmp_path) == list(range(STEPS))
    else:
        with pytest.raises(OSError, match="No space left"):
            fill(tmp_path)
    monkeypatch.undo()
    assert fill(tmp_path) == ([] if starts else list(range(STEPS)))
