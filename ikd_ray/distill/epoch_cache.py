"""Cache of trained epochs: no two trials train the same epoch, and a resumed trial goes on where it stopped.

FOLDER/KEY/EPOCH/     state after one epoch of a stage: metrics, trained weights, optimizer
FOLDER/KEY/cls-EPOCH/ output of the whole encoder after that epoch, where it is frozen from there on
FOLDER/.locks/KEY     held by the process that trains the stage
FOLDER/.in_use/, .going/, .housekeeping.lock: see `ikd_ray.storage.eviction`

KEY comes from `ikd_ray.distill.cache_keys`. Where nodes share no folder, epochs are copied through a `SharedStorage`,
and locks hold within a node: two nodes may train the same epoch, which costs time only.
"""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ikd_ray.storage import store
from ikd_ray.storage.eviction import LOCKS, CacheEviction, touch
from ikd_ray.storage.remote import SharedStorage

EPOCH_FILE, WEIGHTS, OPTIMIZER = "epoch.json", "weights.safetensors", "optimizer.safetensors"
STAGES = "stages"
"""Folder of all stages in the cache that sweeps share."""

PATIENCE = 15.0
"""Seconds after which a trial looks again for an epoch that another node trains."""
DISK_ERRORS = (OSError, SafetensorError)
"""Errors of a disk that is full or broken; safetensors has one of its own."""


class LostCheckpointError(RuntimeError):
    """A saved epoch that was found earlier can no longer be read."""


@dataclass(frozen=True)
class CachedEpoch:
    """State of a stage after one of its epochs. The tensors stay on disk until they are loaded.

    Loading them raises `LostCheckpointError` where they cannot be read.
    """

    folder: Path
    metrics: dict[str, float]
    trial: str
    """Name of the trial that trained it."""
    own: bool
    """True if the asking trial itself trained it, before it was interrupted."""

    @property
    def reused_from(self) -> str:
        """Name of the other trial that trained it; empty where it is the asking trial's own."""
        return "" if self.own else self.trial or "a trial without a name"

    def weights(self) -> dict[str, Tensor]:
        """Load the parameters that the stage trains, by name."""
        return self._load(WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        """Load the optimizer's state (`StageOptimizer.state`)."""
        return self._load(OPTIMIZER)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except DISK_ERRORS as error:
            raise LostCheckpointError(f"{self.folder / name}: {error}") from None


@dataclass(frozen=True)
class PendingEpoch:
    """An epoch that another process is training."""

    folder: Path | None
    """The folder that it will be saved in; None where none of its epochs is of use: wait for the end of the stage."""
    lock: Path
    node: str = ""
    """The node where folder and lock can be seen; empty: every node."""
    since: float = 0.0
    """When the wait began, in seconds since 1970."""

    def ready(self) -> bool:
        """Return whether waiting is over: the epoch is saved, or no process trains it any more.

        On a node that cannot see this, waiting is over after `PATIENCE` seconds.
        """
        if self.node not in ("", platform.node()):
            return time.time() - self.since > PATIENCE
        if self.folder and store.is_intact(self.folder):
            return True
        try:
            with FileLock(self.lock, blocking=False):
                return True
        except Timeout:
            return False


class EpochCache:
    """The saved epochs of all stages below a folder, as one trial uses them.

    Args:
        folder: every process that shares epochs sees it under this path, unless they share an `output`.
        disk_gb: above so many gigabytes the least recently used epochs are removed.
        trial: name under which other trials report that they reuse this one's epochs.
        owner: identifier of the trial, unique over all sweeps; None: a new one.
        output: copies epochs between nodes that do not share `folder`, which lies within the output's folder.
    """

    def __init__(
        self,
        folder: Path,
        disk_gb: float,
        trial: str = "",
        owner: str | None = None,
        output: SharedStorage | None = None,
    ) -> None:
        self.folder, self.trial, self.owner = folder, trial, owner or uuid.uuid4().hex
        self.eviction = CacheEviction(folder, disk_gb)
        self.output = output or SharedStorage(os.fspath(folder))
        self.unreadable: set[Path] = set()
        """Epochs whose checksums are right but that could not be loaded: treated as damaged."""

    def lease(self) -> AbstractContextManager[None]:
        """Return a context within which no stage that `stage_cache` was asked for is evicted."""
        return self.eviction.lease()

    def sibling_dir(self, key: str, name: str) -> Path:
        """Return a folder beside a stage's epochs for other results that follow from them; evicted as they are."""
        return self.folder / key / name

    def stage_cache(self, key: str, about: Mapping[str, Any]) -> StageCache:
        """Return the epochs of the stage with a `cache_keys.stage_key`; `about` describes it to people."""
        self.eviction.pin(key)
        return StageCache(self, key, about)

    def fetch_local(self, found: CachedEpoch | PendingEpoch | None) -> CachedEpoch | PendingEpoch | None:
        """Return what another worker found with this node's path, and copy the epoch here where it is missing."""
        if not isinstance(found, CachedEpoch):
            return found
        folder = self.folder / found.folder.parent.name / found.folder.name
        if not folder.exists():
            with suppress(OSError):  # then loading it raises LostCheckpointError
                self.output.download(folder)
        return replace(found, folder=folder)


class StageCache:
    """The saved epochs of one stage. A context manager that releases the claim on the stage at its end."""

    def __init__(self, cache: EpochCache, key: str, about: Mapping[str, Any]) -> None:
        self._cache, self._folder, self._about = cache, cache.folder / key, about
        self._lock = FileLock(cache.folder / LOCKS / key, blocking=False)
        self._abandoned = False
        self.damaged: list[Path] = []
        """Folders that `find` came across and that hold no intact epoch."""

    @property
    def claimed(self) -> bool:
        """True if this process is the one that trains the stage."""
        return self._lock.is_locked

    def __enter__(self) -> StageCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def find(self, epoch: int) -> CachedEpoch | PendingEpoch | None:
        """Return the saved epoch, or that another process trains it; None: this process has to train it.

        With None this process has claimed the stage, unless it abandoned it before.

        Raises:
            OSError: the cache cannot be read, or the stage not be claimed.
        """
        cached, folder = self._load(epoch), self._folder / str(epoch)
        if cached is None and not self.claimed and not self._abandoned:
            try:
                self._lock.acquire()
            except Timeout:
                node = platform.node() if self._cache.output.uri else ""
                awaited = None if folder in self._cache.unreadable else folder
                return PendingEpoch(awaited, Path(self._lock.lock_file), node, time.time())
            cached = self._load(epoch)  # saved by another process just before the claim
        if cached is None and folder.exists():
            self.damaged.append(folder)
        return cached

    def _load(self, epoch: int) -> CachedEpoch | None:
        folder = self._folder / str(epoch)
        if folder in self._cache.unreadable:
            return None
        if not store.is_intact(folder):
            if not self._cache.output.download(folder):
                return None
            self._cache.eviction.entry_saved(folder)
        try:
            record = json.loads((folder / EPOCH_FILE).read_text(encoding="utf-8"))
        except OSError:
            return None
        touch(folder)
        own = record["owner"] == self._cache.owner
        return CachedEpoch(folder, record["metrics"], record["trial"], own)

    def abandon(self) -> None:
        """Leave the stage to other processes: the epochs that this one trains will not be saved."""
        self._abandoned = True
        self._lock.release()

    def save(
        self,
        epoch: int,
        metrics: Mapping[str, float],
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
    ) -> None:
        """Save the state after an epoch, whole or not at all. The stage must be claimed.

        Raises:
            OSError, SafetensorError: it cannot be written, or not be copied to the output.
        """
        cache, target = self._cache, self._folder / str(epoch)
        cache.unreadable.discard(target)
        store.discard(target)  # a damaged epoch
        record = {"metrics": dict(metrics), "trial": cache.trial, "owner": cache.owner, "about": self._about}
        with store.staging_dir(target) as folder:
            (folder / EPOCH_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
            save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, folder / OPTIMIZER)
        cache.eviction.entry_saved(target)
        cache.output.upload(target)
