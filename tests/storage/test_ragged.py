from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.storage.arrays import RaggedArray, RaggedArrayWriter, row_offsets


@st.composite
def ragged_lists(draw):
    """Rows of distinct values (some rows empty), and an order of row numbers, repeats allowed."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    values = iter(range(1, sum(sizes) + 1))
    rows = [[next(values) for _ in range(size)] for size in sizes]
    order = draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    return rows, np.array(order, dtype=np.int64)


def pack(rows: list[list[int]]) -> RaggedArray:
    flat = np.array([value for row in rows for value in row], dtype=np.int32)
    return RaggedArray(flat, row_offsets(np.array([len(row) for row in rows])))


@given(ragged_lists(), st.integers(0, 9))
def test_padded_is_the_rows_beside_one_another(case, fill):
    rows, order = case
    values, mask = pack(rows).padded(order, fill)
    longest = max((len(rows[row]) for row in order), default=0)
    assert values.shape == mask.shape == (len(order), longest)
    assert (values.dtype, mask.dtype) == (np.int32, np.bool_)
    for found, within, row in zip(values.tolist(), mask.tolist(), order, strict=True):
        padding = longest - len(rows[row])
        assert found == rows[row] + [fill] * padding
        assert within == [True] * len(rows[row]) + [False] * padding


def write(folder: Path, name: str, *chunks: list[list[int]], kind: type = np.int32) -> None:
    with closing(RaggedArrayWriter(folder, name, kind)) as writer:
        for rows in chunks:
            writer.append(rows)


def test_flat_is_the_rows_values_in_the_array_s_order():
    ragged = RaggedArray(np.arange(9), row_offsets(np.array([2, 0, 4, 3])))
    assert ragged.flat(np.array([3, 0])).tolist() == [0, 1, 6, 7, 8]
    assert ragged.flat(np.array([1])).tolist() == []
    assert ragged.flat(np.arange(4)).tolist() == list(range(9))


def test_padded_copies(tmp_path):
    """What is stored stays as it is, whatever becomes of a batch; and a batch is no memory map."""
    write(tmp_path, "x", [[1, 2, 3], [4]])
    stored = RaggedArray.open(tmp_path, "x")
    values, _ = stored.padded(np.array([0]), 0)
    assert type(values) is np.ndarray
    values[:] = 7
    assert stored.values.tolist() == [1, 2, 3, 4]


@given(ragged_lists())
def test_sizes_and_length(case):
    rows, _ = case
    ragged = pack(rows)
    assert ragged.sizes.tolist() == [len(row) for row in rows]
    assert len(ragged) == len(rows)


def test_offsets_are_wide():
    """Attention's cells outgrow 32 bits: their offsets must not."""
    sizes = np.full(3, 2**31 - 1, dtype=np.int32)
    assert row_offsets(sizes).tolist() == [0, 2**31 - 1, 2**32 - 2, 3 * 2**31 - 3]
    assert row_offsets(np.array([], dtype=np.int64)).tolist() == [0]


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.float16])
def test_written_and_opened(tmp_path, kind):
    expected = pack([[1, 2, 3], [], [4], [5, 6]])
    write(tmp_path, "x.ids", [[1, 2, 3], []], [], [[4], [5, 6]], kind=kind)
    opened = RaggedArray.open(tmp_path, "x.ids")
    assert isinstance(opened.values, np.memmap)
    assert opened.values.dtype == kind
    assert opened.values.tolist() == expected.values.tolist()
    assert (opened.offsets.tolist(), opened.offsets.dtype) == (expected.offsets.tolist(), np.int64)


def test_no_rows_at_all(tmp_path):
    write(tmp_path, "x")
    opened = RaggedArray.open(tmp_path, "x")
    assert (len(opened), opened.offsets.tolist(), opened.values.tolist()) == (0, [0], [])
