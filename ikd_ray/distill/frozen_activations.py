"""Stored outputs of a student's frozen lower layers, computed once a stage instead of in every epoch.

Where a stage trains layer k and those above, the embeddings and the layers below k are a constant function of the
input (they drop nothing out), so their output is stored and training starts from it.
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
from ikd_ray.data.batches import collate
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.epoch_cache import DISK_ERRORS
from ikd_ray.distill.memory import StepMemory
from ikd_ray.storage import store
from ikd_ray.storage.arrays import BucketedArray, LengthOrder
from ikd_ray.storage.eviction import touch

ACTIVATIONS_FILE = "prefix.safetensors"


class FrozenActivations:
    """Outputs of a student's layer `depth` for every example of every split; nothing at depth 0.

    Args:
        student: the student, which trains meanwhile.
        config: gigabytes that the outputs may take in memory and in a temporary file.
        rows: (n,) training examples in use, ascending; None: all. Nothing is stored for others.
        memory: bound of the memory of a batch that is computed; None: the default.
    """

    def __init__(
        self,
        student: Encoder,
        data: TaskData,
        config: PrefixConfig,
        rows: np.ndarray | None = None,
        memory: StepMemory | None = None,
    ) -> None:
        self.depth = 0
        self.out_of_space = False
        """True if outputs that the budgets allow could not be stored at any time."""
        self._student, self._data, self._config = student, data, config
        self._memory = memory or StepMemory()
        self._arrays: dict[str, BucketedArray] = {}
        self._orders = {name: split.order for name, split in data.splits.items()}
        if rows is not None and len(rows) < len(data.train):
            self._orders["train"] = LengthOrder(data.train.lengths, rows)

    def fits(self, depth: int) -> bool:
        """Return whether the budgets allow to store the output of layer `depth`."""
        return depth > 0 and self._within_budget(self._layout(depth)[1])

    def advance(self, depth: int, cache_dir: Path | None = None) -> None:
        """Store the output of layer `depth`, computed from the output that is stored so far.

        Layers up to the current depth must not have changed since they were stored. Where the outputs fit neither
        memory nor disk nothing is stored, and the depth becomes 0.

        Args:
            depth: number of frozen layers; 0 drops what is stored.
            cache_dir: folder from which exactly these outputs are read, or to which they are written for others.
        """
        if depth == self.depth:
            return
        start_layer, source = self.depth, self._arrays
        if not 0 < start_layer < depth:
            start_layer, source, self._arrays = 0, {}, {}
        # Entries keep their shape from layer to layer, so outputs are updated in place; but of the last layer only
        # the [CLS] vectors are stored.
        in_place = bool(source) and not self._is_cls_only(depth)
        target = source if in_place else self._allocate(depth)
        self.depth = depth if target else 0
        if not (target and cache_dir and _read(cache_dir, target)):
            for split in target:
                self._fill(split, target[split], source.get(split), start_layer)
            if target and cache_dir:
                with suppress(*DISK_ERRORS):  # others compute them themselves
                    store.get_or_build(cache_dir, lambda folder: _write(folder, target))
        self._arrays = target

    def read(self, split: str, rows: np.ndarray) -> torch.Tensor | None:
        """Return the stored outputs of some rows of a split, None at depth 0.

        They are (B, L, hidden), 0 at padding; at the depth of all layers the [CLS] vectors, (B, hidden).
        """
        return torch.from_numpy(self._arrays[split].read(rows)) if self._arrays else None

    def _is_cls_only(self, depth: int) -> bool:
        """Return whether only the [CLS] vectors of layer `depth` are needed."""
        return depth == len(self._student.layers) and self._student.reads_cls_only

    def _within_budget(self, gigabytes: float) -> bool:
        return gigabytes <= max(self._config.memory_gb, self._config.disk_gb)

    def _layout(self, depth: int) -> tuple[dict[str, BucketedArray], float]:
        """Return each split's array without its values, and the gigabytes of all values."""
        hidden = self._student.config.hidden_size
        shape = (lambda length: (hidden,)) if self._is_cls_only(depth) else (lambda length: (length, hidden))
        arrays = {name: BucketedArray(None, order, shape) for name, order in self._orders.items()}
        return arrays, sum(array.size for array in arrays.values()) * self._dtype.itemsize / 1e9

    @property
    def _dtype(self) -> np.dtype:
        return torch.empty(0, dtype=next(self._student.parameters()).dtype).numpy().dtype

    def _allocate(self, depth: int) -> dict[str, BucketedArray]:
        """Return each split's array with room for its values; nothing where there is no room."""
        if depth == 0:
            return {}
        arrays, gigabytes = self._layout(depth)
        if not self._within_budget(gigabytes):
            return {}
        in_memory = gigabytes <= self._config.memory_gb
        free = store.MAX_DISK_SHARE * shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        try:
            if not in_memory and gigabytes > free:
                raise OSError(f"{gigabytes:.1f} GB where {free:.1f} GB are free")
            for array in arrays.values():
                array.values = (np.empty if in_memory else _empty_on_disk)(array.size, self._dtype)
        except OSError:  # also where another process took the space meanwhile
            self.out_of_space = True
            return {}
        return arrays

    @torch.no_grad()
    def _fill(
        self, split: str, target: BucketedArray, source: BucketedArray | None, start_layer: int
    ) -> None:
        student, tokens = self._student.eval(), self._data.splits[split]
        device = next(student.parameters()).device
        used = self._orders[split].rows
        for batch_rows in self._memory.evaluation_batches(tokens.lengths[used], student.config):
            rows = used[batch_rows]
            batch = collate(tokens, rows, self._data.pad_id).to(device)
            start = torch.from_numpy(source.read(rows)).to(device) if source else None
            if self._is_cls_only(self.depth):
                output = student(batch, classify=False, start=start, start_layer=start_layer).cls[self.depth]
            else:
                output = student.hidden(batch, self.depth, start, start_layer)
            target.write(rows, output.cpu().numpy())


def _read(folder: Path, arrays: dict[str, BucketedArray]) -> bool:
    """Fill the arrays from a folder; return whether it is there and intact."""
    if not store.is_intact(folder):
        return False
    try:
        values = load_file(folder / ACTIVATIONS_FILE)
    except DISK_ERRORS:
        return False
    touch(folder)
    for split, array in arrays.items():
        assert array.values is not None
        array.values[:] = values[split]
    return True


def _write(folder: Path, arrays: dict[str, BucketedArray]) -> None:
    save_file({split: np.asarray(array.values) for split, array in arrays.items()}, folder / ACTIVATIONS_FILE)


def _empty_on_disk(size: int, dtype: np.dtype) -> np.ndarray:
    """Return a memory map of a file without a name, which disappears with the process."""
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):  # else a disk that fills up would kill the process
            os.posix_fallocate(file.fileno(), 0, max(1, size * dtype.itemsize))
        return np.memmap(file, dtype, "w+", shape=(size,))
