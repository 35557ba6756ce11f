"""What the frozen bottom of a student makes of every example: computed once a stage instead of every epoch.

Where a stage trains layer k and what lies above, embeddings and layers below it are a constant function of the input
(they drop nothing out), so their output is stored and training starts from it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from ikd_ray.config import PrefixConfig
from ikd_ray.data.batches import collate, evaluation_batches
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch_cache import DISK_ERRORS
from ikd_ray.storage import store
from ikd_ray.storage.arrays import BucketedArray, LengthOrder
from ikd_ray.storage.eviction import touch

BATCH = 64
KEPT = "prefix.safetensors"


class FrozenActivations:
    """Outputs of a student's lowest `depth` layers for every example of every split; none at depth 0."""

    def __init__(
        self, student: Encoder, data: TaskData, config: PrefixConfig, rows: np.ndarray | None = None
    ) -> None:
        """
        Args:
            rows: those of the training set that are in use, ascending; of others nothing is held. None: all.
        """
        self.depth = 0
        self.failed = False  # whether there ever was no room for what `fits`
        self._student, self._data, self._config = student, data, config
        self._stored: dict[str, BucketedArray] = {}
        self._orders = {name: split.order for name, split in data.splits.items()}
        if rows is not None and len(rows) < len(data.train):
            self._orders["train"] = LengthOrder(data.train.lengths, rows)
        self._type = torch.empty(0, dtype=next(student.parameters()).dtype).numpy().dtype

    def raise_to(self, depth: int, kept: Path | None = None) -> None:
        """Hold the output of layer `depth` from now on.

        Layers up to the depth held so far must not have changed since; the output is computed from what is held.
        Where it fits neither memory nor disk the depth becomes 0, and nothing is held.

        Args:
            kept: the folder where this very output is found, or else left for others.
        """
        if depth == self.depth:
            return
        below, source = self.depth, self._stored
        if not 0 < below < depth:
            below, source, self._stored = 0, {}, {}
        # Entries keep their shape from layer to layer, so they can take each other's place; but of the last layer
        # only [CLS] is of use.
        same_shape = bool(source) and depth < len(self._student.layers)
        target = source if same_shape else self._make_room(depth)
        self.depth = depth if target else 0
        if not (target and kept and _read(kept, target)):
            for split in target:
                self._fill(split, target[split], source.get(split), below)
            if target and kept:
                with suppress(*DISK_ERRORS):  # others compute it themselves
                    store.get_or_build(kept, lambda folder: _write(folder, target))
        self._stored = target

    def read(self, split: str, rows: np.ndarray) -> torch.Tensor | None:
        """(B, L, hidden) of these rows, 0 at padding; at the depth of all layers their [CLS] vectors, (B, hidden)."""
        return torch.from_numpy(self._stored[split].read(rows)) if self._stored else None

    def fits(self, depth: int) -> bool:
        """Whether the output of layer `depth` is to be held, going by the budgets alone."""
        return depth > 0 and self._within_budget(self._layout(depth)[1])

    def _within_budget(self, gigabytes: float) -> bool:
        return gigabytes <= max(self._config.memory_gb, self._config.disk_gb)

    def _layout(self, depth: int) -> tuple[dict[str, BucketedArray], float]:
        """How the output of layer `depth` is laid out for each split, and its gigabytes."""
        whole, hidden = depth == len(self._student.layers), self._student.config.hidden_size
        shape = (lambda length: (hidden,)) if whole else (lambda length: (length, hidden))
        arrays = {name: BucketedArray(None, order, shape) for name, order in self._orders.items()}
        return arrays, sum(array.size for array in arrays.values()) * self._type.itemsize / 1e9

    def _make_room(self, depth: int) -> dict[str, BucketedArray]:
        """Notes a failure where what is to be held finds no room."""
        if depth == 0:
            return {}
        room, gigabytes = self._layout(depth)
        if not self._within_budget(gigabytes):
            return {}
        in_memory = gigabytes <= self._config.memory_gb
        free = store.MAX_DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        if not in_memory and gigabytes > free:
            self.failed = True
            return {}
        for array in room.values():
            try:
                array.values = (np.empty if in_memory else _on_disk)(array.size, self._type)
            except OSError:  # somebody else took the room meanwhile
                self.failed = True
                return {}
        return room

    @torch.no_grad()
    def _fill(self, split: str, target: BucketedArray, source: BucketedArray | None, below: int) -> None:
        student, tokens = self._student.eval(), self._data.splits[split]
        device = next(student.parameters()).device
        used = self._orders[split].rows
        for places in evaluation_batches(tokens.lengths[used], BATCH):
            rows = used[places]
            batch = collate(tokens, rows, self._data.pad_id).to(device)
            start = torch.from_numpy(source.read(rows)).to(device) if source else None
            if self.depth == len(student.layers):
                output = student(batch, classify=False, start=start, below=below).cls[self.depth]
            else:
                output = student.hidden(batch, self.depth, start, below)
            target.write(rows, output.cpu().numpy())


def _read(kept: Path, arrays: dict[str, BucketedArray]) -> bool:
    """Fill the arrays with what is kept, if it is there and intact."""
    if not store.is_intact(kept):
        return False
    try:
        values = load_file(kept / KEPT)
    except DISK_ERRORS:
        return False
    touch(kept)
    for split, array in arrays.items():
        assert array.values is not None
        array.values[:] = values[split]
    return True


def _write(folder: Path, arrays: dict[str, BucketedArray]) -> None:
    save_file({split: np.asarray(array.values) for split, array in arrays.items()}, folder / KEPT)


def _on_disk(size: int, kind: np.dtype) -> np.ndarray:
    """A file without a name: it goes when the process goes, however that ends."""
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # else a disk that fills up would kill the process
            os.posix_fallocate(file.fileno(), 0, max(1, size * kind.itemsize))
        return np.memmap(file, kind, "w+", shape=(size,))
