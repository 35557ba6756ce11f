"""What the user sees of trials that share epochs: reused ones, waits, and what it all saved."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console as Terminal

from ikd_ray.analysis.savings import Savings
from ikd_ray.terminal.console import Console
from ikd_ray.terminal.progress_table import ProgressTable
from tests.helpers.terminal import FakeClock, TerminalStream

SAVINGS = Savings(6, 18, 3, 3, 50.0, 40.0)
SHARED = (
    "internal stages: 6 of 18 layer-epochs trained (3.0x fewer); classification: 3 of 3 epochs trained; "
    "40 s of work saved, 50 s spent"
)
PARAMS = {"regime": "sid", "student_layers": 3}


def drawn(view, width: int = 120, height: int = 24) -> list[str]:
    terminal = Terminal(file=io.StringIO(), force_terminal=True, width=width, height=height, record=True)
    terminal.print(view)
    return terminal.export_text().rstrip("\n").split("\n")


def epoch(console: Console, id: str, number: int, total: int, reused: bool = False) -> None:
    console.trial_epoch(
        id,
        epoch=number,
        remaining=total - number,
        stage=1,
        stages=2,
        stage_name="1",
        metrics={"dev/mcc": 0.1, "dev/attention_kl": 0.25},
        epoch_s=0.0 if reused else 12.0,
        reused=reused,
    )


def final(reused: int, trained: int, saved_s: float) -> dict[str, float]:
    return {
        "reused_epochs": float(reused),
        "trained_epochs": float(trained),
        "time/saved_s": saved_s,
    }


def story(console: Console, now: FakeClock) -> None:
    """One trial finds seven epochs at once, waits twice for the eighth, and trains the last two."""
    with console.sweep(2, 1, "dev/mcc"):
        console.trial_started("aaaa", 0, PARAMS)
        now.wait(10)
        for number in range(1, 8):
            epoch(console, "aaaa", number, 10, reused=True)
        console.trial_waits("aaaa")
        now.wait(5)
        console.trial_started("aaaa", 0, PARAMS)
        console.trial_waits("aaaa")  # it is not there yet
        now.wait(5)
        console.trial_started("aaaa", 0, PARAMS)
        epoch(console, "aaaa", 8, 10, reused=True)
        console.trial_waits("aaaa")
        console.trial_started("aaaa", 0, PARAMS)
        for number in (9, 10):
            now.wait(12)
            epoch(console, "aaaa", number, 10)
        console.trial_finished("aaaa", final(8, 2, 96.0))
        console.trial_started("bbbb", 1, {"regime": "kd"})
        now.wait(3)
        console.trial_finished("bbbb", final(0, 3, 0.0))
    console.summary(
        front=[],
        objectives={"dev/mcc": "max"},
        teacher_metrics={},
        failed=[],
        savings=SAVINGS,
        lines=[("plot", "pareto.png")],
    )


STORY = f"""\
sweep: 2 trials, 1 at a time ...
[0:00] #0 aaaa started: regime=sid student_layers=3
[0:10] #0 aaaa epoch 1/10, stage 1/2 (1): mcc 0.100, attention KL 0.250, reused
[0:10] #0 aaaa waits for epoch 8, which another trial trains
[0:20] #0 aaaa epoch 8/10, stage 1/2 (1): mcc 0.100, attention KL 0.250, reused
[0:20] #0 aaaa waits for epoch 9, which another trial trains
[0:32] #0 aaaa epoch 9/10, stage 1/2 (1): mcc 0.100, attention KL 0.250, 12 s left
[0:44] #0 aaaa epoch 10/10, stage 1/2 (1): mcc 0.100, attention KL 0.250, 0.0 s left
[0:44] #0 aaaa finished in 44 s: mcc 0.100, attention KL 0.250, 8 of 10 epochs reused (1 m 36 s saved)
[0:44] 1 of 2 ended, 0 failed, best mcc 0.100 (#0 sid, 3 layers), time left 0:34
[0:44] #1 bbbb started: regime=kd
[0:47] #1 bbbb finished in 3.0 s: mcc -, attention KL -
[0:47] 2 of 2 ended, 0 failed, best mcc 0.100 (#0 sid, 3 layers), time left 0:00
sweep ended after 47 s: 2 finished, 0 failed of 2 trials

Pareto front: empty, no trial finished

sharing: {SHARED}
plot: pareto.png
"""


def test_a_file_tells_of_reuse_and_waits_without_a_flood(now):
    file = io.StringIO()
    story(Console(file, now), now)
    assert file.getvalue() == STORY


def test_a_terminal_is_told_what_sharing_saved(now, monkeypatch):
    for name in ("NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    terminal = TerminalStream()
    story(Console(terminal, now), now)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert f"sharing    {SHARED}" in text
    assert "which another trial trains" not in text  # the table shows it


@pytest.mark.parametrize("savings", [None, Savings(12, 12, 3, 3, 50.0, 0.0)])
def test_where_nothing_was_shared_nothing_is_said(now, savings):
    file = io.StringIO()
    Console(file, now).summary(
        front=[], objectives={}, teacher_metrics={}, failed=[], lines=[], savings=savings
    )
    assert "sharing" not in file.getvalue()


def test_only_trained_epochs_say_how_long_those_to_come_take(now):
    board = ProgressTable(1, 1, "dev/mcc", now)
    row = board.start("aaaa", 0, {})
    board.epoch("aaaa", None, epoch=1, remaining=9)
    assert row.time_left(now()) is None
    assert board.time_left() is None
    board.epoch("aaaa", 10.0, epoch=2, remaining=8)
    board.epoch("aaaa", None, epoch=3, remaining=7)
    board.epoch("aaaa", 20.0, epoch=4, remaining=6)
    assert row.time_left(now()) == 6 * 15
    now.wait(20)
    assert row.time_left(now()) == 70


def test_time_stands_still_for_a_trial_that_waits(now):
    board = ProgressTable(1, 1, "dev/mcc", now)
    row = board.start("aaaa", 0, {})
    now.wait(10)
    board.epoch("aaaa", 10.0, remaining=5)
    now.wait(2)
    board.wait("aaaa")
    now.wait(60)
    board.wait("aaaa")  # it still waits
    now.wait(40)
    assert (row.time_left(now()), row.active(now())) == (48, 12)
    assert board.go_on("aaaa") is row
    now.wait(8)
    assert (row.time_left(now()), row.active(now())) == (40, 20)
    assert row.started == 100.0


@pytest.mark.parametrize("event", ["epoch", "end"])
def test_whatever_comes_of_a_trial_ends_its_wait(now, event):
    """A trial of several workers waits without leaving."""
    board = ProgressTable(1, 1, "dev/mcc", now)
    row = board.start("aaaa", 0, {})
    board.wait("aaaa")
    now.wait(30)
    if event == "epoch":
        board.epoch("aaaa", 10.0, remaining=2)
    else:
        board.end("aaaa", {})
    assert (row.waits, row.waited) == (False, 30)


def test_a_trial_that_has_not_started_cannot_go_on(now):
    assert ProgressTable(1, 1, "dev/mcc", now).go_on("aaaa") is None


def test_a_trial_that_waits_has_no_place(now):
    board = ProgressTable(4, 1, "dev/mcc", now)
    for number, id in enumerate(("aaaa", "bbbb")):
        board.start(id, number, {})
        board.epoch(id, 10.0, remaining=5)
        if id == "aaaa":
            board.wait(id)
    assert board.time_left() is None  # two are to start, and nobody knows how long they take
    now.wait(50)
    board.end("bbbb", {})
    assert board.time_left() == 50 + 2 * 50  # in the one place, one after another
    board.start("cccc", 2, {})
    board.epoch("cccc", 30.0, remaining=2)
    assert board.time_left() == 60 + 50 + 50


def test_the_mean_trial_has_no_waits(now):
    """Others had its place meanwhile."""
    board = ProgressTable(2, 1, "dev/mcc", now)
    board.start("aaaa", 0, {})
    now.wait(10)
    board.wait("aaaa")
    now.wait(500)
    board.go_on("aaaa")
    now.wait(20)
    board.end("aaaa", {})
    assert board.time_left() == 30
    board.start("bbbb", 1, {})
    now.wait(12)
    board.wait("bbbb")
    now.wait(100)
    assert board.time_left() == 18


def test_the_table_shows_who_waits_below_those_that_train(now):
    board = ProgressTable(3, 1, "dev/mcc", now)
    for number, id in enumerate(("aaaa", "bbbb")):
        board.start(id, number, PARAMS)
        board.epoch(id, 10.0, epoch=2, remaining=5, stage=1, stages=4, stage_name="1")
    board.wait("aaaa")
    trains, waits = drawn(board)[2:4]
    assert re.search(r"bbbb +sid +3 +1/4 1 +2/7 .* 0:50$", trains)
    assert re.search(r"aaaa +sid +3 +waits +2/7 .* \?$", waits)
    board.go_on("aaaa")
    assert "1/4 1" in drawn(board)[2]


def test_the_table_says_how_many_it_hides_of_those_that_wait(now):
    board = ProgressTable(30, 30, "dev/mcc", now)
    for number in range(20):
        board.start(f"t{number}", number, PARAMS)
        if number < 4:
            board.wait(f"t{number}")
    assert any("… and 5 more running, of which 4 wait" in line for line in drawn(board))


@pytest.mark.parametrize(("width", "shown"), [(120, "took 0:07, 6 of 9 epochs reused"), (80, "took 0:07 ")])
def test_the_table_says_what_an_ended_trial_reused_where_it_fits(now, width, shown):
    board = ProgressTable(2, 1, "dev/mcc", now)
    board.start("aaaa", 0, PARAMS)
    now.wait(7)
    board.end("aaaa", final(6, 3, 40.0))
    [row] = [line for line in drawn(board, width) if "aaaa" in line]
    assert shown in row
    assert ("reused" in row) == (width == 120)
