"""Live views: they fit the terminal, and show who runs, waits and ended."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ikd_ray.terminal.progress_table import ProgressTable, StepView
from ikd_ray.terminal.sweep_progress import SweepProgress
from tests.helpers.terminal import DEEP_STAGE, FakeClock, make_epoch, render

PARAMS = {"regime": "sid", "student_layers": 3}


@given(st.text(max_size=60))
@example("[/nonsense]")
@example("[link=x]y")
def test_any_name_can_be_drawn(name):
    sweep = SweepProgress(2, 1, "dev/" + name, FakeClock())
    sweep.start(name, 0, {"regime": name, "student_layers": name})
    sweep.report(name, make_epoch(1, 1, stage_name=name))
    running = render(ProgressTable(sweep))
    sweep.fail(name, name)
    lines = [*running, *render(ProgressTable(sweep))]
    assert all(len(line) <= 80 for line in lines if line.isascii())


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 10)])
def test_the_table_fits_the_terminal(now, width, height):
    sweep = SweepProgress(300, 100, "dev/accuracy", now)
    for number in range(200):
        id = f"a1b2c3d{number}"
        sweep.start(id, number, {"regime": "sid", "student_layers": 12})
        sweep.report(id, make_epoch(1, 99, 500.0, stage=12, stages=13, stage_name=DEEP_STAGE))
        if number < 100:
            sweep.fail(id, "x" * 500) if number % 2 else sweep.finish(id, {})
    lines = render(ProgressTable(sweep), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any("more running" in line for line in lines)
    assert any("100 of 300 ended, 50 failed" in line for line in lines)


def test_the_last_ended_trials_stay_below_the_running_ones(now):
    sweep = SweepProgress(20, 1, "dev/mcc", now)
    for number in range(10):
        sweep.start(f"t{number}", number, {"regime": "kd", "student_layers": 3})
        if number == 8:
            sweep.fail("t8", "out of memory")
        elif number < 8:
            sweep.finish(f"t{number}", {})
    rows = render(ProgressTable(sweep))[2:]
    assert [row.split()[1] for row in rows[:6]] == ["t9", "t8", "t7", "t6", "t5", "t4"]
    assert "out of mem" in rows[1]
    assert rows[1].endswith("failed")


def test_paused_trials_are_shown_below_those_that_train(now):
    sweep = SweepProgress(3, 1, "dev/mcc", now)
    for number, id in enumerate(("aaaa", "bbbb")):
        sweep.start(id, number, PARAMS)
        sweep.report(id, make_epoch(2, 5, 10.0, stages=4))
    sweep.pause("aaaa")
    trains, waits = render(ProgressTable(sweep), 120)[2:4]
    assert re.search(r"bbbb +sid +3 +1/4 1 +2/7 .* 0:50$", trains)
    assert re.search(r"aaaa +sid +3 +waits +2/7 .* \?$", waits)
    sweep.resume("aaaa")
    assert "1/4 1" in render(ProgressTable(sweep), 120)[2]


def test_hidden_paused_trials_are_counted(now):
    sweep = SweepProgress(30, 30, "dev/mcc", now)
    for number in range(20):
        sweep.start(f"t{number}", number, PARAMS)
        if number < 4:
            sweep.pause(f"t{number}")
    lines = render(ProgressTable(sweep), 120)
    assert any("… and 5 more running, of which 4 wait" in line for line in lines)


@pytest.mark.parametrize(("width", "shown"), [(120, "took 0:07, 6 of 9 epochs reused"), (80, "took 0:07 ")])
def test_reused_epochs_of_an_ended_trial_are_shown_where_they_fit(now, width, shown):
    sweep = SweepProgress(2, 1, "dev/mcc", now)
    sweep.start("aaaa", 0, PARAMS)
    now.wait(7)
    sweep.finish("aaaa", {"reused_epochs": 6.0, "trained_epochs": 3.0, "time/saved_s": 40.0})
    [row] = [line for line in render(ProgressTable(sweep), width) if "aaaa" in line]
    assert shown in row
    assert ("reused" in row) == (width == 120)


def test_progress_starts_again_with_a_new_total(now):
    step = StepView("targets", now)
    step.advance(0, 100, "sentences")
    now.wait(10)
    assert step.advance(50, 100, "sentences") == "50 of 100 sentences, 5.0/s, 10 s left"
    assert "50 of 100 sentences" in "".join(render(step))
    assert step.advance(10, 200, "sentences") == "10 of 200 sentences"
