from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ikd_ray.data import sources
from ikd_ray.data.dataset import Dataset, Split, fingerprint
from ikd_ray.data.splits import HOLDOUT_FRACTION, hold_out
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task


def made(task_name: str, labels: list) -> Dataset:
    """Every text says which split and row it is of; `labels` are the training set's."""
    task, splits = get_task(task_name), {}
    for names in task.splits:
        mine = labels if names.name == "train" else labels[:5]
        first = [f"{names.name} {row}" for row in range(len(mine))]
        second = [f"second {text}" for text in first] if task.is_pair else None
        kind = np.float32 if task.is_regression else np.int64
        splits[names.name] = Split(first, second, np.array(mine, kind))
    return Dataset(task, splits, "folder", "made up", fingerprint(task, splits))


def examples(split: Split) -> list[tuple]:
    return list(zip(split.text, split.text_pair or split.text, split.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("cola", [0, 0, 1] * 40),
        ("mnli", [0, 1, 2, 2] * 30),
        ("stsb", [row / 25 for row in range(120)]),
    ],
)
def test_the_training_set_is_parted_and_the_rest_is_as_it_was(task, labels):
    whole = made(task, labels)
    parted = hold_out(whole)
    kept, held = (examples(parted.splits[name]) for name in ("train", "holdout"))
    assert sorted(kept + held) == sorted(examples(whole.splits["train"]))
    assert [example for example in examples(whole.splits["train"]) if example in kept] == kept, "in order"
    assert len(held) == 12
    for name in set(whole.splits) - {"train"}:
        assert parted.splits[name] is whole.splits[name]
    assert set(parted.splits) == {*whole.splits, "holdout"}
    if task != "stsb":
        share = np.bincount(parted.splits["holdout"].labels) / np.bincount(whole.splits["train"].labels)
        assert share == pytest.approx(HOLDOUT_FRACTION, abs=0.02)


def test_it_is_other_data_and_says_so():
    whole = made("cola", [0, 1] * 30)
    parted = hold_out(whole)
    assert parted.fingerprint == fingerprint(whole.task, parted.splits) != whole.fingerprint
    assert parted.description == "made up; 6 of train are held out to choose by"
    assert (parted.task, parted.source, parted.generated) == (whole.task, "folder", False)
    assert hold_out(made("cola", [0, 1] * 30)).fingerprint == parted.fingerprint, "the same every time"


def test_two_of_a_label_are_enough():
    parted = hold_out(made("cola", [0, 1, 1, 0]))
    assert sorted(parted.splits["train"].labels) == sorted(parted.splits["holdout"].labels) == [0, 1]


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("cola", [0, 0, 1], "label 'acceptable' has a single training example"),
        ("rte", [1], "label 'not_entailment' has a single training example"),
        ("stsb", [1.0] * 14, "a tenth of 14 training examples is less than two"),
    ],
)
def test_too_few_to_part(task, labels, words):
    with pytest.raises(UsageError) as caught:
        hold_out(made(task, labels))
    message = str(caught.value)
    assert message.startswith(f"selection: holdout: {words}")
    assert message.endswith("or write selection: dev")
    assert "\n" not in message


def test_the_embedded_corpus_too():
    whole = sources.load_dataset(get_task("cola"), None)
    assert whole.generated
    parted = hold_out(whole)
    assert parted.generated
    assert len(parted.splits["holdout"]) == round(HOLDOUT_FRACTION * len(whole.splits["train"]))
    assert parted.description.startswith(whole.description)


def test_the_parts_do_not_depend_on_the_texts():
    """So a file whose texts are mended holds out the same examples."""
    whole = made("cola", [0, 1, 1] * 20)
    other = replace(whole.splits["train"], text=[text.upper() for text in whole.splits["train"].text])
    changed = replace(whole, splits=whole.splits | {"train": other})
    upper = [text.upper() for text in hold_out(whole).splits["holdout"].text]
    assert hold_out(changed).splits["holdout"].text == upper
