"""Trials on nodes that share no folder: epochs go from one to the other through a URI."""

from __future__ import annotations

import platform

import pytest

from ikd_ray.distill import epoch_cache
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch
from ikd_ray.distill.loop import Distillation
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage, SharedStorage, _filesystem
from tests.helpers.shared_trials import PID, assert_same_result, distillation_result


@pytest.fixture
def on(monkeypatch, tmp_path, data, dropping):
    """`on("node", "name")`: a trial begun on a node; there is one URI for all of them."""
    output = RemoteStorage(f"file://{tmp_path}/remote")

    def make(node: str, name: str, place: SharedStorage = output) -> Distillation:
        monkeypatch.setenv("HOME", str(tmp_path / node))
        monkeypatch.setattr(platform, "node", lambda: node)
        folder = place.folder / "cache" / "stages"
        shared = EpochCache(folder, 20, name, f"owner of {name}", place)
        return Distillation(PID, data, dropping, checkpoints=shared)

    return make


def test_another_node_takes_what_one_has_trained(on, alone):
    first = on("a", "first")
    assert_same_result(distillation_result(first, list(first)), alone(PID))
    second = on("b", "second")
    found = distillation_result(second, list(second))
    assert_same_result(found, alone(PID))
    assert found.trained == 0
    assert not found.warnings


def test_a_trial_goes_on_when_its_node_is_gone(on, alone, trained):
    events = iter(on("a", "mine"))
    for _ in range(3):
        next(events)
    events.close()
    before = len(trained)
    again = on("b", "mine")
    found = distillation_result(again, list(again))
    assert_same_result(found, alone(PID))
    assert before == 3
    assert len(trained) == len(set(trained)), "no epoch twice"
    assert found.reused == 0, "they are its own"


def test_an_output_that_is_away_costs_a_warning(on, alone, tmp_path):
    (tmp_path / "file").write_text("in its way")
    course = on("a", "mine", RemoteStorage(f"file://{tmp_path}/file/remote"))
    found = distillation_result(course, list(course))
    assert_same_result(found, alone(PID))
    assert found.warnings
    assert all("epochs cannot be shared" in warning for warning in found.warnings)


def test_damage_there_is_trained_anew(on, alone, tmp_path):
    first = on("a", "first")
    list(first)
    for weights in (tmp_path / "remote" / "cache" / "stages").glob(f"*/*/{epoch_cache.WEIGHTS}"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    second = on("b", "second")
    found = distillation_result(second, list(second))
    assert_same_result(found, alone(PID))
    assert found.reused == 0
    third = on("c", "third")
    assert distillation_result(third, list(third)).trained == 0, "it is whole again"


def test_a_worker_elsewhere_gets_what_the_first_one_has_found(on, monkeypatch, tmp_path):
    list(on("a", "mine"))
    output = RemoteStorage(f"file://{tmp_path}/remote")
    stages = output.folder / "cache" / "stages"
    checkpoints = EpochCache(stages, 20, "mine", output=output)
    key = next(stages.glob("[!.]*")).name
    with checkpoints.lease(), checkpoints.stage_cache(key, {}) as trajectory:
        saved = trajectory.find(1)
        monkeypatch.setenv("HOME", str(tmp_path / "b"))
        elsewhere = EpochCache(output.folder / "cache" / "stages", 20, "mine", output=output)
        here = elsewhere.fetch_local(saved)
    assert tmp_path / "b" in here.folder.parents
    assert store.is_intact(here.folder)
    assert here.weights().keys() == saved.weights().keys()
    assert elsewhere.fetch_local(None) is None


def test_who_waits_for_another_node_looks_again_after_a_while(monkeypatch, tmp_path):
    """Neither the other one's lock nor its files can be seen from here."""
    now = 1000.0
    monkeypatch.setattr(epoch_cache.time, "time", lambda: now)
    busy = PendingEpoch(tmp_path / "1", tmp_path / "lock", "another", now)
    assert not busy.ready()
    now += epoch_cache.PATIENCE + 1
    assert busy.ready()
    assert PendingEpoch(tmp_path / "1", tmp_path / "lock", platform.node(), now).ready(), (
        "here nobody holds it"
    )


def test_a_second_trial_of_a_node_waits_for_the_first(on):
    one, other = iter(on("a", "one")), iter(on("a", "other"))
    next(one)
    assert isinstance(next(event for event in other if not getattr(event, "reused_from", "")), PendingEpoch)
    one.close()
    other.close()
    _filesystem.cache_clear()
