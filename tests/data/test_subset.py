from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.data.splits import nested_subset

CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(lambda found: np.array(found, np.int64))
SCORES = st.integers(1, 60).map(lambda count: np.linspace(0, 5, count, dtype=np.float32))
LABELS = st.one_of(CLASSES, SCORES)
FRACTIONS = st.floats(0.001, 1)
SEEDS = st.integers(0, 2**31 - 1)


@given(LABELS, FRACTIONS, SEEDS)
def test_rows_are_rows_each_once_in_order(labels, fraction, seed):
    rows = nested_subset(labels, fraction, seed)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows[0] >= 0
    assert rows[-1] < len(labels)
    assert rows.tolist() == nested_subset(labels.copy(), fraction, seed).tolist()


@given(LABELS, FRACTIONS, FRACTIONS, SEEDS)
def test_a_smaller_share_lies_within_a_larger_one(labels, one, other, seed):
    small, large = (nested_subset(labels, fraction, seed) for fraction in sorted((one, other)))
    assert set(small.tolist()) <= set(large.tolist())


@given(CLASSES, FRACTIONS, SEEDS)
def test_each_label_gives_its_share(labels, fraction, seed):
    chosen = labels[nested_subset(labels, fraction, seed)]
    for label in np.unique(labels):
        there, taken = (labels == label).sum(), (chosen == label).sum()
        assert taken >= 1
        assert taken == 1 or abs(taken - fraction * there) <= 0.5


@given(SCORES, FRACTIONS, SEEDS)
def test_scores_are_one_group(labels, fraction, seed):
    assert len(nested_subset(labels, fraction, seed)) == max(1, round(fraction * len(labels)))


@given(LABELS, SEEDS)
def test_the_whole_is_every_row(labels, seed):
    rows = nested_subset(labels, 1.0, seed)
    assert rows.tolist() == list(range(len(labels)))
    assert rows.dtype == np.int64


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_seeds_choose_otherwise_and_no_row_is_preferred(kind):
    labels = (np.arange(40) % 2).astype(kind)
    found = [nested_subset(labels, 0.25, seed) for seed in range(400)]
    assert len({tuple(rows) for rows in found}) > 390
    counts = np.bincount(np.concatenate(found), minlength=40)
    assert all(len(rows) == 10 for rows in found)
    assert counts.min() > 60, "100 each are expected, with a standard deviation below 9"
    assert counts.max() < 140
