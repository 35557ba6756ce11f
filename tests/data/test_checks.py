from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ikd_ray.data.checks import data_warnings
from ikd_ray.data.dataset import Dataset, Split, add_unlabelled
from ikd_ray.data.splits import hold_out
from ikd_ray.tasks import TASKS
from tests.data.test_readers import ONE, PAIR, SCORE


def dataset(task, train: str, dev: str, /, **labels: list[float]) -> Dataset:
    """Return a data set with a letter as the text of each example, and its neighbour as the second one."""
    splits = {}
    for name, letters in (("train", train), ("dev", dev)):
        pair = [*letters[1:], "z"] if task.is_pair else None
        numbers = labels.get(name, [number % 2 for number in range(len(letters))])
        splits[name] = Split(
            [*letters], pair, np.array(numbers, np.float32 if task.is_regression else np.int64)
        )
    return Dataset(task, splits, "folder", "")


def test_ordinary_data_has_no_warning():
    for task in (ONE, PAIR, SCORE):
        assert data_warnings(dataset(task, "abcd", "ef")) == []


def test_classes_that_train_lacks_are_named():
    task = replace(ONE, labels=("a", "b", "c", "d"))
    assert data_warnings(dataset(task, "ab", "cd", train=[2, 0], dev=[0, 1])) == [
        "train has no example of 2 of 4 classes, which no student will learn: b, d; add examples, or take the "
        "classes out of the task file"
    ]


def test_examples_that_a_split_shares_with_train_are_counted():
    expected = (
        "2 of 4 dev examples are in train too, which makes metrics on dev too good; take them out of train"
    )
    for task in (ONE, SCORE):
        assert data_warnings(dataset(task, "abcd", "xbay")) == [expected]


def test_pairs_are_shared_if_both_texts_are():
    [line] = data_warnings(dataset(PAIR, "abcd", "bcad"))  # bc and dz, but not ca and ad
    assert line.startswith("2 of 4 dev examples")


def test_examples_that_train_repeats_are_shared_with_its_held_out_part():
    [line] = data_warnings(hold_out(dataset(ONE, "a" * 40, "xy")))
    assert line.startswith(
        "4 of 4 holdout examples are in train too, which makes metrics on holdout too good"
    )


def test_examples_that_test_shares_with_train_or_dev_are_counted():
    whole = dataset(ONE, "abcd", "xyz")
    shared = replace(whole, test=Split(["a", "y", "z", "w", "a"], None, np.zeros(5, np.int64)))
    harm = "which makes metrics on test too good"
    assert data_warnings(shared) == [
        f"2 of 5 test examples are in train too, {harm}; take them out of train",
        f"2 of 5 test examples are in dev too, {harm}; take them out of dev",
    ]
    drawn = replace(shared, task=replace(ONE, split=0.1))
    assert data_warnings(drawn)[1].endswith(
        f"dev too, {harm}; take them out of train, from which dev is drawn"
    )


def test_tables_of_glue_are_what_they_are():
    assert data_warnings(replace(dataset(ONE, "aa", "aa"), task=TASKS["sst2"])) == []


@pytest.mark.parametrize("task", [ONE, TASKS["sst2"]])
def test_examples_that_a_split_shares_with_texts_without_a_label_are_counted(task):
    whole = add_unlabelled(replace(dataset(ONE, "abcd", "xyz"), task=task), ["y", "v", "z", "y"], None)
    assert data_warnings(whole) == [
        "2 of 3 dev examples are among the texts without a label, which makes metrics on dev too good; take them out "
        "of that table"
    ]


def test_held_out_examples_are_not_among_the_texts_without_a_label():
    whole = dataset(ONE, "abcdefghijklmnopqrst", "xyz")
    whole = add_unlabelled(whole, [*"abcdefghijklmnopqrst", "v"], None)
    divided = hold_out(whole)
    assert data_warnings(divided) == []
    train, held_out = divided.splits["train"], divided.splits["holdout"]
    unlabelled = [text for text, given in zip(train.text, train.is_labelled, strict=True) if not given]
    assert sorted([*unlabelled, *held_out.text]) == [*"abcdefghijklmnopqrst", "v"]
    assert divided.description.endswith(
        "2 of train are held out to choose by, and with them 2 of the texts without a label"
    )
