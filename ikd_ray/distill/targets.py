"""What the teacher says about every example: stored once, memory-mapped, shared by all students.

The teacher is a constant, so it runs once over the data. Its logits and [CLS] vectors are always stored; its
attention, which grows with the square of the length, is stored where it fits the budget and otherwise computed
for each batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ikd_ray.config import TargetConfig
from ikd_ray.data import store
from ikd_ray.data.batches import Batch, collate, evaluation_plan
from ikd_ray.data.ragged import Ragged, offsets_of
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.errors import UsageError

FORMAT = 1
BATCH = 64
SPARE = 0.9  # of the free disk that targets may take
ITEM = np.dtype(np.float16).itemsize


@dataclass
class TargetBatch:
    """The teacher's outputs for one batch, float32; layers are the teacher's, counted from 1."""

    logits: Tensor | None = None  # (B, labels)
    cls: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B, hidden)
    attention: dict[int, Tensor] = field(default_factory=dict)  # layer -> (B, heads, L, L), 0 at padding


def size_gb(data: TaskData, teacher: Encoder, layers: Collection[int]) -> float:
    """Gigabytes (10^9 bytes) that the attention of these layers takes when stored."""
    cells = sum(float(np.square(split.lengths, dtype=np.float64).sum()) for split in data.splits.values())
    return cells * teacher.config.num_attention_heads * len(layers) * ITEM / 1e9


def stores_attention(size: float, free: float, config: TargetConfig) -> bool:
    """Whether attention of `size` gigabytes is to be stored where `free` gigabytes are left.

    Raises:
        UsageError: it must be stored and there is no room.
    """
    room = SPARE * free
    if config.mode == "stored" and size > room:
        raise UsageError(
            f"targets.mode stored: {size:.1f} GB and {free:.1f} GB free; write auto, or make room"
        )
    return config.mode == "stored" or (config.mode == "auto" and size <= min(config.budget_gb, room))


def key_of(data: TaskData, teacher_key: str) -> str:
    return store.digest(FORMAT, data.key, teacher_key)


class Targets:
    """Reads stored targets by batch, running the teacher for the attention that is not stored."""

    def __init__(
        self,
        folder: Path,
        data: TaskData,
        teacher: Encoder,
        attention_stored: bool = True,
        device: torch.device | None = None,
    ) -> None:
        """Opens what `build_targets` left in `folder`; what is not `attention_stored` the teacher computes."""
        self.folder = folder
        self._attention_stored = attention_stored
        self.teacher = teacher.eval().requires_grad_(False).to(device or torch.device("cpu"))
        self._data = data
        self._open: dict[str, np.ndarray | Ragged] = {}

    def _array(self, part: str, split: str) -> np.ndarray:
        name = f"{part}/{split}"
        if name not in self._open:
            path = self.folder / part / f"{split}.npy"
            self._open[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        return self._open[name]

    def _ragged(self, part: str, split: str) -> Ragged:
        name = f"{part}/{split}/ragged"
        if name not in self._open:
            offsets = _attention_offsets(self._data, split, self.teacher.config.num_attention_heads)
            self._open[name] = Ragged(self._array(part, split), offsets)
        return self._open[name]

    def fetch(
        self,
        split: str,
        batch: Batch,
        *,
        logits: bool = True,
        cls: Collection[int] = (),
        attention: Collection[int] = (),
    ) -> TargetBatch:
        """The targets of a batch's rows; only what is asked for is read."""
        device = batch.ids.device
        out = TargetBatch()
        if logits:
            out.logits = torch.from_numpy(self._array("logits", split)[batch.rows]).to(device).float()
        for layer in cls:
            out.cls[layer] = (
                torch.from_numpy(self._array(f"cls-{layer}", split)[batch.rows]).to(device).float()
            )
        for layer in attention if self._attention_stored else ():
            flat = torch.from_numpy(self._ragged(f"attention-{layer}", split).gather(batch.rows)).to(device)
            out.attention[layer] = _padded(flat, batch.mask, self.teacher.config.num_attention_heads)
        if attention and not self._attention_stored:
            with torch.no_grad():
                online = self.teacher(batch, depth=max(attention), attend=attention, classify=False)
            out.attention = {
                layer: probabilities.float() for layer, probabilities in online.attention.items()
            }
        return out


def _pairs(mask: Tensor, heads: int) -> Tensor:
    """(B, L) -> (B, heads, L, L), true where both the query and the key are tokens."""
    return (mask[:, None, :, None] & mask[:, None, None, :]).expand(-1, heads, -1, -1)


def _padded(flat: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Flat values, example by example, head by head, row by row -> (B, heads, L, L), float32, 0 at padding."""
    size, length = mask.shape
    if flat.numel() == size * heads * length * length:
        return flat.view(size, heads, length, length).float()
    out = torch.zeros(size, heads, length, length, device=flat.device)
    out[_pairs(mask, heads)] = flat.float()
    return out


def _attention_offsets(data: TaskData, split: str, heads: int) -> np.ndarray:
    return offsets_of(np.square(data.splits[split].lengths) * heads)


def build_targets(
    folder: Path, data: TaskData, teacher: Encoder, layers: Collection[int], attention: bool
) -> Iterator[tuple[int, int]]:
    """Store the teacher's logits, and the [CLS] vectors and attention of some layers, under `folder`.

    Each part (the logits, one layer's vectors, one layer's attention) is a checksummed folder of its own:
    parts that exist are kept, the missing ones are written in one pass of the teacher. Safe when several
    processes ask at once. A generator: it builds while it is consumed.

    Args:
        layers: the teacher's, counted from 1.
        attention: whether to store attention too.

    Yields:
        Examples done and examples in all; nothing where all is there.
    """
    parts = ["logits", *(f"cls-{layer}" for layer in layers)]
    parts += [f"attention-{layer}" for layer in layers] if attention else []
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"), ExitStack() as stack:
        missing = [part for part in parts if not store.is_intact(folder / part)]
        for part in missing:
            store.discard(folder / part)
        aside = {part: stack.enter_context(store.aside(folder / part)) for part in missing}
        total = sum(map(len, data.splits.values())) if missing else 0
        done = 0
        for split in data.splits if missing else ():
            arrays = {part: _create(aside[part], part, split, data, teacher) for part in missing}
            for count in _fill(arrays, split, data, teacher):
                done += count
                yield done, total


def _create(folder: Path, part: str, split: str, data: TaskData, teacher: Encoder) -> np.ndarray:
    config, rows = teacher.config, len(data.splits[split])
    if part == "logits":
        shape = (rows, config.num_labels)
    elif part.startswith("cls"):
        shape = (rows, config.hidden_size)
    else:
        shape = (int(_attention_offsets(data, split, config.num_attention_heads)[-1]),)
    return np.lib.format.open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.float16, shape=shape)


@torch.inference_mode()
def _fill(arrays: dict[str, np.ndarray], split: str, data: TaskData, teacher: Encoder) -> Iterator[int]:
    """Run the teacher over a split, writing every part's rows; yields the number of examples of each step."""
    heads, tokens = teacher.config.num_attention_heads, data.splits[split]
    offsets = _attention_offsets(data, split, heads)
    attend = [int(part.split("-")[1]) for part in arrays if part.startswith("attention")]
    device = next(teacher.parameters()).device
    teacher.eval()
    for rows in evaluation_plan(tokens.lengths, BATCH):
        batch = collate(tokens, rows, data.pad_id).to(device)
        output = teacher(batch, attend=attend)
        for part, array in arrays.items():
            kind, _, layer = part.partition("-")
            if kind == "logits":
                array[rows] = output.logits.half().cpu().numpy()
            elif kind == "cls":
                array[rows] = output.cls[int(layer)].half().cpu().numpy()
            else:
                valid = output.attention[int(layer)][_pairs(batch.mask, heads)].half().cpu().numpy()
                Ragged(array, offsets).scatter(rows, valid)
        yield len(rows)
