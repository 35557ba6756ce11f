"""Nested fractions of a training set, and its held-out part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.data import sources
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.splits import HOLDOUT_FRACTION, hold_out, nested_subset
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task

CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(lambda labels: np.array(labels, np.int64))
SCORES = st.integers(1, 60).map(lambda count: np.linspace(0, 5, count, dtype=np.float32))
LABELS = st.one_of(CLASSES, SCORES)
FRACTIONS = st.floats(0.001, 1)
SEEDS = st.integers(0, 2**31 - 1)


@given(LABELS, FRACTIONS, SEEDS)
def test_rows_are_distinct_ascending_and_deterministic(labels, fraction, seed):
    rows = nested_subset(labels, fraction, seed).tolist()
    assert rows == sorted({*rows} & {*range(len(labels))})
    assert rows == nested_subset(labels.copy(), fraction, seed).tolist()


@given(LABELS, FRACTIONS, FRACTIONS, SEEDS)
def test_smaller_subset_lies_within_a_larger_one(labels, one, other, seed):
    small, large = (nested_subset(labels, fraction, seed) for fraction in sorted((one, other)))
    assert set(small.tolist()) <= set(large.tolist())


@given(CLASSES, FRACTIONS, SEEDS)
def test_subset_is_stratified_by_label(labels, fraction, seed):
    chosen = labels[nested_subset(labels, fraction, seed)]
    for label in np.unique(labels):
        count, selected = (labels == label).sum(), (chosen == label).sum()
        assert selected >= 1
        assert selected == 1 or abs(selected - fraction * count) <= 0.5


@given(SCORES, FRACTIONS, SEEDS)
def test_scores_form_one_group(labels, fraction, seed):
    assert len(nested_subset(labels, fraction, seed)) == max(1, round(fraction * len(labels)))


@given(LABELS, SEEDS)
def test_fraction_one_selects_every_row(labels, seed):
    rows = nested_subset(labels, 1.0, seed)
    assert rows.tolist() == list(range(len(labels)))
    assert rows.dtype == np.int64


@pytest.mark.parametrize("kind", [np.int64, np.float32])
def test_seeds_select_different_rows_uniformly(kind):
    labels = (np.arange(40) % 2).astype(kind)
    found = [nested_subset(labels, 0.25, seed) for seed in range(400)]
    assert len({tuple(rows) for rows in found}) > 390
    counts = np.bincount(np.concatenate(found), minlength=40)
    assert all(len(rows) == 10 for rows in found)
    assert counts.min() > 60, "100 each are expected, with a standard deviation below 9"
    assert counts.max() < 140


def make_task_dataset(task_name: str, labels: list) -> Dataset:
    """Make a data set whose texts name their split and row; `labels` are the training set's."""
    task, splits = get_task(task_name), {}
    for names in task.splits:
        mine = labels if names.name == "train" else labels[:5]
        first = [f"{names.name} {row}" for row in range(len(mine))]
        second = [f"second {text}" for text in first] if task.is_pair else None
        kind = np.float32 if task.is_regression else np.int64
        splits[names.name] = Split(first, second, np.array(mine, kind))
    return Dataset(task, splits, "folder", "made up")


def examples(split: Split) -> list[tuple]:
    return list(zip(split.text, split.text_pair or split.text, split.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("task", "labels"),
    [("cola", [0, 0, 1] * 40), ("mnli", [0, 1, 2, 2] * 30), ("stsb", [row / 25 for row in range(120)])],
)
def test_hold_out_divides_the_training_set_alone(task, labels):
    whole = make_task_dataset(task, labels)
    divided = hold_out(whole)
    train, held_out = (examples(divided.splits[name]) for name in ("train", "holdout"))
    assert sorted(train + held_out) == sorted(examples(whole.splits["train"]))
    assert [example for example in examples(whole.splits["train"]) if example in train] == train, "in order"
    assert len(held_out) == 12
    unchanged = {name: split for name, split in divided.splits.items() if name not in ("train", "holdout")}
    assert unchanged == {name: split for name, split in whole.splits.items() if name != "train"}
    if task != "stsb":
        share = np.bincount(divided.splits["holdout"].labels) / np.bincount(whole.splits["train"].labels)
        assert share == pytest.approx(HOLDOUT_FRACTION, abs=0.02)


def test_hold_out_changes_fingerprint_and_description():
    whole = make_task_dataset("cola", [0, 1] * 30)
    divided = hold_out(whole)
    assert divided.fingerprint != whole.fingerprint
    assert divided.description == "made up; 6 of train are held out to choose by"
    assert (divided.task, divided.source, divided.generated) == (whole.task, "folder", False)
    again = hold_out(make_task_dataset("cola", [0, 1] * 30))
    assert again.fingerprint == divided.fingerprint, "the same every time"


def test_two_examples_of_a_label_suffice():
    divided = hold_out(make_task_dataset("cola", [0, 1, 1, 0]))
    assert sorted(divided.splits["train"].labels) == sorted(divided.splits["holdout"].labels) == [0, 1]


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("cola", [0, 0, 1], "label 'acceptable' has a single training example"),
        ("rte", [1], "label 'not_entailment' has a single training example"),
        ("stsb", [1.0] * 14, "a tenth of 14 training examples is less than two"),
    ],
)
def test_too_few_examples_are_refused(task, labels, words):
    with pytest.raises(UsageError) as caught:
        hold_out(make_task_dataset(task, labels))
    message = str(caught.value)
    assert message.startswith(f"selection: holdout: {words}")
    assert message.endswith("or write selection: dev")
    assert "\n" not in message


def test_embedded_corpus_can_be_held_out_from():
    whole = sources.load_dataset(get_task("cola"), None)
    assert whole.generated
    divided = hold_out(whole)
    assert divided.generated
    assert len(divided.splits["holdout"]) == round(HOLDOUT_FRACTION * len(whole.splits["train"]))
    assert divided.description.startswith(whole.description)


def test_held_out_rows_do_not_depend_on_the_texts():
    whole = make_task_dataset("cola", [0, 1, 1] * 20)
    other = replace(whole.splits["train"], text=[text.upper() for text in whole.splits["train"].text])
    changed = replace(whole, splits=whole.splits | {"train": other})
    upper = [text.upper() for text in hold_out(whole).splits["holdout"].text]
    assert hold_out(changed).splits["holdout"].text == upper
