from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from ikd_ray.data import tokens
from ikd_ray.data.dataset import Dataset, add_unlabelled
from ikd_ray.data.splits import HOLDOUT, hold_out
from ikd_ray.data.task_file import load_task
from ikd_ray.data.tokens import RaggedArray, TaskData, open_data, row_offsets, tokenize
from ikd_ray.errors import UsageError
from ikd_ray.storage import store
from tests.helpers.damage import flip
from tests.helpers.tiny_models import make_dataset, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def dataset_of(task_name: str, seed: int = 0) -> Dataset:
    """Return generated examples, the last of which has words of several tokens and an unknown one."""
    dataset = make_dataset(task_name, train=25, dev=25, seed=seed)
    for split in dataset.splits.values():
        split.text[-1] = "w1s w2ed. zzz"
    return dataset


def assert_tokenized(data: TaskData, dataset: Dataset, tokenizer, max_length: int) -> None:
    """Compare every row with the tokenizer's output for that example alone."""
    assert list(data.splits) == list(dataset.splits)
    for name, split in dataset.splits.items():
        found = data.splits[name]
        assert len(found) == len(split)
        assert found.labels.tolist() == split.labels.tolist()
        assert found.labels.dtype == split.labels.dtype
        for row in range(len(split)):
            pair = (split.text_pair[row],) if split.text_pair is not None else ()
            expected = tokenizer(
                split.text[row], *pair, truncation=True, max_length=max_length, return_token_type_ids=True
            )
            for ragged, values in ((found.input_ids, "input_ids"), (found.token_type_ids, "token_type_ids")):
                start, end = ragged.offsets[row : row + 2]
                assert ragged.values[start:end].tolist() == expected[values]
            assert found.lengths[row] == len(expected["input_ids"]) <= max_length


def test_custom_task_is_stored_with_its_tokens(tmp_path, tokenizer):
    """Another process or node may have nothing but the folder."""
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ntext: a\nlabel: b\nlabels: {1: x, 2: y, 3: z}\nmetric: macro_f1\n")
    task = load_task(path)
    kept = tokenize(replace(dataset_of("cola"), task=task), tokenizer, "t", 12, tmp_path / "tokens").folder
    path.unlink()
    assert open_data(kept).task == task


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "mnli"])
@pytest.mark.parametrize("max_length", [8, 12, 128])
def test_rows_equal_the_tokenizers_output(tmp_path, tokenizer, task, max_length):
    dataset = dataset_of(task)
    data = tokenize(dataset, tokenizer, "t", max_length, tmp_path)
    assert_tokenized(data, dataset, tokenizer, max_length)
    lengths = data.train.lengths
    assert len(set(lengths.tolist())) > 1
    assert (lengths == max_length).any() == (max_length < 20), "nothing was cut, or all was short"
    segments = {int(value) for value in data.train.token_type_ids.values}
    assert segments == ({0, 1} if dataset.task.is_pair else {0})


UNSEEN = "\u200b\u200d"  # zero-width characters, of which BERT's normalizer leaves nothing


@pytest.fixture(scope="module")
def bare_tokenizer(tmp_path_factory):
    """Return a tokenizer that adds no special tokens."""
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    return tokenizer


@pytest.mark.parametrize("split", ["train", "dev"])
def test_text_without_a_token_is_refused(tmp_path, tokenizer, bare_tokenizer, monkeypatch, split):
    monkeypatch.setattr(tokens, "CHUNK", 7)
    dataset = dataset_of("cola")
    dataset.splits[split].text[16] = UNSEEN
    with pytest.raises(UsageError) as error:
        tokenize(dataset, bare_tokenizer, "t", 16, tmp_path / "bare")
    assert str(error.value).startswith(
        f"{split} example 17: the tokenizer returns no tokens for '\\u200b\\u200d'; remove the example"
    )
    assert [path.name for path in (tmp_path / "bare").iterdir() if path.is_dir()] == []
    lengths = tokenize(dataset, tokenizer, "t", 16, tmp_path / "whole").splits[split].lengths
    assert lengths[16] == 2  # [CLS] and [SEP]


def test_text_without_a_token_is_named_by_its_place_in_the_source(tmp_path, bare_tokenizer):
    """Number examples as the tables do, in the held-out part and in the sample of a dry run too."""
    dataset = dataset_of("cola")
    for split in dataset.splits.values():
        split.text[16] = UNSEEN
    selected = hold_out(dataset)
    [held_out] = (name for name in ("train", HOLDOUT) if UNSEEN in selected.splits[name].text)
    for name, source in ((held_out, "train"), ("dev", "dev")):
        split = selected.splits[name]
        sample = split.select(np.random.default_rng(0).permutation(len(split)))
        with pytest.raises(UsageError, match=f"^{source} example 17: "):
            tokenize(replace(selected, splits={name: sample}), bare_tokenizer, "t", 16, tmp_path / name)


def test_text_without_a_label_and_a_token_is_named_by_its_place_in_its_own_file(tmp_path, bare_tokenizer):
    whole = add_unlabelled(dataset_of("cola"), ["w1"] * 5 + [UNSEEN] + ["w2"] * 3, None)
    split = hold_out(whole).splits["train"]
    sample = split.select(np.random.default_rng(0).permutation(len(split)))
    for name, part in (("whole", whole.splits["train"]), ("sample", sample)):
        with pytest.raises(UsageError, match=r"^unlabelled example 6: the tokenizer returns no tokens for"):
            tokenize(replace(whole, splits={"train": part}), bare_tokenizer, "t", 16, tmp_path / name)


@pytest.mark.parametrize("column", ["text", "text_pair"])
def test_one_text_of_a_pair_may_have_no_token(tmp_path, bare_tokenizer, column):
    dataset = dataset_of("mrpc")
    getattr(dataset.splits["train"], column)[3] = UNSEEN
    assert tokenize(dataset, bare_tokenizer, "t", 16, tmp_path / "one").train.lengths.min() > 0
    dataset.splits["train"].text[3] = dataset.splits["train"].text_pair[3] = UNSEEN
    with pytest.raises(UsageError, match="train example 4: the tokenizer returns no tokens"):
        tokenize(dataset, bare_tokenizer, "t", 16, tmp_path / "none")


def test_chunk_size_does_not_change_the_tokens(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 7)
    dataset = dataset_of("mrpc")
    assert_tokenized(tokenize(dataset, tokenizer, "t", 16, tmp_path), dataset, tokenizer, 16)


def test_stored_tokens_are_reopened(tmp_path, tokenizer, monkeypatch):
    dataset = dataset_of("mnli")
    data = tokenize(dataset, tokenizer, "t", 16, tmp_path)
    monkeypatch.setattr(tokens, "_encode", lambda *_: pytest.fail("tokenized again"))
    for reopened in (tokenize(dataset, tokenizer, "t", 16, tmp_path), open_data(data.folder)):
        for name in ("task", "key", "pad_id", "folder"):
            assert getattr(reopened, name) == getattr(data, name)
        for name, split in data.splits.items():
            for column in ("input_ids", "token_type_ids"):
                stored, read = getattr(split, column), getattr(reopened.splits[name], column)
                assert np.array_equal(stored.values, read.values)
                assert np.array_equal(stored.offsets, read.offsets)
            assert np.array_equal(split.labels, reopened.splits[name].labels)
    assert data.pad_id == tokenizer.pad_token_id == 0


def test_key_depends_on_content_tokenizer_and_length(tmp_path, tokenizer):
    cola, other, sst2 = dataset_of("cola"), dataset_of("cola", seed=1), dataset_of("sst2")
    cases = [(cola, "t", 16), (cola, "t", 17), (cola, "u", 16), (other, "t", 16), (sst2, "t", 16)]
    keys = [tokenize(data, tokenizer, name, length, tmp_path).key for data, name, length in cases]
    assert len(set(keys)) == 5
    assert tokenize(dataset_of("cola"), tokenizer, "t", 16, tmp_path).key == keys[0]


def test_damaged_tokens_are_rebuilt(tmp_path, tokenizer):
    dataset = dataset_of("cola")
    data = tokenize(dataset, tokenizer, "t", 16, tmp_path)
    flip(data.folder / "train.ids.npy")
    assert_tokenized(tokenize(dataset, tokenizer, "t", 16, tmp_path), dataset, tokenizer, 16)


# Ragged arrays


@st.composite
def ragged_rows(draw):
    """Rows of distinct values (some empty), and row numbers in any order, repeats allowed."""
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    values = iter(range(1, sum(sizes) + 1))
    rows = [[next(values) for _ in range(size)] for size in sizes]
    return rows, np.array(draw(st.lists(st.integers(0, len(rows) - 1), max_size=10)), np.int64)


def flatten(rows: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(rows))


def make_ragged(rows: list[list[int]], dtype: type = np.int32) -> RaggedArray:
    return RaggedArray(np.array(flatten(rows), dtype), row_offsets(np.array([len(row) for row in rows])))


@given(ragged_rows(), st.integers(0, 9))
def test_padded_rows_and_their_mask(case, fill):
    rows, selected = case
    ragged = make_ragged(rows)
    assert (len(ragged), ragged.sizes.tolist()) == (len(rows), [len(row) for row in rows])
    values, mask = ragged.padded(selected, fill)
    longest = max((len(rows[row]) for row in selected), default=0)
    assert values.shape == mask.shape == (len(selected), longest)
    assert (values.dtype, mask.dtype) == (np.int32, np.bool_)
    for padded, valid, row in zip(values.tolist(), mask.tolist(), selected, strict=True):
        padding = longest - len(rows[row])
        assert padded == rows[row] + [fill] * padding
        assert valid == [True] * len(rows[row]) + [False] * padding


def test_flat_values_keep_the_arrays_order():
    ragged = RaggedArray(np.arange(9), row_offsets(np.array([2, 0, 4, 3])))
    assert ragged.flat(np.array([3, 0])).tolist() == [0, 1, 6, 7, 8]
    assert ragged.flat(np.array([1])).tolist() == []
    assert ragged.flat(np.arange(4)).tolist() == list(range(9))


def test_offsets_exceed_32_bits():
    sizes = np.full(3, 2**31 - 1, dtype=np.int32)
    assert row_offsets(sizes).tolist() == [0, 2**31 - 1, 2**32 - 2, 3 * 2**31 - 3]


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16])
@pytest.mark.parametrize("rows", [[[1, 2, 3], [], [4], [5, 6]], [[]]])
def test_saved_ragged_array_is_reopened_as_a_memory_map(tmp_path, dtype, rows):
    make_ragged(rows, dtype).save(tmp_path, "x.ids")
    opened = RaggedArray.open(tmp_path, "x.ids")
    assert isinstance(opened.values, np.memmap)
    assert (opened.values.dtype, opened.values.tolist()) == (dtype, flatten(rows))
    assert (opened.offsets.dtype, opened.sizes.tolist()) == (np.int64, [len(row) for row in rows])
    values, _ = opened.padded(np.array([0]), 0)
    assert type(values) is np.ndarray, "a batch is no memory map"
    values[:] = 7
    assert opened.values.tolist() == flatten(rows), "changing a batch changed the stored array"


def test_folders_of_earlier_versions_are_opened(tmp_path, tokenizer):
    """They do not say how many examples were truncated, nor how scores were scaled: not at all."""
    dataset = dataset_of("stsb")
    new = tokenize(dataset, tokenizer, "t", 6, tmp_path / "new")
    about = json.loads((new.folder / "about.json").read_text())
    with store.staging_dir(tmp_path / "old" / new.key) as folder:
        for file in new.folder.iterdir():
            if file.name not in (store.MANIFEST, store.VERIFIED):
                shutil.copyfile(file, folder / file.name)
        kept = {name: about[name] for name in ("task", "splits", "pad_id")}
        (folder / "about.json").write_text(json.dumps(kept))
    old = tokenize(dataset, tokenizer, "t", 6, tmp_path / "old")
    assert old.truncation == new.truncation
    assert any(count["truncated"] for count in new.truncation.values())
    assert open_data(old.folder).truncation == {}
    assert old.task.training_range == old.task.score_range
    assert old.labelled_key == old.key == new.labelled_key


def test_truncated_texts_without_a_label_are_counted_apart(tmp_path, tokenizer):
    dataset = dataset_of("cola")
    long, count = " ".join(["w1"] * 40), len(dataset.splits["train"])
    data = tokenize(add_unlabelled(dataset, [long, "w1", long], None), tokenizer, "t", 32, tmp_path)
    assert data.truncation["unlabelled"] == {"truncated": 2, "examples": 3}
    assert data.truncation["train"] == {"truncated": 0, "examples": count}
    assert open_data(data.folder).truncation == data.truncation
