"""Damaged or lost epochs and full disks cost time, and never change a number."""

from __future__ import annotations

import resource
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from ikd_ray.distill import epoch_cache
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch, StageCache
from ikd_ray.distill.frozen_activations import ACTIVATIONS_FILE
from ikd_ray.storage import store
from tests.helpers.damage import flip, halve
from tests.helpers.shared_trials import (
    PID,
    assert_same_result,
    distillation_result,
    saved_epoch_folder,
    with_fields,
)

PARTS = ("epoch.json", "weights.safetensors", "optimizer.safetensors")
DAMAGES = {
    f"{harm.__name__} {part}": lambda epoch, harm=harm, part=part: harm(epoch / part)
    for harm in (flip, halve, Path.unlink)
    for part in PARTS
} | {
    "no manifest": lambda epoch: (epoch / "manifest.json").unlink(),
    "half a manifest": lambda epoch: halve(epoch / "manifest.json"),
    "empty": lambda epoch: [file.unlink() for file in epoch.iterdir()],
}
PLACES = [("1", 1), ("1", 2), ("2", 1), ("2", 2), ("C", 1), ("C", 2)]


@pytest.mark.parametrize(
    ("damage", "place"),
    [*((name, ("2", 1)) for name in DAMAGES), *(("flip " + PARTS[1], place) for place in PLACES)],
    ids=str,
)
def test_a_damaged_epoch_is_trained_anew(run, alone, trained, kept, folder, damage, place):
    """Only this epoch is trained; later ones are reused."""
    shutil.copytree(kept, folder)
    broken = saved_epoch_folder(folder, *place)
    DAMAGES[damage](broken)
    found = run(PID, "next")
    assert_same_result(found, alone(PID))
    assert trained == [place]
    assert len(found.warnings) == 1
    assert str(broken) in found.warnings[0]
    assert store.is_intact(broken)
    after = run(PID, "after")
    assert_same_result(after, alone(PID))
    assert (after.trained, after.warnings) == (0, [])


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_missing_epoch_is_trained_without_a_warning(run, alone, trained, kept, folder, place):
    shutil.copytree(kept, folder)
    shutil.rmtree(saved_epoch_folder(folder, *place))
    found = run(PID, "next")
    assert_same_result(found, alone(PID))
    assert (trained, found.warnings) == ([place], [])
    assert store.is_intact(saved_epoch_folder(folder, *place))


@pytest.mark.parametrize("harm", [flip, halve, Path.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_encoder_output_is_computed_anew(run, alone, trained, folder, harm):
    """The output that heads train on is saved beside the epochs."""
    head = with_fields(PID, top_trains="head")
    run(head, "first")
    for file in folder.glob(f"[!.]*/*/{ACTIVATIONS_FILE}"):
        harm(file)
    other, trained[:] = with_fields(head, lambda_=0.5), []
    assert_same_result(run(other, "next"), alone(other))
    assert trained == [("C", 1), ("C", 2)]
    assert all(store.is_intact(file.parent) for file in folder.glob(f"[!.]*/*/{ACTIVATIONS_FILE}"))


def test_missing_verification_notes_are_no_damage(run, trained, kept, folder):
    shutil.copytree(kept, folder)
    for notes in folder.glob(f"*/*/{store.VERIFIED}"):
        notes.unlink()
    assert not run(PID, "next").warnings
    assert not trained


LOSSES = {
    "weights, C": (lambda folder: (saved_epoch_folder(folder, "2", 2) / PARTS[1]).unlink(), 3),
    "weights, 1": (lambda folder: (saved_epoch_folder(folder, "1", 2) / PARTS[1]).unlink(), 3),
    "cut weights": (lambda folder: halve(saved_epoch_folder(folder, "1", 2) / PARTS[1]), 3),
    "folder": (lambda folder: shutil.rmtree(saved_epoch_folder(folder, "2", 2)), 3),
    "stage": (lambda folder: shutil.rmtree(saved_epoch_folder(folder, "1", 2).parent), 4),
    "all": (lambda folder: [shutil.rmtree(epoch) for epoch in folder.glob("[!.]*/[!.]*")], 6),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_an_epoch_lost_before_it_is_loaded_is_trained_anew(start, alone, trained, kept, folder, loss):
    """Four epochs were reported before; none of them is reported again."""
    shutil.copytree(kept, folder)
    trial = with_fields(PID, lambda_=0.5)
    distillation = start(trial, "next")
    events = iter(distillation)
    epochs = [next(events) for _ in range(4)]
    lose, count = LOSSES[loss]
    lose(folder)
    found = distillation_result(distillation, [*epochs, *events])
    assert_same_result(found, alone(trial))
    assert sorted(trained[-2:]) == [("C", 1), ("C", 2)]
    assert len(trained) == count
    assert any("trained anew" in warning for warning in found.warnings)


def test_an_optimizer_lost_before_it_is_loaded_is_trained_anew(start, alone, trained, kept, folder):
    """It is lost in the middle of a stage that a longer trial continues."""
    shutil.copytree(kept, folder)
    trial = with_fields(PID, epochs_per_layer=3)
    distillation = start(trial, "next")
    events = iter(distillation)
    epochs = [next(events) for _ in range(2)]
    (saved_epoch_folder(folder, "1", 2) / PARTS[2]).unlink()
    assert_same_result(distillation_result(distillation, [*epochs, *events]), alone(trial))
    assert trained[:2] == [("1", 2), ("1", 3)]


def test_an_unreadable_epoch_is_trained_anew(run, alone, kept, folder, monkeypatch):
    """Its checksum is right, and every attempt to load it fails."""
    shutil.copytree(kept, folder)
    bad, load, tries = saved_epoch_folder(folder, "1", 2), epoch_cache.load_file, []

    def fails(path, *more):
        if Path(path).parent == bad:
            tries.append(path)
            assert len(tries) < 20, "the trial never ends"
            raise OSError(5, "Input/output error")
        return load(path, *more)

    monkeypatch.setattr(epoch_cache, "load_file", fails)
    trial = with_fields(PID, lambda_=0.5)
    assert_same_result(run(trial, "next"), alone(trial))


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_a_warning_per_stage(run, alone, monkeypatch, folder):
    monkeypatch.setattr(epoch_cache, "save_file", refuse)
    found = run(PID, "refused")
    assert_same_result(found, alone(PID))
    assert [bool(epoch.warnings) for epoch in found.epochs] == [True, False] * 3
    assert all("No space left on device" in warning for warning in found.warnings)
    assert not list(folder.glob("[!.]*/*"))
    monkeypatch.undo()
    again = run(PID, "again")
    assert_same_result(again, alone(PID))
    assert (again.reused, again.warnings) == (0, [])


def test_a_file_size_limit_costs_a_warning_per_stage(run, alone):
    """The operating system refuses what safetensors writes."""
    alone(PID)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        found = run(PID, "refused")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same_result(found, alone(PID))
    assert [bool(epoch.warnings) for epoch in found.epochs] == [True, False] * 3


def test_a_stage_after_a_full_disk_is_saved_again(run, alone, monkeypatch):
    """A stage with an epoch that was not saved is abandoned."""
    save, calls = epoch_cache.save_file, []

    def now_and_then(*arguments):
        calls.append(arguments)
        if len(calls) in (
            2,
            3,
        ):  # the optimizer of the first stage's first epoch, the weights of the second's
            refuse()
        save(*arguments)

    monkeypatch.setattr(epoch_cache, "save_file", now_and_then)
    found = run(PID, "refused")
    assert [len(epoch.warnings) for epoch in found.epochs] == [1, 0, 1, 0, 0, 0]
    monkeypatch.undo()
    again = run(PID, "again")
    assert_same_result(again, alone(PID))
    assert [bool(epoch.reused_from) for epoch in again.epochs] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("where", ["root", "locks", "in_use", "stage"])
def test_a_file_in_the_place_of_a_folder_costs_a_warning(run, alone, folder, kept, where):
    stage = saved_epoch_folder(kept, "1", 1).parent.name
    path = folder / {"root": "", "stage": stage}.get(where, f".{where}")
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    found = run(PID, "refused")
    assert_same_result(found, alone(PID))
    assert found.warnings


@pytest.fixture
def claimed(folder):
    """Return `claimed("name", key)`: a stage's epochs as another process opens them, with a lease until the end."""
    with ExitStack() as leases:

        def make(name: str, key: str = "stage") -> StageCache:
            cache = EpochCache(folder, 20, name)
            leases.enter_context(cache.lease())
            return cache.stage_cache(key, {})

        yield make


def test_a_damaged_epoch_is_pending_until_it_is_saved_again(run, folder, claimed):
    """Its folder exists all the time; the process that trains it anew has claimed the stage."""
    run(PID, "first")
    [weights] = saved_epoch_folder(folder, "1", 1).glob("weights*")
    weights.write_bytes(b"")
    key = weights.parents[1].name
    with claimed("trains", key) as trains:
        assert trains.find(1) is None
        pending = claimed("waits", key).find(1)
        assert not pending.ready()
        trains.save(1, {}, {}, {})
        assert pending.ready()


def test_an_abandoned_stage_is_not_waited_for(claimed):
    trains = claimed("trains")
    with claimed("waits") as waits:
        assert trains.find(1) is None
        pending = waits.find(1)
        assert isinstance(pending, PendingEpoch)
        assert not pending.ready()
        trains.abandon()
        assert pending.ready()
        assert waits.find(1) is None, "the waiting process trains it now"
        assert trains.find(2) is None, "the process that abandoned the stage trains on without a claim"
