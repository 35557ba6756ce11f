"""Estimates of the time left, and totals of a sweep."""

from __future__ import annotations

import heapq
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.terminal.sweep_progress import SweepProgress, _last_end
from tests.helpers.terminal import make_epoch

METRIC = "dev/mcc"


def test_time_left_of_a_trial_follows_the_mean_epoch(now):
    sweep = SweepProgress(1, 1, METRIC, now)
    trial = sweep.start("aaaa", 0, {})
    assert trial.time_left(now()) is None
    sweep.report("aaaa", make_epoch(5, 6, 10.0))  # the epochs before it were reported earlier
    sweep.report("aaaa", make_epoch(6, 4, 20.0))
    assert trial.time_left(now()) == 4 * 15
    now.wait(20)
    assert trial.time_left(now()) == 40
    now.wait(100)
    assert trial.time_left(now()) == 0


def test_reused_epochs_predict_nothing(now):
    sweep = SweepProgress(1, 1, METRIC, now)
    trial = sweep.start("aaaa", 0, {})
    sweep.report("aaaa", make_epoch(1, 9, 0.0, reused_from="other"))
    assert trial.time_left(now()) is None
    assert sweep.time_left() is None
    for number, seconds, origin in ((2, 10.0, ""), (3, 0.0, "other"), (4, 20.0, "")):
        sweep.report("aaaa", make_epoch(number, 10 - number, seconds, reused_from=origin))
    assert trial.time_left(now()) == 6 * 15
    now.wait(20)
    assert trial.time_left(now()) == 70


def test_time_left_of_a_sweep_schedules_trials_in_free_slots(now):
    sweep = SweepProgress(6, 2, METRIC, now)
    sweep.start("aaaa", 0, {})
    sweep.start("bbbb", 1, {})
    assert sweep.time_left() is None
    now.wait(30)
    sweep.fail("bbbb", "short")  # says nothing about how long a trial takes
    assert sweep.time_left() is None
    now.wait(30)
    sweep.finish("aaaa", {})
    assert sweep.time_left() == 4 * 60 / 2
    sweep.start("cccc", 2, {})
    sweep.report("cccc", make_epoch(1, 50, 10.0))
    assert sweep.time_left() == 500  # longer than the three others take one after another
    sweep.start("dddd", 3, {})
    now.wait(20)
    assert sweep.time_left() == 480


def test_last_trials_are_estimated_without_a_finished_one(now):
    sweep = SweepProgress(1, 2, METRIC, now)
    sweep.start("aaaa", 0, {})
    sweep.report("aaaa", make_epoch(1, 3, 10.0))
    assert sweep.time_left() == 30


def test_time_stands_still_for_a_paused_trial(now):
    sweep = SweepProgress(1, 1, METRIC, now)
    trial = sweep.start("aaaa", 0, {})
    now.wait(10)
    sweep.report("aaaa", make_epoch(1, 5, 10.0))
    now.wait(2)
    sweep.pause("aaaa")
    now.wait(60)
    sweep.pause("aaaa")  # it is paused already
    now.wait(40)
    assert (trial.time_left(now()), trial.active_seconds(now())) == (48, 12)
    assert sweep.resume("aaaa") is trial
    now.wait(8)
    assert (trial.time_left(now()), trial.active_seconds(now())) == (40, 20)
    assert trial.started == 100.0


@pytest.mark.parametrize("event", ["epoch", "end"])
def test_any_report_ends_a_pause(now, event):
    """A trial with several workers waits without giving up its slot."""
    sweep = SweepProgress(1, 1, METRIC, now)
    trial = sweep.start("aaaa", 0, {})
    sweep.pause("aaaa")
    now.wait(30)
    if event == "epoch":
        sweep.report("aaaa", make_epoch(1, 2, 10.0))
    else:
        sweep.finish("aaaa", {})
    assert (trial.paused_since, trial.paused_seconds) == (None, 30)


def test_paused_trials_have_no_slot(now):
    sweep = SweepProgress(4, 1, METRIC, now)
    for number, id in enumerate(("aaaa", "bbbb")):
        sweep.start(id, number, {})
        sweep.report(id, make_epoch(1, 5, 10.0))
    sweep.pause("aaaa")
    assert sweep.time_left() is None  # two have to start, and no trial has finished
    now.wait(50)
    sweep.finish("bbbb", {})
    assert sweep.time_left() == 50 + 2 * 50  # one after another in the only slot
    sweep.start("cccc", 2, {})
    sweep.report("cccc", make_epoch(1, 2, 30.0))
    assert sweep.time_left() == 60 + 50 + 50


def test_mean_duration_excludes_pauses(now):
    sweep = SweepProgress(2, 1, METRIC, now)
    sweep.start("aaaa", 0, {})
    now.wait(10)
    sweep.pause("aaaa")
    now.wait(500)
    sweep.resume("aaaa")
    now.wait(20)
    sweep.finish("aaaa", {})
    assert sweep.time_left() == 30
    sweep.start("bbbb", 1, {})
    now.wait(12)
    sweep.pause("bbbb")
    now.wait(100)
    assert sweep.time_left() == 18


def test_a_trial_that_has_not_started_cannot_be_resumed(now):
    assert SweepProgress(1, 1, METRIC, now).resume("aaaa") is None


def test_a_trial_that_starts_again_counts_once(now):
    sweep = SweepProgress(2, 1, METRIC, now)
    for _ in range(2):
        sweep.start("aaaa", 0, {})
    sweep.finish("aaaa", {METRIC: 0.5})
    assert (sweep.finished, sweep.failed) == (1, 0)


def test_a_trial_with_nan_is_never_the_best(now):
    sweep = SweepProgress(3, 1, METRIC, now)
    for number, value in enumerate((math.nan, -0.1, math.nan)):
        sweep.start(str(number), number, {})
        sweep.finish(str(number), {METRIC: value})
    assert sweep.best.number == 1


SECONDS = st.just(0.0) | st.floats(0.001, 1000)


@given(st.lists(SECONDS, min_size=1, max_size=6), st.integers(0, 60), SECONDS)
def test_trials_to_come_start_where_a_slot_is_free_first(slots, trials, seconds):
    expected = list(slots)
    heapq.heapify(expected)
    for _ in range(trials):
        heapq.heapreplace(expected, expected[0] + seconds)
    assert _last_end(slots, trials, seconds) == pytest.approx(max(expected), rel=1e-6, abs=1e-6)


def test_an_estimate_takes_no_longer_for_more_trials(now):
    """It is made at the end of every trial."""
    sweep = SweepProgress(10**12, 3, METRIC, now)
    sweep.start("aaaa", 0, {})
    now.wait(3)
    sweep.finish("aaaa", {})
    assert sweep.time_left() == 10**12 - 1


def test_minutes_limit_a_sweep_whatever_its_trials_take(now):
    sweep = SweepProgress(100_000, 2, METRIC, now, limit_s=60.0)
    assert (sweep.time_left(), sweep.share) == (60.0, 0.0)
    sweep.start("aaaa", 0, {})
    now.wait(45)
    sweep.finish("aaaa", {})
    assert (sweep.time_left(), sweep.share, sweep.ended_text) == (15.0, 0.75, "1 ended")
    now.wait(30)
    assert (sweep.time_left(), sweep.share) == (0.0, 1.0)
