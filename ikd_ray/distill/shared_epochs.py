"""Saved epochs as the workers of one trial use them: rank 0 reads and writes, and all workers act alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import (
    DISK_ERRORS,
    CachedEpoch,
    EpochCache,
    LostCheckpointError,
    PendingEpoch,
    StageCache,
)
from ikd_ray.distill.stage_training import StageTrainer
from ikd_ray.errors import first_line

Errors = tuple[type[Exception], ...]


class SharedEpochs:
    """Finds, adopts and saves the epochs of one trial, stage by stage.

    An error of the disk costs time and never changes a number, so it becomes a warning.

    Args:
        cache: this worker's cache; None: nothing is found and nothing saved.
        world: the trial's workers. Each of them calls every method.
    """

    def __init__(self, cache: EpochCache | None, world: DistributedContext) -> None:
        self.warnings: list[str] = []
        self._cache, self._world = cache, world
        self._stage: StageCache | None = None
        self._adopted: dict[StageTrainer, CachedEpoch] = {}  # of each stage the latest epoch
        # A CPU that trains has no time to spare for the disk, but it has while a network is awaited.
        in_background = cache is not None and (world.device.type == "cuda" or bool(cache.output.uri))
        self._saver = ThreadPoolExecutor(1, "saves-epochs") if in_background else None
        self._saving: Future[None] | None = None

    @property
    def enabled(self) -> bool:
        """True if there is a cache, and none of the workers failed to use it."""
        return self._cache is not None

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep what the trial uses from eviction within the block; without a lease the cache is disabled."""
        self._adopted = {}
        with ExitStack() as stack:
            if self._cache:
                leased = self._world.rank > 0  # rank 0 leases for all
                if not leased:
                    with self._errors_as_warnings():
                        stack.enter_context(self._cache.lease())
                        leased = True
                if not self._world.broadcast(leased):
                    self._cache = None
            yield

    def activations_dir(self, key: str, epochs: int) -> Path | None:
        """Return the folder for the whole encoder's output after `epochs` epochs of the stage with a key."""
        return self._cache.sibling_dir(key, f"cls-{epochs}") if self._cache else None

    @contextmanager
    def stage(self, key: str, about: Mapping[str, Any], exact: bool) -> Iterator[None]:
        """Use the epochs of the stage with a `cache_keys.stage_key` within the block.

        They are used only if every worker computes exactly what the key says (`exact`).
        """
        if self._all_exact(exact) and self._cache and self._world.rank == 0:
            with self._errors_as_warnings():
                self._stage = self._cache.stage_cache(key, about)
        try:
            with self._stage or nullcontext():
                try:
                    yield
                finally:
                    self._finish_saving()
        finally:
            self._stage = None

    def find(self, epoch: int) -> CachedEpoch | PendingEpoch | None:
        """Return the stage's saved epoch, or that another trial trains it; None: this trial has to train it."""
        if self._cache is None:
            return None
        found = self._find(self._stage, epoch) if self._stage else None
        return self._cache.fetch_local(self._world.broadcast(found))

    def _find(self, stage: StageCache, epoch: int) -> CachedEpoch | PendingEpoch | None:
        found, readable = None, False
        with self._errors_as_warnings():
            found, readable = stage.find(epoch), True
        if not readable:
            self._finish_saving()  # only a claimed stage may be written
            stage.abandon()
        self.warnings += [f"{folder}: damaged; trained anew" for folder in stage.damaged]
        stage.damaged.clear()
        return found

    def adopt(self, trainer: StageTrainer, cached: CachedEpoch) -> None:
        """Take a saved epoch as the stage's latest. Its weights are loaded when `load_adopted` needs them."""
        self._adopted[trainer] = cached

    def load_adopted(self, resumed: StageTrainer | None = None) -> None:
        """Load the weights of the adopted epochs into the student, and the optimizer of the stage that is resumed.

        Raises:
            LostCheckpointError: one of the workers can no longer read them.
        """
        adopted, self._adopted = self._adopted, {}
        lost = None
        for trainer, cached in adopted.items():
            try:
                trainer.load(cached.weights(), cached.optimizer() if trainer is resumed else None)
            except LostCheckpointError as error:
                assert self._cache is not None
                self._cache.unreadable.add(cached.folder)
                lost = error
        if adopted and self._world.any(lost is not None):
            if self._world.size > 1:  # the workers would find different epochs from now on
                self._cache = None
            raise lost or LostCheckpointError("a worker cannot read an epoch that another one can")

    def finish(self) -> None:
        """Wait until the last epoch is saved, and load the weights of the adopted epochs."""
        self._finish_saving()
        self.load_adopted()

    def save(self, epoch: int, metrics: Mapping[str, float], trainer: StageTrainer, exact: bool) -> None:
        """Save an epoch that was just trained, if this trial has claimed the stage and every worker is exact.

        On a GPU, and where epochs are copied elsewhere, it is saved while the next one trains.
        """
        exact = self._all_exact(exact)
        self._finish_saving()
        stage = self._stage
        if stage is None or not stage.claimed:
            return
        if not exact:
            stage.abandon()  # so that no trial waits for an epoch that will not be saved
            return
        # Nobody resumes from the last epoch of a learning rate that decays.
        over = trainer.stage.decays and epoch == trainer.stage.epochs
        weights, state = trainer.optimizer.weights(), {} if over else trainer.optimizer.state()
        if self._saver is None:
            self._save_or_abandon(lambda: stage.save(epoch, metrics, weights, state))
        else:  # copies, since the next epoch changes the tensors in place
            self._saving = self._saver.submit(stage.save, epoch, dict(metrics), _copy(weights), _copy(state))

    def _finish_saving(self) -> None:
        """Wait for an epoch that is being saved."""
        if self._saving is None:
            return
        # Whatever has failed there must not take the place of an exception of the training.
        self._save_or_abandon(self._saving.result, (Exception,))
        self._saving = None

    def _save_or_abandon(self, save: Callable[[], None], errors: Errors = DISK_ERRORS) -> None:
        is_saved = False
        with self._errors_as_warnings(errors):
            save()
            is_saved = True
        if not is_saved and self._stage:
            self._stage.abandon()

    def _all_exact(self, exact: bool) -> bool:
        return self._cache is not None and not self._world.any(not exact)

    @contextmanager
    def _errors_as_warnings(self, errors: Errors = DISK_ERRORS) -> Iterator[None]:
        try:
            yield
        except errors as error:
            self.warnings.append(f"epochs cannot be shared ({first_line(error)})")


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors on the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
