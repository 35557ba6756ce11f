from __future__ import annotations

import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from ikd_ray.data import tokens
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.task_file import load_task
from ikd_ray.data.tokens import RaggedArray, TaskData, open_data, row_offsets, tokenize
from ikd_ray.tasks import get_task

WORDS = [f"w{i}" for i in range(40)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ed", "."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return BertTokenizerFast(str(path))


def sentences(rng: np.random.Generator, count: int, longest: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def make_task_dataset(task_name: str, count: int = 25, seed: int = 0) -> Dataset:
    task, rng = get_task(task_name), np.random.default_rng(seed)
    splits = {}
    for names in task.splits:
        labels = rng.random(count).astype(np.float32) if task.is_regression else rng.integers(0, 2, count)
        second = sentences(rng, count, 9) if task.is_pair else None
        splits[names.name] = Split([*sentences(rng, count - 1, 12), "w1s w2ed. zzz"], second, labels)
    return Dataset(task, splits, "folder", "made up")


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
    splits = make_task_dataset("cola").splits
    dataset = Dataset(task, splits, "folder", "made up")
    kept = tokenize(dataset, tokenizer, "t", 12, tmp_path / "tokens").folder
    path.unlink()
    code = "import sys; from pathlib import Path; from ikd_ray.data.tokens import open_data\n"
    code += "task = open_data(Path(sys.argv[1])).task; print(task.name, task.labels, task.metric)"
    done = subprocess.run([sys.executable, "-c", code, kept], capture_output=True, text=True, check=True)
    assert done.stdout == f"{task.name} {task.labels} {task.metric}\n"


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "mnli"])
@pytest.mark.parametrize("max_length", [8, 12, 128])
def test_rows_equal_the_tokenizers_output(tmp_path, tokenizer, task, max_length):
    dataset = make_task_dataset(task)
    data = tokenize(dataset, tokenizer, "t", max_length, tmp_path)
    assert_tokenized(data, dataset, tokenizer, max_length)
    lengths = data.train.lengths
    assert len(set(lengths.tolist())) > 1
    assert (lengths == max_length).any() == (max_length < 20), "nothing was cut, or all was short"
    segments = {int(value) for value in data.train.token_type_ids.values}
    assert segments == ({0, 1} if dataset.task.is_pair else {0})


def test_chunk_size_does_not_change_the_tokens(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "CHUNK", 7)
    dataset = make_task_dataset("mrpc")
    assert_tokenized(tokenize(dataset, tokenizer, "t", 16, tmp_path), dataset, tokenizer, 16)


def test_stored_tokens_are_reopened(tmp_path, tokenizer, monkeypatch):
    dataset = make_task_dataset("mnli")
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
    keys = {
        tokenize(make_task_dataset("cola"), tokenizer, "t", 16, tmp_path).key,
        tokenize(make_task_dataset("cola"), tokenizer, "t", 17, tmp_path).key,
        tokenize(make_task_dataset("cola"), tokenizer, "u", 16, tmp_path).key,
        tokenize(make_task_dataset("cola", seed=1), tokenizer, "t", 16, tmp_path).key,
        tokenize(make_task_dataset("sst2"), tokenizer, "t", 16, tmp_path).key,
    }
    assert len(keys) == 5
    assert tokenize(make_task_dataset("cola"), tokenizer, "t", 16, tmp_path).key in keys


def test_damaged_tokens_are_rebuilt(tmp_path, tokenizer):
    dataset = make_task_dataset("cola")
    data = tokenize(dataset, tokenizer, "t", 16, tmp_path)
    path = data.folder / "train.ids.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert_tokenized(tokenize(dataset, tokenizer, "t", 16, tmp_path), dataset, tokenizer, 16)


@pytest.mark.parametrize(("task", "names"), [("cola", ["dev"]), ("mnli", ["dev", "dev_mismatched"])])
def test_evaluation_splits(tmp_path, tokenizer, task, names):
    data = tokenize(make_task_dataset(task), tokenizer, "t", 16, tmp_path)
    assert list(data.evaluation_splits) == names
    assert data.train is data.splits["train"]


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
