"""Batches: which examples together, and the tensors they become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ikd_ray.data.tokens import TokenSplit

POOL = 50  # batches sorted by length at a time: wide enough to leave little padding, narrow enough to mix


@dataclass(frozen=True)
class Batch:
    """Tensors of B examples padded to their longest, L tokens."""

    rows: np.ndarray  # (B,), the examples' positions in the split
    ids: Tensor  # (B, L), int64
    segments: Tensor  # (B, L), int64
    mask: Tensor  # (B, L), bool, true for tokens
    labels: Tensor  # (B,)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        moved = (t.to(device, non_blocking=True) for t in (self.ids, self.segments, self.mask, self.labels))
        return Batch(self.rows, *moved)


def training_plan(lengths: np.ndarray, batch_size: int, *key: int | str) -> list[np.ndarray]:
    """Length-bucketed random batches of all rows: a pure function of its arguments.

    Rows are shuffled, sorted by length within pools of `POOL` batches, cut, and the batches shuffled. Within
    a pool batch sizes differ by one at most; none is above `batch_size` or, of several, below half of it.

    Args:
        lengths: (n,) tokens of each row.
        key: what the order depends on besides, e.g. seed, stage and epoch.
    """
    rng = np.random.default_rng(np.random.SeedSequence([_entropy(part) for part in key]))
    count = -(-len(lengths) // batch_size)
    batches = []
    for pool in np.array_split(rng.permutation(len(lengths)), -(-count // POOL)):
        ordered = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(ordered, -(-len(pool) // batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def _entropy(part: int | str) -> int:
    return part if isinstance(part, int) else int.from_bytes(part.encode(), "big")


def evaluation_plan(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """All rows in order of length, cut into batches."""
    ordered = np.argsort(lengths, kind="stable")
    return np.array_split(ordered, -(-len(lengths) // batch_size))


def collate(split: TokenSplit, rows: np.ndarray, pad_id: int) -> Batch:
    """The rows' tensors, padded to the longest of them."""
    lengths = split.ids.offsets[rows + 1] - split.ids.offsets[rows]
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = split.ids.gather(rows)
    segments = np.zeros(mask.shape, np.int64)
    segments[mask] = split.segments.gather(rows)
    labels = torch.from_numpy(split.labels[rows])
    return Batch(rows, torch.from_numpy(ids), torch.from_numpy(segments), torch.from_numpy(mask), labels)
