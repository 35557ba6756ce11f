"""Batches: which examples together, and the tensors they become."""

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

AHEAD = 2  # batches prepared before they are asked for
POOL = 50  # batches sorted by length at a time: wide enough to leave little padding, narrow enough to mix


@dataclass(frozen=True)
class Batch:
    """Tensors of B examples padded to their longest, L tokens."""

    rows: np.ndarray  # (B,), the examples' positions in the split
    input_ids: Tensor  # (B, L), int64
    token_type_ids: Tensor  # (B, L), int64
    attention_mask: Tensor  # (B, L), bool, true for tokens
    labels: Tensor  # (B,)

    def __len__(self) -> int:
        return len(self.rows)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor put through a function."""
        return Batch(
            self.rows, *map(function, (self.input_ids, self.token_type_ids, self.attention_mask, self.labels))
        )

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def training_batches(lengths: np.ndarray, batch_size: int, *key: int | str) -> list[np.ndarray]:
    """Length-bucketed random batches of all rows: a pure function of its arguments.

    Rows are shuffled, sorted by length within pools of `POOL` batches, cut, and the batches shuffled. Within
    a pool batch sizes differ by one at most; none is above `batch_size` or, of several, below half of it.

    Args:
        lengths: (n,) tokens of each row.
        key: what the order depends on besides, e.g. seed, stage and epoch.
    """
    rng = np.random.default_rng(np.random.SeedSequence([_entropy(part) for part in key]))
    count = -(-len(lengths) // batch_size)
    batches: list[np.ndarray] = []
    for pool in np.array_split(rng.permutation(len(lengths)), -(-count // POOL)):
        ordered = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(ordered, -(-len(pool) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def _entropy(part: int | str) -> int:
    return part if isinstance(part, int) else int.from_bytes(part.encode(), "big")


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All rows in order of length, cut into batches."""
    ordered = np.argsort(lengths, kind="stable")
    return np.array_split(ordered, -(-len(lengths) // batch_size))


def collate(split: TokenSplit, rows: np.ndarray, pad_id: int) -> Batch:
    """The rows' tensors, padded to the longest of them."""
    ids, mask = split.input_ids.padded(rows, pad_id)
    segments, _ = split.token_type_ids.padded(rows, 0)
    return Batch(
        rows,
        torch.from_numpy(ids).long(),
        torch.from_numpy(segments).long(),
        torch.from_numpy(mask),
        torch.from_numpy(split.labels[rows]),
    )


Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """`map(make, items)`, of which a thread makes the next `AHEAD` while the caller works on one."""
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(thread.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
