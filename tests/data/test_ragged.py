from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.data.ragged import Ragged, offsets_of


@st.composite
def ragged_lists(draw):
    """Rows of distinct values (some rows empty), and an order of row numbers, repeats allowed."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    values = iter(range(1, sum(sizes) + 1))
    rows = [[next(values) for _ in range(size)] for size in sizes]
    order = draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    return rows, np.array(order, dtype=np.int64)


def pack(rows: list[list[int]]) -> Ragged:
    flat = np.array([value for row in rows for value in row], dtype=np.int32)
    return Ragged(flat, offsets_of(np.array([len(row) for row in rows])))


@given(ragged_lists())
def test_gather_is_the_rows_one_after_the_other(case):
    rows, order = case
    assert pack(rows).gather(order).tolist() == [value for row in order for value in rows[row]]


@given(ragged_lists())
def test_scatter_is_the_inverse_of_gather(case):
    rows, order = case
    order = np.array(list(dict.fromkeys(order.tolist())), dtype=np.int64)
    full = pack(rows)
    empty = Ragged(np.zeros_like(full.values), full.offsets)
    empty.scatter(order, full.gather(order))
    assert empty.gather(order).tolist() == full.gather(order).tolist()
    others = np.array([row for row in range(len(rows)) if row not in set(order.tolist())], dtype=np.int64)
    assert not empty.gather(others).any(), "rows that were not asked for were written"
    empty.scatter(others, full.gather(others))
    assert empty.values.tolist() == full.values.tolist()


@given(ragged_lists())
def test_sizes_and_length(case):
    rows, _ = case
    ragged = pack(rows)
    assert ragged.sizes.tolist() == [len(row) for row in rows]
    assert len(ragged) == len(rows)


def test_offsets_are_wide():
    """Attention's cells outgrow 32 bits: their offsets must not."""
    sizes = np.full(3, 2**31 - 1, dtype=np.int32)
    assert offsets_of(sizes).tolist() == [0, 2**31 - 1, 2**32 - 2, 3 * 2**31 - 3]
    assert offsets_of(np.array([], dtype=np.int64)).tolist() == [0]


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.float16])
def test_saved_and_opened(tmp_path, kind):
    ragged = pack([[1, 2, 3], [], [4]])
    ragged = Ragged(ragged.values.astype(kind), ragged.offsets)
    ragged.save(tmp_path, "x.ids")
    opened = Ragged.open(tmp_path, "x.ids")
    assert isinstance(opened.values, np.memmap)
    assert opened.values.dtype == kind
    assert opened.values.tolist() == ragged.values.tolist()
    assert opened.offsets.tolist() == ragged.offsets.tolist()
