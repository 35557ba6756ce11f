from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data.batches import POOL, PREFETCH, collate, evaluation_batches, prefetch, training_batches
from ikd_ray.data.tokens import RaggedArray, TokenSplit, row_offsets

quick = settings(max_examples=60)
counts, sizes = st.integers(1, 700), st.integers(1, 70)


def sample_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Sample lengths as CoLA's: median 11 tokens with special tokens, and a long tail."""
    drawn = np.random.default_rng(seed).lognormal(2.35, 0.42, count)
    return np.clip(drawn.astype(np.int64), 3, 128)


def padding_share(plan: list[np.ndarray], lengths: np.ndarray) -> float:
    cells = sum(len(rows) * int(lengths[rows].max()) for rows in plan)
    return 1 - lengths.sum() / cells


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


@quick
@given(counts, sizes, st.integers(0, 2**31 - 1))
def test_batches_hold_every_row_once(count, size, seed):
    plan = training_batches(sample_lengths(count), size, seed, "C", 1)
    assert sorted(np.concatenate(plan).tolist()) == list(range(count))
    assert all(1 <= len(rows) <= size for rows in plan)


@quick
@given(counts, sizes)
def test_batch_sizes_within_a_pool_differ_by_at_most_one(count, size):
    """Up to `POOL` batches make one pool; their number is the smallest possible."""
    size = max(size, -(-count // POOL))
    plan = training_batches(sample_lengths(count), size, 0)
    results = [len(rows) for rows in plan]
    assert max(results) - min(results) <= 1
    assert len(plan) == -(-count // size)


@pytest.mark.parametrize(("count", "size"), [(1665, 32), (25_601, 512), (8551, 32), (8551, 1), (101, 1)])
def test_batches_of_several_pools_are_nearly_full(count, size):
    """A pool holds at least half of `POOL` batches and needs at most one batch more than full ones would."""
    assert count > POOL * size
    results = [len(rows) for rows in training_batches(np.full(count, 9), size, 0)]
    fewest = POOL // 2
    assert min(results) >= size * fewest // (fewest + 1)
    assert len(results) <= -(-count // size) + -(-count // (POOL * size))


@pytest.mark.parametrize("count", [1, 31, 33, 1600, 1601, 1665, 8551])
def test_number_of_batches_is_the_same_in_every_epoch(count):
    """The learning rate schedule relies on it."""
    lengths = sample_lengths(count)
    keys = [(), *((seed, "1", 3) for seed in range(4))]
    assert len({len(training_batches(lengths, 32, *key)) for key in keys}) == 1


def test_batches_are_the_same_in_every_process_and_release():
    batches = training_batches(np.array([5, 9, 3] * 6), 4, 3, "1+2", 4)
    expected = [[13, 4, 1], [5, 8, 0, 12], [11, 2, 17, 14], [6, 3, 9, 15], [10, 16, 7]]
    assert [rows.tolist() for rows in batches] == expected


def test_seed_stage_and_epoch_change_the_batches():
    lengths = sample_lengths(500)
    keys = [(0, "1", 1), (1, "1", 1), (0, "2", 1), (0, "1", 2), (0, "1+2", 1), (0, "C", 1), (1, "C", 0)]
    plans = [training_batches(lengths, 16, *key) for key in keys]
    assert not any(same(plans[i], plans[j]) for i in range(len(keys)) for j in range(i))


def test_batches_mix_examples_and_lengths():
    """Neighbours change from epoch to epoch, and short batches do not all come first."""
    lengths = sample_lengths(4000)
    first, second = (training_batches(lengths, 16, 0, "C", epoch) for epoch in (1, 2))
    mates = {frozenset(map(int, pair)) for rows in first for pair in itertools.pairwise(rows)}
    again = {frozenset(map(int, pair)) for rows in second for pair in itertools.pairwise(rows)}
    assert len(mates & again) < 0.05 * len(mates)
    one_pool = training_batches(lengths[: 16 * POOL], 16, 0, "C", 1)
    means = [lengths[rows].mean() for rows in one_pool]
    assert abs(np.corrcoef(means, np.arange(POOL))[0, 1]) < 0.5


@pytest.mark.parametrize(("count", "size"), [(8551, 32), (8551, 16), (2490, 32), (3667, 8)])
def test_padding_is_small(count, size):
    lengths = sample_lengths(count)
    assert 10 < lengths.mean() < 13
    share = padding_share(training_batches(lengths, size, 0, "C", 1), lengths)
    assert share < 0.08
    shuffled = np.random.default_rng(0).permutation(count)
    assert share < padding_share(np.array_split(shuffled, count // size), lengths) / 3
    assert padding_share(evaluation_batches(lengths, 64), lengths) < 0.06


def test_padding_of_cola_is_small(glue_dir):
    lines = (glue_dir / "CoLA" / "train.tsv").read_text().splitlines()
    lengths = np.array([len(line.split("\t")[3].split()) + 3 for line in lines])
    assert padding_share(training_batches(lengths, 32, 0, "C", 1), lengths) < 0.08


@quick
@given(counts, sizes)
def test_evaluation_batches_hold_every_row_by_length(count, size):
    lengths = sample_lengths(count)
    plan = evaluation_batches(lengths, size)
    rows = np.concatenate(plan)
    assert sorted(rows.tolist()) == list(range(count))
    assert (np.diff(lengths[rows]) >= 0).all()
    assert all(1 <= len(batch) <= size for batch in plan)


@st.composite
def splits(draw):
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    offsets = row_offsets(np.array(lengths))
    ids = np.arange(100, 100 + offsets[-1], dtype=np.int32)
    segments = (ids % 3 == 0).astype(np.uint8)
    split = TokenSplit(RaggedArray(ids, offsets), RaggedArray(segments, offsets), np.arange(len(lengths)))
    rows = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=8))
    return split, np.array(rows)


@quick
@given(splits(), st.integers(0, 5))
def test_collate_pads_to_the_longest_row(case, pad_id):
    split, rows = case
    batch = collate(split, rows, pad_id)
    shape = (len(rows), max(int(split.lengths[row]) for row in rows))
    assert len(batch) == len(rows)
    assert batch.input_ids.shape == batch.token_type_ids.shape == batch.attention_mask.shape == shape
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == torch.int64
    assert batch.attention_mask.dtype == torch.bool
    for i, row in enumerate(rows):
        span = slice(*split.input_ids.offsets[row : row + 2])
        padding = shape[1] - int(split.lengths[row])
        assert batch.input_ids[i].tolist() == split.input_ids.values[span].tolist() + [pad_id] * padding
        assert batch.token_type_ids[i].tolist() == split.token_type_ids.values[span].tolist() + [0] * padding
        assert batch.attention_mask[i].tolist() == [True] * (shape[1] - padding) + [False] * padding
        assert int(batch.labels[i]) == row


def test_collate_keeps_float_scores():
    offsets = row_offsets(np.array([2]))
    ids = RaggedArray(np.array([5, 6], np.int32), offsets)
    split = TokenSplit(ids, RaggedArray(np.zeros(2, np.uint8), offsets), np.array([3.8], np.float32))
    batch = collate(split, np.array([0]), 0)
    assert batch.labels.dtype == torch.float32
    assert batch.to(torch.device("cpu")).input_ids is batch.input_ids


def test_prefetch_maps_in_another_thread():
    threads = []

    def double(item):
        threads.append(threading.get_ident())
        return 2 * item

    assert list(prefetch(double, range(50))) == [2 * item for item in range(50)]
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1
    assert list(prefetch(double, [])) == []


def test_prefetch_computes_while_the_caller_works():
    """The caller waits for item 1 while it holds item 0, which needs a thread."""
    computed = [threading.Event() for _ in range(3)]
    results = prefetch(lambda item: computed[item].set() or item, range(3))
    assert next(results) == 0
    assert computed[1].wait(timeout=30)
    assert list(results) == [1, 2]


def test_prefetch_is_bounded():
    computed = []
    results = prefetch(lambda item: computed.append(item) or item, range(100))
    assert next(results) == 0
    results.close()
    assert len(computed) <= PREFETCH + 1


def test_prefetch_raises_errors():
    results = prefetch(lambda item: 1 // item, [2, 0, 2])
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        next(results)
