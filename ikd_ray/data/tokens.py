"""Tokenized data sets: encoded once, stored as flat arrays, memory-mapped by every process that trains."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ikd_ray.data.dataset import Dataset, Split, is_labelled
from ikd_ray.data.encoding import encode_texts
from ikd_ray.data.splits import HOLDOUT
from ikd_ray.data.task_file import keep_task, kept_task
from ikd_ray.errors import UsageError
from ikd_ray.formatting import clean
from ikd_ray.storage import store
from ikd_ray.storage.arrays import LengthOrder
from ikd_ray.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
CHUNK = 2_000  # examples tokenized at a time: bounds the memory that Python's lists take


@dataclass(frozen=True)
class RaggedArray:
    """Rows of different sizes in one flat array: row r is `values[offsets[r]:offsets[r + 1]]`."""

    values: np.ndarray  # (total,), may be a memory map
    offsets: np.ndarray  # (n + 1,), int64

    @property
    def sizes(self) -> np.ndarray:
        """The (n,) sizes of the rows."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def flat(self, rows: np.ndarray) -> np.ndarray:
        """Return the values of the given rows as one flat array, in the order of the array."""
        selected = np.zeros(len(self), bool)
        selected[rows] = True
        return np.asarray(self.values)[np.repeat(selected, self.sizes)]

    def select(self, rows: np.ndarray) -> RaggedArray:
        """Return the rows at ascending positions as an array of their own."""
        return RaggedArray(self.flat(rows), row_offsets(self.sizes[rows]))

    def padded(self, rows: np.ndarray, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """Stack rows, padded with `fill` to the longest of them: (B, L) values, and a mask that is true within rows."""
        starts = self.offsets[rows]
        sizes = self.offsets[rows + 1] - starts
        columns = np.arange(sizes.max(initial=0))
        mask = columns < sizes[:, None]
        # An index beyond the row's end may lie beyond the array's; its value is overwritten by `fill`.
        values = np.asarray(self.values).take(starts[:, None] + columns, mode="clip")
        values[~mask] = fill
        return values, mask

    def save(self, folder: Path, name: str) -> None:
        """Write the array as `NAME.npy` and `NAME.offsets.npy`."""
        np.save(folder / f"{name}.npy", self.values)
        np.save(folder / f"{name}.offsets.npy", self.offsets)

    @classmethod
    def open(cls, folder: Path, name: str) -> RaggedArray:
        """Open what `save` wrote, with memory-mapped values."""
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return cls(values, np.load(folder / f"{name}.offsets.npy", allow_pickle=False))


@dataclass(frozen=True)
class TokenSplit:
    """Tokenized examples of one split. `input_ids` and `token_type_ids` have rows of equal sizes."""

    input_ids: RaggedArray  # int32
    token_type_ids: RaggedArray  # uint8: 0 for the first text, 1 for the second
    labels: np.ndarray  # (n,), int64 classes, or float32 scores as `Task.scale_scores` returns them

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """The (n,) numbers of tokens."""
        return self.input_ids.sizes

    def select(self, rows: np.ndarray) -> TokenSplit:
        """Return the examples at ascending positions."""
        return TokenSplit(self.input_ids.select(rows), self.token_type_ids.select(rows), self.labels[rows])

    @cached_property
    def labelled_rows(self) -> np.ndarray:
        """The (n,) positions of the examples that have a label."""
        return np.flatnonzero(is_labelled(self.labels))

    @cached_property
    def order(self) -> LengthOrder:
        """The order of arrays that have one entry per example."""
        return LengthOrder(self.lengths)


@dataclass(frozen=True)
class TaskData:
    """A task's tokenized splits."""

    task: Task
    splits: dict[str, TokenSplit]
    pad_id: int
    key: str
    """Identifies the content: the name of `folder`."""
    folder: Path
    labelled_key: str
    """Identifies the content without the examples that have no label; `key` where there are none."""
    truncation: dict[str, dict[str, int]] = field(default_factory=dict)
    """The number of `truncated` examples, and of all `examples`, by split, the texts without a label apart."""

    @property
    def train(self) -> TokenSplit:
        """The training split."""
        return self.splits["train"]

    @property
    def evaluation_splits(self) -> dict[str, TokenSplit]:
        """All splits but "train": "dev", for MNLI "dev_mismatched", and "holdout" where there is one."""
        return {name: split for name, split in self.splits.items() if name != "train"}

    @property
    def selection_split(self) -> str:
        """Name of the split that models are selected by: "holdout" where there is one, else "dev"."""
        return HOLDOUT if HOLDOUT in self.splits else "dev"


def row_offsets(sizes: np.ndarray) -> np.ndarray:
    """Return the (n + 1,) int64 offsets of rows with (n,) sizes."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def data_key(fingerprint: str, tokenizer_key: str, max_length: int) -> str:
    """Return the name of the folder that `tokenize` writes."""
    return store.digest(FORMAT, fingerprint, tokenizer_key, max_length)


def tokenize(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, tokenizer_key: str, max_length: int, root: Path
) -> TaskData:
    """Tokenize a data set into `root/<key>`, or open the result of an earlier call.

    Examples are truncated to `max_length` tokens, special tokens included. Tokenizers of equal keys must be equal.

    Raises:
        UsageError: an example has no token.
    """
    key, labelled_key = (
        data_key(content.fingerprint, tokenizer_key, max_length) for content in (dataset, dataset.labelled)
    )

    def write(folder: Path) -> None:
        truncation: dict[str, dict[str, int]] = {}
        for name, split in dataset.splits.items():
            input_ids, token_type_ids = _encode(name, split, tokenizer, max_length)
            truncation |= _count_truncated(name, split, tokenizer, input_ids.sizes, max_length)
            input_ids.save(folder, f"{name}.ids")
            token_type_ids.save(folder, f"{name}.segments")
            np.save(folder / f"{name}.labels.npy", split.labels)
        about = {
            "task": dataset.task.name,
            "splits": list(dataset.splits),
            "pad_id": tokenizer.pad_token_id,
            "truncation": truncation,
            "training_range": dataset.task.training_range,
            "labelled_key": labelled_key,
        }
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        keep_task(folder, dataset.task)

    store.get_or_build(root / key, write)
    data = open_data(root / key)
    if not data.truncation:  # of an earlier version
        truncation: dict[str, dict[str, int]] = {}
        for name, split in dataset.splits.items():
            truncation |= _count_truncated(name, split, tokenizer, data.splits[name].lengths, max_length)
        data = replace(data, truncation=truncation)
    return data


def open_data(folder: Path) -> TaskData:
    """Memory-map a folder that `tokenize` wrote."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    task, splits = kept_task(folder, about["task"]), {}
    # Earlier versions trained on scores as they are.
    task = replace(task, training_range=tuple(about.get("training_range", task.score_range)))
    for name in about["splits"]:
        labels = np.load(folder / f"{name}.labels.npy", allow_pickle=False)
        splits[name] = TokenSplit(
            RaggedArray.open(folder, f"{name}.ids"),
            RaggedArray.open(folder, f"{name}.segments"),
            task.scale_scores(labels) if task.is_regression else labels,
        )
    key, labelled_key = folder.name, about.get("labelled_key", folder.name)
    return TaskData(task, splits, about["pad_id"], key, folder, labelled_key, about.get("truncation", {}))


def _encode(
    name: str, split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[RaggedArray, RaggedArray]:
    """Return the input ids and token type ids of a split, each example of which must have a token."""
    sizes: list[int] = []
    input_ids, token_type_ids = [np.zeros(0, np.int32)], [np.zeros(0, np.uint8)]
    for start in range(0, len(split), CHUNK):
        chunk = slice(start, start + CHUNK)
        pairs = None if split.text_pair is None else split.text_pair[chunk]
        encoded = encode_texts(tokenizer, split.text[chunk], pairs, max_length)
        sizes += map(len, encoded.input_ids)
        input_ids.append(np.fromiter(chain.from_iterable(encoded.input_ids), np.int32))
        token_type_ids.append(np.fromiter(chain.from_iterable(encoded.token_type_ids), np.uint8))
    if 0 in sizes:  # attention over no token is nan
        row = sizes.index(0)
        number = 1 + (row if split.rows is None else int(split.rows[row]))
        source = "train" if name == HOLDOUT else name
        raise UsageError(
            f"{source if split.is_labelled[row] else 'unlabelled'} example {number}: the tokenizer returns no tokens "
            f"for {clean(ascii(split.text[row]), 60)}; remove the example, or give a --teacher whose tokenizer adds "
            "[CLS] and [SEP]"
        )
    offsets = row_offsets(np.array(sizes, np.int64))
    ids, types = (RaggedArray(np.concatenate(chunks), offsets) for chunks in (input_ids, token_type_ids))
    return ids, types


def _count_truncated(
    name: str, split: Split, tokenizer: PreTrainedTokenizerBase, sizes: np.ndarray, max_length: int
) -> dict[str, dict[str, int]]:
    """Return the `truncation` of a split, whose examples are tokenized to (n,) sizes."""
    is_truncated, full_length = np.zeros(len(split), bool), np.flatnonzero(sizes == max_length)
    for start in range(0, len(full_length), CHUNK):
        rows = full_length[start : start + CHUNK]
        chunk = split.select(rows)
        whole = tokenizer(chunk.text, chunk.text_pair, return_attention_mask=False, verbose=False)
        is_truncated[rows] = [len(ids) > max_length for ids in whole["input_ids"]]
    parts = {name: split.is_labelled, "unlabelled": ~split.is_labelled}
    return {
        part: {"truncated": int(is_truncated[rows].sum()), "examples": int(rows.sum())}
        for part, rows in parts.items()
        if rows.any()
    }
