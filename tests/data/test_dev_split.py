"""A dev set drawn from train: which rows it has, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikd_ray.data import sources
from ikd_ray.data.dataset import Split
from ikd_ray.data.dev_split import draw_dev
from ikd_ray.data.task_file import CustomTask
from ikd_ray.errors import UsageError
from tests.data.test_readers import ONE, PAIR, SCORE

HEAD = "text,label\n"


def draw(
    labels: list, task: CustomTask = ONE, fraction: float = 0.1, seed: int = 0, texts: list[str] | None = None
) -> tuple[Split, Split]:
    texts = texts or [f"text {row}" for row in range(len(labels))]
    pair = [f"second {row % 7}" for row in range(len(labels))] if task.is_pair else None
    split = Split(texts, pair, np.array(labels, np.float32 if task.is_regression else np.int64))
    return draw_dev(split, replace(task, split=fraction, split_seed=seed))


def refusal(labels: list, *args, **options) -> str:
    with pytest.raises(UsageError) as error:
        draw(labels, *args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_rows_of_a_seed_are_these_on_every_machine():
    _, dev = draw([0, 0, 1] * 20)
    assert dev.rows.tolist() == [0, 2, 4, 13, 32, 57]
    _, other = draw([0, 0, 1] * 20, seed=1)
    assert other.rows.tolist() != dev.rows.tolist()


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(11, 60), min_size=2, max_size=4),
    fraction=st.floats(0.1, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_dev_has_its_share_of_every_class(counts, fraction, seed):
    task = replace(ONE, labels=tuple("abcd"), file_labels=tuple("abcd"))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    train, dev = draw(labels, task, fraction, seed)
    assert sorted([*train.rows, *dev.rows]) == list(range(len(labels)))
    assert np.all(np.diff(train.rows) > 0)
    assert np.all(np.diff(dev.rows) > 0)
    for label, count in enumerate(counts):
        drawn = int((dev.labels == label).sum())
        assert 1 <= drawn <= count - 1
        assert abs(drawn - fraction * count) <= 2


def test_rows_of_one_text_stay_together():
    texts = [f"text {row % 40}" for row in range(120)]
    train, dev = draw([row % 2 for row in range(120)], fraction=0.2, texts=texts)
    assert not set(train.text) & set(dev.text)
    assert len(dev) == 3 * 8
    pairs = draw([row % 2 for row in range(120)], PAIR, 0.2, texts=["the same"] * 60 + ["another"] * 60)
    assert not set(pairs[0].examples()) & set(pairs[1].examples())


def test_scores_are_drawn_at_random():
    train, dev = draw([row / 100 for row in range(100)], SCORE)
    assert (len(train), len(dev)) == (90, 10)
    assert dev.labels.dtype == np.float32
    assert dev.rows.tolist() != list(range(10))


REFUSED = {
    "a class too rare": (
        [0] * 50 + [1] * 9, {}, "task one: split: 0.1 needs 10 different texts of each class, but class 'yes' has 9"),
    "a class of one row": ([0] * 9 + [1], {"fraction": 0.5}, "needs 2 different texts of each class, but class 'yes'"),
    "a class of one text": (
        [0] * 30 + [1] * 30, {"texts": [f"{row}" for row in range(30)] + ["same"] * 30}, "class 'yes' has 1 in train"),
    "nothing left to train on": ([0, 1] * 9, {"fraction": 0.9}, "needs 11 different texts of each class"),
    "one score in dev": ([0.1] * 10, {"task": SCORE}, "0.1 of 10 different texts leaves fewer than two in dev or in"),
    "one score in train": ([0.1] * 10, {"task": SCORE, "fraction": 0.9}, "leaves fewer than two in dev or in train"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_be_divided_is_refused(case):
    labels, options, words = REFUSED[case]
    assert words in refusal(labels, **options)


def test_a_class_whose_texts_have_another_label_too_is_refused():
    """A class is stratified by the first label of each text, which is another one here."""
    texts = [f"{row % 20}" for row in range(40)]
    task = replace(ONE, labels=("a", "b", "c"), file_labels=("a", "b", "c"))
    labels = [0] * 10 + [1] * 10 + [0] * 19 + [2]
    message = refusal(labels, task, texts=texts)
    assert "split: 0.1 leaves no row of class 'c' in" in message
    assert "its texts have other labels, too" in message


def write(path, rows: range, label=lambda row: row % 2) -> None:
    path.write_text(HEAD + "".join(f"text {row},{label(row)}\n" for row in rows))


def test_one_table_and_a_test_table_are_a_data_set(tmp_path):
    write(tmp_path / "all.csv", range(60))
    write(tmp_path / "test.csv", range(60, 70))
    task = replace(ONE, files=(("train", "all.csv"), ("test", "test.csv")), split=0.1)
    data = sources.load_dataset(task, tmp_path)
    assert data.description == (
        f"folder {tmp_path.name} (one, 54 train / 6 dev / 10 test); dev: 6 of 60 rows, drawn stratified with seed 0"
    )
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 54, "dev": 6}
    assert data.test.text == [f"text {row}" for row in range(60, 70)]
    assert list(data.test_dataset.splits) == ["test"]
    assert sources.load_dataset(task, tmp_path).fingerprint == data.fingerprint


def test_test_examples_are_no_part_of_the_fingerprint(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / f"{name}.csv", range(20))
    plain = sources.load_dataset(ONE, tmp_path)
    task = replace(ONE, files=(*ONE.files, ("test", "test.csv")))
    tested = sources.load_dataset(task, tmp_path)
    assert tested.fingerprint == plain.fingerprint
    before = tested.test_dataset.fingerprint
    write(tmp_path / "test.csv", range(21))
    assert sources.load_dataset(task, tmp_path).test_dataset.fingerprint != before
    write(tmp_path / "test.csv", range(3), label=lambda row: "?")
    with pytest.raises(UsageError, match=r"test\.csv line 2: label '\?' is not one of"):
        sources.load_dataset(task, tmp_path)


def test_a_missing_dev_table_points_to_split(tmp_path):
    write(tmp_path / "train.csv", range(20))
    with pytest.raises(
        UsageError, match=r"dev\.csv: there is no such file; .*; to draw dev from train, write `split"
    ):
        sources.load_dataset(ONE, tmp_path)
