"""Batches of token ids: their composition, their tensors, and their preparation in a background thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ikd_ray.data.tokens import TokenSplit

PREFETCH = 2  # batches prepared ahead
POOL = 50  # batches that are sorted by length together: enough for little padding, few enough to mix examples


@dataclass(frozen=True)
class Batch:
    """Tensors of B examples, padded to the L tokens of the longest."""

    rows: np.ndarray  # (B,), positions in the split
    input_ids: Tensor  # (B, L), int64
    token_type_ids: Tensor  # (B, L), int64
    attention_mask: Tensor  # (B, L), bool, true for tokens
    labels: Tensor  # (B,)

    def __len__(self) -> int:
        return len(self.rows)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to every tensor."""
        tensors = (self.input_ids, self.token_type_ids, self.attention_mask, self.labels)
        return Batch(self.rows, *map(function, tensors))

    def to(self, device: torch.device) -> Batch:
        """Copy every tensor to a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def training_batches(lengths: np.ndarray, batch_size: int, *key: int | str) -> list[np.ndarray]:
    """Return length-bucketed random batches that cover all rows; a pure function of its arguments.

    Rows are shuffled, sorted by length within pools of `POOL` batches, and cut into batches, which are shuffled.
    Batch sizes within a pool differ by at most one. No batch is larger than `batch_size` or, where there are
    several, smaller than half of it.

    Args:
        lengths: (n,) tokens of each row.
        batch_size: largest number of rows per batch.
        key: seeds the order, e.g. the trial's seed, the stage's name and the epoch.
    """
    entropy = [part if isinstance(part, int) else int.from_bytes(part.encode(), "big") for part in key]
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    count = -(-len(lengths) // batch_size)
    batches: list[np.ndarray] = []
    for pool in np.array_split(rng.permutation(len(lengths)), -(-count // POOL)):
        ordered = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(ordered, -(-len(pool) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return batches that cover all rows, sorted by length."""
    ordered = np.argsort(lengths, kind="stable")
    return np.array_split(ordered, -(-len(lengths) // batch_size))


def collate(split: TokenSplit, rows: np.ndarray, pad_id: int) -> Batch:
    """Make a batch of the examples at `rows`."""
    input_ids, attention_mask = split.input_ids.padded(rows, pad_id)
    token_type_ids, _ = split.token_type_ids.padded(rows, 0)
    return Batch(
        rows,
        torch.from_numpy(input_ids).long(),
        torch.from_numpy(token_type_ids).long(),
        torch.from_numpy(attention_mask),
        torch.from_numpy(split.labels[rows]),
    )


Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item; a thread computes the next `PREFETCH` results ahead of the caller."""
    with ThreadPoolExecutor(1) as thread:
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(thread.submit(function, item))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
