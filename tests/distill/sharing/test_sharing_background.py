"""Epochs that are copied elsewhere are saved while the next one trains."""

from __future__ import annotations

import threading

import pytest

from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.stage_training import StageTrainer
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


def test_a_trial_that_ends_early_has_saved_its_epochs(start):
    running = iter(start("first"))
    next(running)
    running.close()
    epochs = list(start("first"))
    assert [epoch.resumed for epoch in epochs] == [True] + [False] * (len(epochs) - 1)
