from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.data.batches import evaluation_batches
from ikd_ray.storage.arrays import BucketedArray, LengthOrder

SHAPES = {
    "maps": lambda length: (2, length, length),
    "tokens": lambda length: (length, 3),
    "fixed": lambda length: (4,),
}


@st.composite
def cases(draw):
    """Lengths, and rows in any order, repeats allowed."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    rows = draw(st.lists(st.integers(0, len(lengths) - 1), max_size=10))
    return np.array(lengths), np.array(rows, dtype=np.int64)


def entries_of(lengths: np.ndarray, shape) -> list[np.ndarray]:
    """An entry for each row, all values distinct and none 0."""
    sizes = [int(np.prod(shape(int(length)))) for length in lengths]
    values = np.split(np.arange(1, sum(sizes) + 1, dtype=np.float32), np.cumsum(sizes)[:-1])
    return [value.reshape(shape(int(length))) for value, length in zip(values, lengths, strict=True)]


def pack(lengths: np.ndarray, shape) -> BucketedArray:
    """Appended in order of length, each entry's values as they are."""
    order, entries = LengthOrder(lengths), entries_of(lengths, shape)
    return BucketedArray(np.concatenate([entries[row].ravel() for row in order.rows]), order, shape)


def padded(entries: list[np.ndarray], shape) -> np.ndarray:
    out = np.zeros((len(entries), *shape), np.float32)
    for place, entry in zip(out, entries, strict=True):
        place[tuple(map(slice, entry.shape))] = entry
    return out


@pytest.mark.parametrize("kind", SHAPES)
@given(cases())
def test_read_is_the_rows_entries_padded(kind, case):
    (lengths, rows), shape = case, SHAPES[kind]
    entries, found = entries_of(lengths, shape), pack(lengths, shape).read(rows)
    longest = max((int(lengths[row]) for row in rows), default=0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, padded([entries[row] for row in rows], shape(longest)))


@pytest.mark.parametrize("kind", SHAPES)
@given(cases())
def test_write_is_the_inverse_of_read(kind, case):
    (lengths, rows), shape = case, SHAPES[kind]
    rows = np.unique(rows)[::-1].copy()
    full, target = pack(lengths, shape), BucketedArray(None, LengthOrder(lengths), shape)
    assert target.size == full.size == len(full.values)
    target.values = np.zeros(target.size, np.float32)
    noisy = full.read(rows)
    noisy[noisy == 0] = 9  # beyond an entry's own shape: must go nowhere
    target.write(rows, noisy)
    np.testing.assert_array_equal(target.read(rows), full.read(rows))
    others = np.setdiff1d(np.arange(len(lengths)), rows)
    assert not target.read(others).any(), "rows that were not asked for were written"


@given(cases(), st.integers(1, 5))
def test_the_order_is_that_of_evaluation(case, size):
    lengths, _ = case
    order = LengthOrder(lengths)
    assert order.rows.tolist() == np.concatenate(evaluation_batches(lengths, size)).tolist()
    assert order.positions[order.rows].tolist() == list(range(len(lengths)))
    assert len(order) == len(lengths)
    for length, (first, count) in order.blocks.items():
        assert set(lengths[order.rows[first : first + count]].tolist()) == {length}
        assert count == (lengths == length).sum()


@given(cases())
def test_of_some_rows_it_is_that_of_a_set_of_these_rows(case):
    lengths, rows = case
    rows = np.unique(rows)
    part, alone = LengthOrder(lengths, rows), LengthOrder(lengths[rows])
    assert part.rows.tolist() == rows[alone.rows].tolist()
    assert part.blocks == alone.blocks
    assert part.positions[rows].tolist() == alone.positions.tolist()
    shape = SHAPES["tokens"]
    array = BucketedArray(None, part, shape)
    entries = entries_of(lengths, shape)
    array.values = np.zeros(array.size, np.float32)
    array.write(rows, padded([entries[row] for row in rows], shape(int(lengths[rows].max(initial=0)))))
    assert len(array.values) == 3 * lengths[rows].sum()
    for row in rows:
        np.testing.assert_array_equal(array.read(np.array([row]))[0], entries[row])
    for row in np.setdiff1d(np.arange(len(lengths)), rows):
        with pytest.raises((IndexError, KeyError)):
            array.read(np.array([row]))


def test_what_is_read_is_a_copy(tmp_path):
    """What is stored stays as it is, whatever becomes of a batch; and a batch is no memory map."""
    lengths = np.array([2, 3, 2])
    packed = pack(lengths, SHAPES["maps"])
    np.save(tmp_path / "x.npy", packed.values)
    stored = BucketedArray(np.load(tmp_path / "x.npy", mmap_mode="r"), LengthOrder(lengths), SHAPES["maps"])
    for rows in (np.array([0, 2]), np.array([0, 1])):
        found = stored.read(rows)
        assert type(found) is np.ndarray
        found[:] = 0
        np.testing.assert_array_equal(stored.read(rows), packed.read(rows))


def test_no_rows_at_all():
    order = LengthOrder(np.zeros(0, np.int64))
    array = BucketedArray(np.zeros(0, np.float16), order, SHAPES["maps"])
    assert (len(order), array.size, array.read(np.zeros(0, np.int64)).shape) == (0, 0, (0, 2, 0, 0))


def test_sizes_are_wide():
    """Attention's cells outgrow 32 bits, whatever type the lengths have."""
    lengths = np.full(400_000, 512, np.int32)
    assert BucketedArray(None, LengthOrder(lengths), lambda n: (12, n, n)).size == 400_000 * 12 * 512**2
