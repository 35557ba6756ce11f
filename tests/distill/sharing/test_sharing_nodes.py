"""Trials on nodes that share no folder share epochs through a URI."""

from __future__ import annotations

import platform

import pytest

from ikd_ray.distill import epoch_cache
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage, SharedStorage, _filesystem
from tests.helpers.damage import flip
from tests.helpers.shared_trials import PID, assert_same_result, distillation_result


@pytest.fixture
def on(monkeypatch, tmp_path, data, dropping):
    """Return `on("node", "name")`, which creates a trial on a node; all nodes share one URI."""
    output = RemoteStorage(f"file://{tmp_path}/remote")

    def make(node: str, name: str, place: SharedStorage = output) -> Distillation:
        monkeypatch.setenv("HOME", str(tmp_path / node))
        monkeypatch.setattr(platform, "node", lambda: node)
        folder = place.folder / "cache" / "stages"
        shared = EpochCache(folder, 20, name, f"owner of {name}", place)
        return Distillation(PID, data, dropping, checkpoints=shared)

    return make


def test_a_node_reuses_epochs_of_another(on, alone):
    assert_same_result(distillation_result(on("a", "first")), alone(PID))
    found = distillation_result(on("b", "second"))
    assert_same_result(found, alone(PID))
    assert (found.trained, found.warnings) == (0, [])


def test_a_trial_resumes_on_another_node(on, alone, trained):
    events = iter(on("a", "mine"))
    for _ in range(3):
        next(events)
    events.close()
    assert len(trained) == 3
    found = distillation_result(on("b", "mine"))
    assert_same_result(found, alone(PID))
    assert len(trained) == len(set(trained)), "no epoch twice"
    assert found.reused == 0, "its own epochs do not count as reused"


def test_an_unreachable_output_costs_a_warning(on, alone, tmp_path):
    (tmp_path / "file").write_text("in its way")
    found = distillation_result(on("a", "mine", RemoteStorage(f"file://{tmp_path}/file/remote")))
    assert_same_result(found, alone(PID))
    assert found.warnings
    assert all("epochs cannot be shared" in warning for warning in found.warnings)


def test_epochs_damaged_in_the_output_are_trained_anew(on, alone, tmp_path):
    list(on("a", "first"))
    for weights in (tmp_path / "remote" / "cache" / "stages").glob(f"*/*/{epoch_cache.WEIGHTS}"):
        flip(weights)
    found = distillation_result(on("b", "second"))
    assert_same_result(found, alone(PID))
    assert found.reused == 0
    assert distillation_result(on("c", "third")).trained == 0, "the first node's epochs are replaced"


def test_a_worker_on_another_node_downloads_the_found_epoch(on, monkeypatch, tmp_path):
    list(on("a", "mine"))
    output = RemoteStorage(f"file://{tmp_path}/remote")
    stages = output.folder / "cache" / "stages"
    cache = EpochCache(stages, 20, "mine", output=output)
    with cache.lease(), cache.stage_cache(next(stages.glob("[!.]*")).name, {}) as stage:
        saved = stage.find(1)
        monkeypatch.setenv("HOME", str(tmp_path / "b"))
        elsewhere = EpochCache(output.folder / "cache" / "stages", 20, "mine", output=output)
        here = elsewhere.fetch_local(saved)
    assert tmp_path / "b" in here.folder.parents
    assert store.is_intact(here.folder)
    assert here.weights().keys() == saved.weights().keys()
    assert elsewhere.fetch_local(None) is None


def test_waiting_for_another_node_ends_after_patience(monkeypatch, tmp_path):
    """This node sees neither the lock nor the files of the other one."""
    now = 1000.0
    monkeypatch.setattr(epoch_cache.time, "time", lambda: now)
    pending = PendingEpoch(tmp_path / "1", tmp_path / "lock", "another", now)
    assert not pending.ready()
    now += epoch_cache.PATIENCE + 1
    assert pending.ready()
    here = PendingEpoch(tmp_path / "1", tmp_path / "lock", platform.node(), now)
    assert here.ready(), "on this node no process holds the lock"


def test_a_second_trial_on_a_node_waits_for_the_first(on):
    one, other = iter(on("a", "one")), iter(on("a", "other"))
    next(one)
    assert isinstance(next(event for event in other if not getattr(event, "reused_from", "")), PendingEpoch)
    one.close()
    other.close()
    _filesystem.cache_clear()
