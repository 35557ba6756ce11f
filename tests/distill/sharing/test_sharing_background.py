"""Epochs that are copied elsewhere are saved while the next one trains."""

from __future__ import annotations

import threading

import pytest

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import EpochCache, StageCache
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.stage_training import DivergedError, StageTrainer
from ikd_ray.storage.remote import RemoteStorage
from tests.helpers.shared_trials import PID, TRAIN_EPOCH, assert_same_result, distillation_result

WAIT_S = 30.0


@pytest.fixture
def start(data, dropping, tmp_path, monkeypatch):
    """Return `start("name")`, which creates a trial of a node whose output is a folder elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "remote").mkdir()
    output = RemoteStorage(f"file://{tmp_path}/remote")

    def make(name: str) -> Distillation:
        cache = EpochCache(output.folder / "cache" / "stages", 20, name, f"owner of {name}", output)
        return Distillation(PID, data, dropping, DistributedContext(), checkpoints=cache)

    return make


def test_the_next_epoch_trains_while_one_is_copied(start, alone, monkeypatch):
    trained, waited, upload = threading.Semaphore(0), [], RemoteStorage.upload

    def slow_upload(self, path):
        if not waited:  # the first epoch's, until the second one has trained
            waited.append(trained.acquire(timeout=WAIT_S) and trained.acquire(timeout=WAIT_S))
        upload(self, path)

    def train(self, number):
        found = TRAIN_EPOCH(self, number)
        trained.release()
        return found

    monkeypatch.setattr(RemoteStorage, "upload", slow_upload)
    monkeypatch.setattr(StageTrainer, "train_epoch", train)
    first = distillation_result(start("first"))
    assert waited == [True]
    assert_same_result(first, alone(PID))
    second = distillation_result(start("second"))
    assert_same_result(second, alone(PID))
    assert second.trained == 0, "every epoch is saved as it was when it had been trained"


def test_a_copy_that_fails_is_a_warning_of_the_trial(start, alone, monkeypatch):
    def fail(self, path):
        raise OSError("connection refused")

    monkeypatch.setattr(RemoteStorage, "upload", fail)
    found = distillation_result(start("first"))
    assert_same_result(found, alone(PID))
    assert found.warnings == ["epochs cannot be shared (connection refused)"] * 3, "one of each stage"


@pytest.mark.parametrize("error", [OSError("connection refused"), ValueError("a bug"), MemoryError()])
def test_an_error_of_the_training_is_raised_although_saving_fails(start, monkeypatch, error):
    def fail(self, path):
        raise error

    def diverge(self, number):
        if number == 2:
            raise DivergedError("train/loss became nan")
        return TRAIN_EPOCH(self, number)

    monkeypatch.setattr(RemoteStorage, "upload", fail)
    monkeypatch.setattr(StageTrainer, "train_epoch", diverge)
    trial = start("first")
    with pytest.raises(DivergedError):
        list(trial)
    assert len(trial.warnings) == 1


def test_a_stage_is_left_only_when_its_epoch_is_saved(start, alone, monkeypatch):
    """Another process could claim it, and both would write the same folder."""
    saving, order = threading.Event(), []
    upload, find, abandon = RemoteStorage.upload, StageCache.find, StageCache.abandon

    def slow_upload(self, path):
        saving.wait(WAIT_S)
        upload(self, path)
        order.append("saved")

    def fail_once(self, epoch):
        if epoch == 2 and not order:
            threading.Timer(0.3, saving.set).start()
            raise OSError("the disk is away")
        return find(self, epoch)

    monkeypatch.setattr(RemoteStorage, "upload", slow_upload)
    monkeypatch.setattr(StageCache, "find", fail_once)
    monkeypatch.setattr(StageCache, "abandon", lambda self: order.append("left") or abandon(self))
    assert_same_result(distillation_result(start("first")), alone(PID))
    assert order[:2] == ["saved", "left"]


def test_a_trial_that_ends_early_has_saved_its_epochs(start):
    running = iter(start("first"))
    next(running)
    running.close()
    epochs = list(start("first"))
    assert [epoch.resumed for epoch in epochs] == [True] + [False] * (len(epochs) - 1)
