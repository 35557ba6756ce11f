"""Trials that share epochs have the numbers of a trial alone, whatever is reused and whatever is trained."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from ikd_ray.config import Trial
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch
from ikd_ray.distill.loop import distill
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.stage_training import StageOptimizer
from ikd_ray.storage import store
from tests.helpers.shared_trials import (
    PID,
    PREFIXES,
    RECOMPUTED,
    SMALL,
    assert_same_result,
    distillation_result,
    with_fields,
)

FIELDS = [
    *({"regime": regime} for regime in REGIMES if regime not in ("pid", "sid")),
    {"regime": "id", "embeddings": "train", "internal_losses": "kl"},
    {"regime": "pid", "soft_labels": "always", "top_trains": "head"},
    {"regime": "pid", "embeddings": "train", "internal_losses": "kl", "student_layers": 3},
    {"regime": "pid", "train": "upto", "embeddings": "train", "soft_labels": "always"},
    {"regime": "pid", "top_trains": "head", "internal_losses": "cos", "student_layers": 3},
    {"regime": "sid", "soft_labels": "always", "embeddings": "train"},
    {"regime": "sid", "top_trains": "head", "student_init": "first", "internal_losses": "cos"},
    {"regime": "pid", "top_trains": "head", "embeddings": "train", "train_fraction": 0.4},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_reused_epochs_change_no_number(run, alone, fields):
    """Others trained nothing of the trial, a part of it, and all of it before."""
    trial = Trial(**(SMALL | fields))
    others = {
        "shorter": with_fields(trial, cosine_threshold=1.0, epochs=1),
        "longer": with_fields(trial, epochs_per_layer=3),
        "lambda": with_fields(trial, lambda_=0.5),
    }
    for name, other in others.items():
        assert_same_result(run(other, name), alone(other))
    part, whole = run(trial, "part"), run(trial, "whole")
    assert_same_result(part, alone(trial))
    assert_same_result(whole, alone(trial))
    internal = 2 * trial.student_layers if trial.regime in ("pid", "sid") else 0
    assert part.reused == (internal or trial.epochs)  # without internal stages the longer one was the same
    assert whole.trained == 0
    assert not part.warnings + whole.warnings


CUT = [
    {"regime": "id", "embeddings": "train"},
    {"regime": "pid", "soft_labels": "always"},
    {"regime": "pid", "top_trains": "head", "embeddings": "train"},
    {"regime": "sid", "epochs_per_layer": 3, "cosine_threshold": 1.0},
    {"regime": "pid", "top_trains": "head", "train_fraction": 0.4},
    {"regime": "sid", "embeddings": "train", "train_fraction": 0.7},
]


@pytest.mark.parametrize("fields", CUT, ids=lambda fields: "-".join(map(str, fields.values())))
def test_an_interrupted_trial_resumes_after_any_epoch(start, run, alone, trained, folder, fields):
    """The epochs that it trained itself do not count as reused."""
    trial = Trial(**(SMALL | fields))
    expected = alone(trial)
    for done in range(1, len(expected.epochs)):
        shutil.rmtree(folder, ignore_errors=True)
        first = start(trial, "cut")
        epochs = iter(first)
        begun = [next(epochs) for _ in range(done)]
        epochs.close()
        trained.clear()
        whole = run(trial, "cut")
        assert_same_result(whole, expected)
        assert len(trained) == len(expected.epochs) - done
        for number, epoch in enumerate(whole.epochs, start=1):
            assert epoch.metrics["reused_epochs"] == 0
            assert epoch.metrics["trained_epochs"] == number
            assert not epoch.reused_from
        assert [epoch.metrics for epoch in begun] == [epoch.metrics for epoch in whole.epochs[:done]]


def test_an_interrupted_epoch_leaves_nothing(start, run, alone, trained, monkeypatch):
    step, steps = StageOptimizer.step, []

    def breaks(optimizer, loss):
        steps.append(1)
        if len(steps) == 6:  # in the middle of epoch 3
            raise KeyboardInterrupt
        step(optimizer, loss)

    monkeypatch.setattr(StageOptimizer, "step", breaks)
    with pytest.raises(KeyboardInterrupt):
        list(start(PID, "broken off"))
    monkeypatch.setattr(StageOptimizer, "step", step)
    trained.clear()
    found = run(PID, "next")
    assert_same_result(found, alone(PID))
    assert trained == [("2", 1), ("2", 2), ("C", 1), ("C", 2)]
    assert not found.warnings


def test_each_epoch_is_trained_once(run, trained):
    """An epoch is identified by its number, its stage and the numbers of epochs of the stages before."""
    done = Counter()
    for each in (2, 4, 1, 3):
        trained.clear()
        distillation = run(with_fields(PID, epochs_per_layer=each, student_layers=3), f"{each}")
        assert len(trained) == distillation.trained
        stages = {"1": (), "2": (each,), "3": (each, each), "C": (each, each, each)}
        done.update((stages[stage], number) for stage, number in trained)
    assert set(done.values()) == {1}
    expected = {((), number) for number in range(1, 5)}
    expected |= {((each,) * depth, n + 1) for each in range(1, 5) for depth in (1, 2) for n in range(each)}
    expected |= {((each,) * 3, n + 1) for each in range(1, 5) for n in range(2)}
    assert set(done) == expected


def test_pid_and_sid_share_the_first_layer(run, alone):
    run(PID, "pid")
    sid = with_fields(PID, regime="sid")
    found = run(sid, "sid")
    assert_same_result(found, alone(sid))
    assert [epoch.reused_from for epoch in found.epochs] == ["pid", "pid", "", "", "", ""]


def test_a_trial_waits_for_epochs_that_another_trains(start, alone, trained):
    """Two trials run at once in one process; each waits for the epoch that the other trains."""
    other = with_fields(PID, lambda_=0.5)
    distillations = start(PID, "a"), start(other, "b")
    given, open_ = ([], []), {0: iter(distillations[0]), 1: iter(distillations[1])}
    waited = [0, 0]
    while open_:
        for who in (0, 1, 1):  # the second runs faster
            event = next(open_[who], None) if who in open_ else None
            if event is None:
                open_.pop(who, None)
            elif isinstance(event, PendingEpoch):
                waited[who] += 1
                assert not event.ready()
            else:
                given[who].append(event)
    for distillation, epochs, trial in zip(distillations, given, (PID, other), strict=True):
        assert_same_result(distillation_result(distillation, epochs), alone(trial))
    assert Counter(stage for stage, _ in trained) == {"1": 2, "2": 2, "C": 4}
    assert waited[1]


def test_a_closed_trial_releases_its_stage(start, alone):
    first, second = iter(start(PID, "first")), start(PID, "second")
    next(first)
    epochs, events = [], iter(second)
    epochs.append(next(events))
    busy = next(events)
    assert isinstance(busy, PendingEpoch)
    assert not busy.ready()
    first.close()
    assert busy.ready()
    epochs += events
    assert_same_result(distillation_result(second, epochs), alone(PID))
    assert (epochs[0].reused_from, epochs[1].reused_from) == ("first", "")


@pytest.mark.parametrize("fields", [{}, {"top_trains": "head"}, {"embeddings": "train"}], ids=str)
def test_stored_and_recomputed_activations_share_no_epochs(run, alone, fields):
    """Memory and file hold the same numbers; recomputed in other batches they differ in their last digits."""
    trial = with_fields(PID, student_layers=3, **fields)
    places = (("memory", 0), ("recomputed", 2), ("disk", 8), ("recomputed", 8), ("memory", 8))
    for turn, (place, reused) in enumerate(places):
        found = run(trial, f"{turn}", prefix=PREFIXES[place])
        assert_same_result(found, alone(trial, PREFIXES[place]))
        assert found.reused == reused


def test_without_space_for_activations_nothing_is_shared(run, alone, monkeypatch):
    """Epochs trained from then on differ in their last digits from those that the key stands for."""
    config = PREFIXES["disk"]
    with monkeypatch.context() as patch:
        patch.setattr(store, "MAX_DISK_SHARE", 0)
        assert_same_result(run(PID, "no room", prefix=config), alone(PID, RECOMPUTED))
    found = run(PID, "room", prefix=config)
    assert_same_result(found, alone(PID, config))
    assert found.reused == 2


def test_times_of_reused_epochs_count_as_saved(run):
    first = run(PID, "first").epochs
    longer = run(with_fields(PID, epochs_per_layer=3), "second").epochs
    for epoch in first:
        assert epoch.metrics["time/epoch_s"] > 0
        assert epoch.metrics["time/evaluation_s"] > 0
        assert epoch.metrics["time/reused_s"] == 0
    for mine, theirs in zip(longer[:2], first[:2], strict=True):
        assert mine.metrics["time/epoch_s"] == mine.metrics["time/evaluation_s"] == 0
        spent = theirs.metrics["time/epoch_s"] + theirs.metrics["time/evaluation_s"]
        assert mine.metrics["time/reused_s"] == pytest.approx(spent, rel=1e-12)
    assert [epoch.reused_from for epoch in longer[:3]] == ["first", "first", ""]
    assert longer[2].metrics["time/epoch_s"] > 0
    assert longer[2].metrics["time/reused_s"] == 0
    counts = [(e.metrics["reused_epochs"], e.metrics["trained_epochs"]) for e in longer[:4]]
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_trials_without_names_reuse_epochs(data, dropping, folder):
    """Two trials without a name are different trials."""
    distill(PID, data, dropping, checkpoints=EpochCache(folder, 20))
    found = distill(PID, data, dropping, checkpoints=EpochCache(folder, 20)).metrics
    assert (found["reused_epochs"], found["trained_epochs"]) == (6, 0)
