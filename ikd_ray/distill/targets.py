"""The teacher's outputs for every example: stored once, memory-mapped, shared by all students.

The teacher is a constant, so it runs once over the data. Its logits and [CLS] vectors are always stored. Its attention,
which grows with the square of the length, is stored where it fits the budget and otherwise computed for each batch.
Every array has its examples in order of length, so that building it appends to a file and reading a batch of similar
lengths takes a few dense copies.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ikd_ray.config import TargetConfig
from ikd_ray.data.batches import Batch, collate
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.encoder_output import EncoderOutput
from ikd_ray.errors import UsageError
from ikd_ray.storage import store
from ikd_ray.storage.arrays import BucketedArray, LengthOrder, ResumableArrays

FORMAT = 2
BATCH = 64
MAX_ATTENTION = 2**26
"""Attention probabilities of all layers that a step may hold: 256 MB as float32."""
UNFINISHED = ".unfinished"


def size_gb(data: TaskData, teacher: Encoder, layers: Collection[int], attention: bool = True) -> float:
    """Return the gigabytes (10^9 bytes) that the targets of some layers take when stored."""
    return _size(part_names(layers, attention), data, teacher) / 1e9


def stored_gb(folder: Path, layers: Collection[int]) -> float:
    """Return the gigabytes of some layers' targets that a folder has, those of an unfinished build included."""
    parts = part_names(layers, attention=True)
    return (_size_on_disk(folder, parts) + _size_on_disk(folder / UNFINISHED, parts)) / 1e9


def should_store_attention(size: float, free: float, config: TargetConfig, stored: float = 0.0) -> bool:
    """Return whether to store attention besides logits and [CLS] vectors.

    Args:
        size: gigabytes of all targets (`size_gb`).
        free: gigabytes that are free on the disk.
        config: the mode and the budget.
        stored: gigabytes of the targets that are stored already (`stored_gb`).

    Raises:
        UsageError: the configuration asks to store it and there is no space.
    """
    fits = size - stored <= store.MAX_DISK_SHARE * free
    if config.mode == "stored" and not fits:
        raise UsageError(
            f"targets.mode stored: {size - stored:.1f} GB to store and {free:.1f} GB free; "
            "write auto, or make room"
        )
    return config.mode == "stored" or (config.mode == "auto" and size <= config.budget_gb and fits)


def targets_key(data: TaskData, teacher_key: str) -> str:
    """Return the name of the folder for a teacher's targets.

    The code is not part of it: change `FORMAT` where it computes other targets.
    """
    return store.digest(FORMAT, data.key, teacher_key)


def part_names(layers: Collection[int], attention: bool) -> list[str]:
    """Return the names of the folders that hold the targets of some layers."""
    kinds = ("cls", "attention") if attention else ("cls",)
    return ["logits", *(f"{kind}-{layer}" for kind in kinds for layer in layers)]


class Targets:
    """Targets that `build_targets` stored, read batch by batch; the teacher computes the attention that is not stored.

    The teacher is frozen and moved to `device` (None: the CPU).
    """

    def __init__(
        self,
        folder: Path,
        data: TaskData,
        teacher: Encoder,
        attention_stored: bool = True,
        device: torch.device | None = None,
    ) -> None:
        self.folder = folder
        self._attention_stored = attention_stored
        self.teacher = teacher.eval().requires_grad_(False).to(device or torch.device("cpu"))
        self._data = data
        self._readers: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {}

    def fingerprint(self, layers: Collection[int]) -> str:
        """Return a digest of the stored targets of some layers and of the teacher's weights."""
        parts = part_names(layers, self._attention_stored)
        manifests = [(self.folder / part / store.MANIFEST).read_text(encoding="utf-8") for part in parts]
        return store.digest(self._teacher_key, parts, manifests)

    @cached_property
    def _teacher_key(self) -> str:
        return self.teacher.fingerprint()

    def _open(self, part: str, split: str) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function that reads a part's entries of some rows."""
        # As a plain array: numpy's class for memory maps takes its time over every access.
        values = np.asarray(np.load(self.folder / part / f"{split}.npy", mmap_mode="r", allow_pickle=False))
        order, heads = self._data.splits[split].order, self.teacher.attention_heads
        if part.startswith("attention"):
            return BucketedArray(values, order, lambda length: (heads, length, length)).read
        return lambda rows: values[order.positions[rows]]

    def read(
        self,
        split: str,
        rows: np.ndarray,
        *,
        logits: bool = True,
        cls: Collection[int] = (),
        attention: Collection[int] = (),
    ) -> EncoderOutput:
        """Read stored targets of some rows: float16, on the CPU, without attention that is not stored.

        It computes nothing with PyTorch, so that a background thread may call it.

        Args:
            split: name of the split.
            rows: (B,) positions in the split.
            logits: whether to read the logits.
            cls: layers whose [CLS] vectors to read.
            attention: layers whose attention to read.
        """

        def tensor(part: str) -> Tensor:
            if (part, split) not in self._readers:
                self._readers[part, split] = self._open(part, split)
            return torch.from_numpy(self._readers[part, split](rows))

        return EncoderOutput(
            tensor("logits") if logits else None,
            {layer: tensor(f"cls-{layer}") for layer in cls},
            {layer: tensor(f"attention-{layer}") for layer in (attention if self._attention_stored else ())},
        )

    def complete(self, target: EncoderOutput, batch: Batch, attention: Collection[int] = ()) -> EncoderOutput:
        """Return the result of `read` as float32 on the batch's device, with the attention that is not stored.

        The batch must have the token ids of the teacher's vocabulary.
        """
        device = batch.input_ids.device
        out = target.map(lambda tensor: tensor.to(device, non_blocking=True).float())
        missing = [layer for layer in attention if layer not in out.attention]
        with torch.no_grad():
            out.attention |= dict(self._compute_attention(batch, missing))
        return out

    def attention(self, split: str, batch: Batch, layers: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield layers and their attention as `fetch` returns it, but read or computed when it is asked for.

        Attention that is not stored comes from the lowest layer up.
        """
        if not self._attention_stored:
            yield from self._compute_attention(batch, layers)
            return
        for layer in layers:
            yield layer, self.fetch(split, batch, logits=False, attention=[layer]).attention[layer]

    def _compute_attention(self, batch: Batch, layers: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield layers and their attention, computed by the teacher, from the lowest layer up."""
        queries = batch.attention_mask[:, None, :, None]
        passes = self.teacher.layer_outputs(batch, max(layers, default=0), layers) if layers else ()
        for layer, _, attention in passes:
            if attention is not None:
                yield layer, attention.float() * queries

    def fetch(
        self,
        split: str,
        batch: Batch,
        *,
        logits: bool = True,
        cls: Collection[int] = (),
        attention: Collection[int] = (),
    ) -> EncoderOutput:
        """Return the targets of a batch, float32, on the batch's device: `read` and `complete` in one."""
        stored = self.read(split, batch.rows, logits=logits, cls=cls, attention=attention)
        return self.complete(stored, batch, attention)


def build_targets(
    folder: Path, data: TaskData, teacher: Encoder, layers: Collection[int], attention: bool
) -> Iterator[tuple[int, int]]:
    """Store the teacher's logits, and the [CLS] vectors and attention of some layers.

    Each part (the logits, one layer's vectors, one layer's attention) is a checksummed folder of its own. Existing
    parts are kept; the missing ones are written in one pass of the teacher. An interrupted build is continued unless
    more layers are asked for. Several processes may call this at once. Targets are built as the generator is consumed.

    Yields:
        The number of examples done, and of all examples; nothing where all parts exist.

    Raises:
        UsageError: the disk has no space for the missing parts. Nothing is written then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        missing = [part for part in part_names(layers, attention) if not store.is_intact(folder / part)]
        if not missing:
            return
        for part in missing:
            store.discard(folder / part)
        _check_room(folder, missing, data, teacher)
        unfinished = folder / UNFINISHED
        key = store.digest(FORMAT, BATCH, MAX_ATTENTION, data.key)
        with ResumableArrays(unfinished, key, np.float16, _shapes(missing, data, teacher)) as arrays:
            yield from _fill(arrays, missing, data, teacher)
        for part in missing:
            store.publish(unfinished / part, folder / part)
        shutil.rmtree(unfinished)


def _check_room(folder: Path, parts: list[str], data: TaskData, teacher: Encoder) -> None:
    need = _size(parts, data, teacher) - _size_on_disk(folder / UNFINISHED, parts)
    free = shutil.disk_usage(folder).free
    if need > store.MAX_DISK_SHARE * free:
        raise UsageError(
            f"{folder}: the teacher's targets need {need / 1e9:.3g} GB more and {free / 1e9:.3g} GB are free there; "
            "make room, or choose another --output"
        )


def _fill(
    arrays: ResumableArrays, parts: list[str], data: TaskData, teacher: Encoder
) -> Iterator[tuple[int, int]]:
    """Run the teacher over the remaining steps and append its outputs."""
    device = next(teacher.eval().parameters()).device
    orders = {name: split.order for name, split in data.splits.items()}
    steps = _steps(orders, len(teacher.layers) * teacher.attention_heads)
    total = sum(map(len, orders.values()))
    done = sum(len(rows) for _, rows in steps[: arrays.steps])
    for split, rows in steps[arrays.steps :]:
        batch = collate(data.splits[split], rows, data.pad_id).to(device)
        for part, values in _outputs(teacher, batch, parts, orders[split].lengths[rows]):
            arrays.append(f"{part}/{split}", values)
        arrays.end_step()
        done += len(rows)
        yield done, total


def _steps(orders: dict[str, LengthOrder], maps: int) -> list[tuple[str, np.ndarray]]:
    """Return the split and the rows of every step: rows in order of length, as many at once as memory allows.

    They do not depend on which parts are missing, so that a build can be continued after some parts are complete.
    `maps` is the number of attention maps that the teacher computes per example, over all layers and heads.
    """
    steps = []
    for split, order in orders.items():
        start = 0
        while start < len(order):
            rows = order.rows[start : start + BATCH]
            rows = rows[: max(1, MAX_ATTENTION // (maps * int(order.lengths[rows[-1]]) ** 2))]
            steps.append((split, rows))
            start += len(rows)
    return steps


@torch.inference_mode()
def _outputs(
    teacher: Encoder, batch: Batch, parts: list[str], lengths: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each part's name and its entries for a batch whose rows are in order of length."""
    layers = {part: int(part.partition("-")[2]) for part in parts if part != "logits"}
    attention_layers = [layer for part, layer in layers.items() if part.startswith("attention")]
    classify = "logits" in parts
    output = teacher(
        batch,
        depth=None if classify else max(layers.values()),
        attention_layers=attention_layers,
        classify=classify,
    )
    for part in parts:
        if part == "logits":
            tensor = output.logits.half()
        elif part.startswith("cls"):
            tensor = output.cls[layers[part]].half()
        else:
            tensor = _flat(output.attention[layers[part]], lengths)
        yield part, tensor.cpu().numpy()


def _flat(attention: Tensor, lengths: np.ndarray) -> Tensor:
    """Concatenate each example's own (heads, length, length) of (B, heads, L, L), as float16."""
    blocks = np.stack(np.unique(lengths, return_index=True, return_counts=True), axis=1).tolist()
    return torch.cat(
        [
            attention[first : first + count, :, :length, :length].half().flatten()
            for length, first, count in blocks
        ]
    )


def _shapes(parts: list[str], data: TaskData, teacher: Encoder) -> dict[str, tuple[int, ...]]:
    """Return the shape of each part's array for each split; attention, of no common shape, is flat."""
    config = teacher.config
    shapes: dict[str, tuple[int, ...]] = {}
    for name, split in data.splits.items():
        cells = teacher.attention_heads * int(np.square(split.lengths, dtype=np.int64).sum())
        by_kind = {
            "logits": (len(split), config.num_labels),
            "cls": (len(split), config.hidden_size),
            "attention": (cells,),
        }
        shapes |= {f"{part}/{name}": by_kind[part.partition("-")[0]] for part in parts}
    return shapes


def _size(parts: list[str], data: TaskData, teacher: Encoder) -> int:
    """Return the bytes that the parts take."""
    return np.dtype(np.float16).itemsize * sum(map(math.prod, _shapes(parts, data, teacher).values()))


def _size_on_disk(folder: Path, parts: list[str]) -> int:
    return sum(file.stat().st_size for part in parts for file in (folder / part).glob("*.npy"))
