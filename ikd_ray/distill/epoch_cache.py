"""Saved epochs of stages, found by what determines them, so that no two trials train the same epoch.

FOLDER/KEY/EPOCH/     one epoch's state: metrics, weights that the stage trains, optimizer
FOLDER/KEY/cls-EPOCH/ what the whole encoder gives then, where it is frozen from there on
FOLDER/.locks/KEY     held by the process that trains the stage
FOLDER/.in_use/, .going/, .housekeeping.lock: see `ikd_ray.storage.eviction`

Where nodes share no folder, epochs come and go through a `SharedStorage`, and locks hold within a node: two nodes may
train the same epoch, which costs time alone.
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

STAGES = "stages"  # the folder of all stages, below the cache that sweeps share

PATIENCE = 15.0  # seconds until a trial looks again for what another node may have left
DISK_ERRORS = (OSError, SafetensorError)  # the latter where a disk is full, too


class LostCheckpointError(RuntimeError):
    """A state that was there a moment ago cannot be read any more."""


@dataclass(frozen=True)
class CachedEpoch:
    """A stage's state after one of its epochs. Small: the tensors stay on disk until they are loaded."""

    folder: Path
    metrics: dict[str, float]
    trial: str  # the trial that trained it
    own: bool  # it is the very one that asks

    def weights(self) -> dict[str, Tensor]:
        """The parameters that the stage trains.

        Raises:
            LostCheckpointError: they are gone.
        """
        return self._load(WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's state: what training goes on from.

        Raises:
            LostCheckpointError: it is gone.
        """
        return self._load(OPTIMIZER)

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / name)
        except DISK_ERRORS as error:
            raise LostCheckpointError(f"{self.folder / name}: {error}") from None


@dataclass(frozen=True)
class PendingEpoch:
    """What a trial waits for: an epoch that another process is training."""

    folder: Path | None  # none: no epoch will do, but the other one's end with the stage
    lock: Path
    node: str = ""  # where folder and lock can be seen; none: everywhere
    since: float = 0.0  # seconds since 1970

    def ready(self) -> bool:
        """Whether there is no reason to wait any longer: the epoch is there, or nobody trains it any more.

        Who cannot see that from here says so after a while.
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


class StageCache:
    """The epochs of one stage. A context: what is claimed within it is free again after it."""

    def __init__(
        self,
        folder: Path,
        upkeep: CacheEviction,
        about: Mapping[str, Any],
        trial: str,
        owner: str,
        unreadable: set[Path],
        output: SharedStorage,
    ) -> None:
        self._folder, self._upkeep, self._about, self._output = folder, upkeep, about, output
        self._trial, self._owner, self._unreadable = trial, owner, unreadable
        self.damaged: list[Path] = []  # what `look` found and was no intact state
        self._lock = FileLock(folder.parent / LOCKS / folder.name, blocking=False)
        self._gave_up = False

    @property
    def claimed(self) -> bool:
        """Whether this is the process that trains the stage."""
        return self._lock.is_locked

    def __enter__(self) -> StageCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def find(self, epoch: int) -> CachedEpoch | PendingEpoch | None:
        """The state after an epoch, or who else is at it; none: it is this process's to train.

        Unless it gave the stage up, this process has claimed it then.

        Raises:
            OSError: it cannot be claimed, or nobody can tell.
        """
        saved, folder = self._find(epoch), self._folder / str(epoch)
        if saved is None and not self.claimed and not self._gave_up:
            try:
                self._lock.acquire()
            except Timeout:
                node = platform.node() if self._output.uri else ""
                awaited = None if folder in self._unreadable else folder
                return PendingEpoch(awaited, Path(self._lock.lock_file), node, time.time())
            saved = self._find(epoch)  # it may have come since
        if saved is None and folder.exists():
            self.damaged.append(folder)
        return saved

    def _find(self, epoch: int) -> CachedEpoch | None:
        folder = self._folder / str(epoch)
        if folder in self._unreadable:
            return None
        if not store.is_intact(folder):
            if not self._output.download(folder):
                return None
            self._upkeep.entry_saved(folder)
        try:
            card = json.loads((folder / EPOCH_FILE).read_text())
        except OSError:
            return None
        touch(folder)
        return CachedEpoch(folder, card["metrics"], card["trial"], card["owner"] == self._owner)

    def abandon(self) -> None:
        """Leave the stage to others from now on: what this process trains of it will not be saved."""
        self._gave_up = True
        self._lock.release()

    def save(
        self,
        epoch: int,
        metrics: Mapping[str, float],
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
    ) -> None:
        """Keep the state after an epoch, whole or not at all. To be called by who has claimed the stage.

        Raises:
            OSError, SafetensorError: the disk does not take it, or others cannot be given it.
        """
        target = self._folder / str(epoch)
        self._unreadable.discard(target)
        store.discard(target)  # what was damaged
        card = {"metrics": dict(metrics), "trial": self._trial, "owner": self._owner, "about": self._about}
        with store.staging_dir(target) as folder:
            (folder / EPOCH_FILE).write_text(json.dumps(card, indent=1))
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
            save_file({name: tensor.contiguous() for name, tensor in optimizer.items()}, folder / OPTIMIZER)
        self._upkeep.entry_saved(target)
        self._output.upload(target)


class EpochCache:
    """The saved epochs of all stages below a folder, as one trial uses them."""

    def __init__(
        self,
        folder: Path,
        disk_gb: float,
        trial: str = "",
        owner: str | None = None,
        output: SharedStorage | None = None,
    ) -> None:
        """
        Args:
            folder: every process that shares states sees it under this path, unless they share an `output`.
            disk_gb: the least recently used states go when all together take more gigabytes.
            trial: what the trial is called where its states are used.
            owner: the same, in one word that no other trial anywhere has; none: one is made up.
            output: where nodes that do not see `folder`, which is within it, leave states for each other.
        """
        self._folder, self._trial, self._owner = folder, trial, owner or uuid.uuid4().hex
        self._unreadable: set[Path] = set()
        self._upkeep = CacheEviction(folder, disk_gb)
        self._output = output or SharedStorage(os.fspath(folder))

    def lease(self) -> AbstractContextManager[None]:
        """Within it nothing goes that `trajectory` was asked for."""
        return self._upkeep.lease()

    def sibling_dir(self, key: str, name: str) -> Path:
        """A folder for something else that follows from a stage's epochs; it is kept, and goes, as they do."""
        return self._folder / key / name

    def stage_cache(self, key: str, about: Mapping[str, Any]) -> StageCache:
        """The epochs of the stage with a key; `about` tells people what they are.

        Raises:
            OSError: the disk does not take the note that they are in use.
        """
        self._upkeep.pin(key)
        return StageCache(
            self._folder / key, self._upkeep, about, self._trial, self._owner, self._unreadable, self._output
        )

    def fetch_local(self, found: CachedEpoch | PendingEpoch | None) -> CachedEpoch | PendingEpoch | None:
        """What another worker of the trial has found as this one has it, fetched where its node lacks it."""
        if not isinstance(found, CachedEpoch):
            return found
        folder = self._folder / found.folder.parent.name / found.folder.name
        if not folder.exists():
            with suppress(OSError):  # it counts as lost, then
                self._output.download(folder)
        return replace(found, folder=folder)

    def mark_unreadable(self, saved: CachedEpoch) -> None:
        """From now on the state counts as damaged: it could not be loaded."""
        self._unreadable.add(saved.folder)
