"""Examples as token ids: encoded once, stored flat, memory-mapped by every process that trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.splits import HOLDOUT
from ikd_ray.data.task_file import keep_task, kept_task
from ikd_ray.storage import store
from ikd_ray.storage.arrays import LengthOrder, RaggedArray, RaggedArrayWriter
from ikd_ray.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
CHUNK = 2_000  # examples tokenized at a time: bounds memory


@dataclass(frozen=True)
class TokenSplit:
    """One split. Row r's ids and segment ids have equal length."""

    input_ids: RaggedArray  # int32
    token_type_ids: RaggedArray  # uint8: 0 for the first text, 1 for the second
    labels: np.ndarray  # (n,), int64 classes or float32 scores

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return self.input_ids.sizes

    @cached_property
    def order(self) -> LengthOrder:
        """How arrays of an entry an example are laid out."""
        return LengthOrder(self.lengths)


@dataclass(frozen=True)
class TaskData:
    """A task's tokenized splits, and what identifies them."""

    task: Task
    splits: dict[str, TokenSplit]
    pad_id: int
    key: str
    folder: Path

    @property
    def train(self) -> TokenSplit:
        return self.splits["train"]

    @property
    def evaluation_splits(self) -> dict[str, TokenSplit]:
        """Every split but the training one: `dev`, for MNLI `dev_mismatched`, and `holdout` where there is one."""
        return {name: split for name, split in self.splits.items() if name != "train"}

    @property
    def selection_split(self) -> str:
        """The split that models are chosen by: the held-out part of the training set where there is one, else dev."""
        return HOLDOUT if HOLDOUT in self.splits else "dev"


def _chunks(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    for start in range(0, len(split), CHUNK):
        first = split.text[start : start + CHUNK]
        second = split.text_pair[start : start + CHUNK] if split.text_pair is not None else None
        coded = tokenizer(
            first,
            second,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        yield coded["input_ids"], coded["token_type_ids"]


def _encode(
    split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int, folder: Path, name: str
) -> None:
    """Tokenize a split into files of `folder`; memory holds one chunk at a time."""
    with (
        closing(RaggedArrayWriter(folder, f"{name}.ids", np.int32)) as ids,
        closing(RaggedArrayWriter(folder, f"{name}.segments", np.uint8)) as segments,
    ):
        for chunk_ids, chunk_segments in _chunks(split, tokenizer, max_length):
            ids.append(chunk_ids)
            segments.append(chunk_segments)
    np.save(folder / f"{name}.labels.npy", split.labels)


def data_key(fingerprint: str, tokenizer_key: str, max_length: int) -> str:
    """Names the folder that `tokenize` leaves."""
    return store.digest(FORMAT, fingerprint, tokenizer_key, max_length)


def tokenize(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, tokenizer_key: str, max_length: int, root: Path
) -> TaskData:
    """Tokenize a data set into `root/<key>`, or open what an earlier run left there.

    Args:
        tokenizer_key: identifies the tokenizer: equal keys must mean equal output.
        max_length: tokens kept of an example, special ones included.
    """
    key = data_key(dataset.fingerprint, tokenizer_key, max_length)

    def write(folder: Path) -> None:
        for name, split in dataset.splits.items():
            _encode(split, tokenizer, max_length, folder, name)
        about = {"task": dataset.task.name, "splits": list(dataset.splits), "pad_id": tokenizer.pad_token_id}
        (folder / "about.json").write_text(json.dumps(about))
        keep_task(folder, dataset.task)

    store.get_or_build(root / key, write)
    return open_data(root / key)


def open_data(folder: Path) -> TaskData:
    """Memory-map what `tokenize` stored."""
    about = json.loads((folder / "about.json").read_text())
    splits = {
        name: TokenSplit(
            RaggedArray.open(folder, f"{name}.ids"),
            RaggedArray.open(folder, f"{name}.segments"),
            np.load(folder / f"{name}.labels.npy", allow_pickle=False),
        )
        for name in about["splits"]
    }
    return TaskData(kept_task(folder, about["task"]), splits, about["pad_id"], folder.name, folder)
