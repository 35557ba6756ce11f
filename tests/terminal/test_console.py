"""What the user sees: a whole story in a file, the same on a terminal, and text that must do no harm."""

from __future__ import annotations

import io
import math
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console as Terminal

from ikd_ray.formatting import clean, clock, duration, short_stage
from ikd_ray.records import TrialRecord
from ikd_ray.terminal.console import Console
from ikd_ray.terminal.progress_table import ProgressTable, Step
from tests.helpers.terminal import FakeClock, TerminalStream

DEEP = "+".join(map(str, range(1, 13))) + "+C"
EVIL = "\x1b]0;owned\x07\x1b[2J[bold red]out of\r\nmemory[/] :smile:\x9b1A\u202e"


@pytest.fixture
def terminal(monkeypatch) -> TerminalStream:
    for name in ("NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return TerminalStream()


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def drawn(view, width: int = 80, height: int = 24) -> list[str]:
    terminal = Terminal(file=io.StringIO(), force_terminal=True, width=width, height=height, record=True)
    terminal.print(view)
    return terminal.export_text().rstrip("\n").split("\n")


def epoch(
    console: Console | ProgressTable, id: str, number: int, remaining: int, mcc: float = 0.1, **changes
) -> None:
    facts = {"stage": 1, "stages": 2, "stage_name": "1", "epoch_s": 12.0} | changes
    metrics = {"dev/mcc": mcc, "dev/attention_kl": 0.25, "dev/layer_1/kl": 0.3}
    console.trial_epoch(id, epoch=number, remaining=remaining, metrics=metrics, **facts)


def record(id: str, number: int, status: str = "finished", **rest) -> TrialRecord:
    return TrialRecord(id, number, {"regime": "pid", "student_layers": 3}, [2, 4, 6], status, **rest)


def story(console: Console, now: FakeClock) -> None:
    console.heading("ikd-ray: cola, sweep first")
    console.note("data", "GLUE folder glue (CoLA)")
    console.warn("the corpus is GENERATED")
    with console.step("teacher: fine-tuning MiniLM"):
        now.wait(41)
        metrics = {"train/loss": 0.6, "train/hard": 0.6, "dev/mcc": 0.31, "time/epoch_s": 40.6}
        console.epoch("teacher", 1, 5, metrics)
    with console.step("targets"):
        for done in (0, 100, 400, 800):
            console.progress(done, 1000, "sentences")
            now.wait(10)
    with console.sweep(3, 2, "dev/mcc"):
        console.trial_started("aaaa", 0, {"regime": "sid", "student_layers": 1, "temperature": 2.123456})
        console.trial_started("bbbb", 1, {"regime": "kd", "student_layers": 2})
        now.wait(12)
        epoch(console, "aaaa", 1, 3)
        now.wait(4)
        epoch(console, "aaaa", 2, 2)  # too soon after the last line
        now.wait(12)
        epoch(console, "aaaa", 4, 0, 0.2, stage=2, stage_name=DEEP)
        console.trial_finished("aaaa", {"dev/mcc": 0.2, "student/params": 1e7})
        console.trial_failed("bbbb", EVIL)
    console.summary(
        front=[
            record("aaaa", 0, metrics={"dev/mcc": 0.2, "student/params": 1.08e7, "student/size_mb": 43.2})
        ],
        objectives={"dev/mcc": "max", "student/params": "min"},
        teacher_metrics={"dev/mcc": 0.31},
        failed=[record("bbbb", 1, "failed", reason=EVIL)],
        lines=[("MLflow", "mlflow ui")],
    )


STORY = """\
ikd-ray: cola, sweep first
data: GLUE folder glue (CoLA)
WARNING: the corpus is GENERATED
teacher: fine-tuning MiniLM ...
  teacher epoch 1/5: mcc 0.310, training loss 0.600, 41 s
teacher: fine-tuning MiniLM: done in 41 s
targets ...
  800 of 1,000 sentences, 26.7/s, 7.5 s left
targets: done in 40 s
sweep: 3 trials, 2 at a time ...
[0:00] #0 aaaa started: regime=sid student_layers=1 temperature=2.123
[0:00] #1 bbbb started: regime=kd student_layers=2
[0:12] #0 aaaa epoch 1/4, stage 1/2 (1): mcc 0.100, attention KL 0.250, 36 s left
[0:28] #0 aaaa epoch 4/4, stage 2/2 (1+2+3+4+5+6+7+8+9+…+12+C): mcc 0.200, attention KL 0.250, 0.0 s left
[0:28] #0 aaaa finished in 28 s: mcc 0.200, attention KL 0.250
[0:28] 1 of 3 ended, 0 failed, best mcc 0.200 (#0 sid, 1 layer), time left 0:28
[0:28] #1 bbbb FAILED after 28 s: [bold red]out of memory[/] :smile:
[0:28] 2 of 3 ended, 1 failed, best mcc 0.200 (#0 sid, 1 layer), time left 0:28
sweep ended after 28 s: 1 finished, 1 failed of 3 trials

Pareto front: 1 student
                        params  size  latency  attn
regime   layers  mcc ↑     M ↓    MB       ms    KL  agree  trial
teacher          0.310       -     -        -     -      -
pid           3  0.200    10.8  43.2        -     -      -  aaaa

1 failed
  #1 bbbb: [bold red]out of memory[/] :smile:

MLflow: mlflow ui
"""


def test_a_file_gets_one_line_per_event(now):
    file = io.StringIO()
    story(Console(file, now), now)
    assert re.sub(" +$", "", file.getvalue(), flags=re.MULTILINE) == STORY


def test_forced_colour_does_not_make_a_file_a_terminal(now, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    story(Console(file, now), now)
    assert "\x1b" not in file.getvalue()


def test_a_dumb_terminal_gets_lines(now, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    story(Console(terminal, now), now)
    assert "\x1b" not in terminal.getvalue()


def test_a_terminal_gets_the_same_story(now, terminal):
    story(Console(terminal, now), now)
    text = visible(terminal.getvalue())
    for part in ("✓", "│ the corpus is GENERATED", "epoch 1/5: mcc 0.310", "Pareto front", "out of memory"):
        assert part in text
    assert "\x1b]" not in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert max(map(len, visible(terminal.getvalue().replace("\r", "\n")).split("\n"))) <= 80


def test_the_clock_ticks_without_events(terminal):
    console = Console(terminal)
    with console.sweep(2, 1, "dev/mcc"):
        console.trial_started("aaaa", 0, {"regime": "pid", "student_layers": 3})
        deadline = time.monotonic() + 4
        while "0:01" not in visible(terminal.getvalue()) and time.monotonic() < deadline:
            time.sleep(0.05)
    text = visible(terminal.getvalue())
    assert "aaaa" in text
    assert "elapsed 0:01" in text


@pytest.mark.parametrize("block", ["step", "sweep"])
@pytest.mark.parametrize(
    ("error", "word"), [(KeyboardInterrupt, "interrupted after"), (ValueError, "failed after")]
)
def test_an_error_in_a_block_leaves_the_terminal_sane(now, terminal, block, error, word):
    console = Console(terminal, now)
    opened = console.step("teacher") if block == "step" else console.sweep(2, 1, "dev/mcc")
    with pytest.raises(error), opened:
        raise error
    output = terminal.getvalue()
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0
    assert word in visible(output)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_a_step_is_told_to_a_file(now, error):
    file = io.StringIO()
    with pytest.raises(error), Console(file, now).step("teacher"):
        raise error
    outcome = "interrupted" if error is KeyboardInterrupt else "failed"
    assert file.getvalue() == f"teacher ...\nteacher: {outcome} after 0.0 s\n"


def test_a_file_that_cannot_encode_a_character_gets_a_question_mark():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(file).note("data", "Größe")
    assert raw.getvalue() == b"data: Gr??e\n"


@given(st.text(st.characters(), max_size=400))
@example(EVIL)
@example("x" * 1000)
@example("\ud800")
def test_any_reason_stays_one_harmless_line(reason):
    file = io.StringIO()
    console = Console(file, FakeClock())
    with console.sweep(1, 1, "dev/mcc"):
        console.trial_failed("aaaa", reason)
    start, failed, standing, end, rest = file.getvalue().split("\n")
    assert failed.startswith("[0:00] #- aaaa FAILED after 0.0 s: ")
    assert all(line.isprintable() for line in (start, failed, standing, end))
    assert len(failed) < 240
    assert rest == ""


@given(st.text(max_size=60))
@example("[/nonsense]")
@example("[link=x]y")
def test_any_name_can_be_drawn(name):
    board = ProgressTable(2, 1, "dev/" + name, FakeClock())
    board.start(name, 0, {"regime": name, "student_layers": name})
    board.epoch(name, 1.0, stage=1, stages=1, stage_name=name, metrics={})
    running = drawn(board)
    board.end(name, reason=name)
    assert all(len(line) <= 80 for line in [*running, *drawn(board)] if line.isascii())


def test_escapes_are_removed_whole():
    assert clean(EVIL) == "[bold red]out of memory[/] :smile:"
    assert clean("a\tb\n\nc") == "a b c"
    assert clean("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [
        (0.04, "0.0 s", "0:00"),
        (9.96, "10 s", "0:10"),
        (59.6, "1 m 00 s", "1:00"),
        (185, "3 m 05 s", "3:05"),
        (7805, "2 h 10 m", "2:10:05"),
    ],
)
def test_times(seconds, words, digits):
    assert (duration(seconds), clock(seconds)) == (words, digits)


@pytest.mark.parametrize(
    ("width", "short"),
    [
        (40, DEEP),
        (16, "1+2+3+4+5+…+12+C"),
        (11, "1+2+…+12+C"),
        (7, "1+2…2+C"),
        (1, "…"),
    ],
)
def test_long_stage_names_are_cut_in_the_middle(width, short):
    assert short_stage(DEEP, width) == short


@given(st.text("0123456789+C", max_size=80), st.integers(1, 50))
def test_a_cut_stage_name_fits(name, width):
    assert len(short_stage(name, width)) <= width


def test_time_left_of_a_trial(now):
    board = ProgressTable(1, 1, "dev/mcc", now)
    row = board.start("aaaa", 0, {})
    assert row.time_left(now()) is None
    board.epoch("aaaa", 10.0, epoch=5, remaining=6)  # the epochs before came from an earlier trial
    board.epoch("aaaa", 20.0, epoch=6, remaining=4)
    assert row.time_left(now()) == 4 * 15
    now.wait(20)
    assert row.time_left(now()) == 40
    now.wait(100)
    assert row.time_left(now()) == 0


def test_time_left_of_a_sweep(now):
    board = ProgressTable(6, 2, "dev/mcc", now)
    board.start("aaaa", 0, {})
    board.start("bbbb", 1, {})
    assert board.time_left() is None
    now.wait(30)
    board.end("bbbb", reason="short")  # says nothing about how long a trial takes
    assert board.time_left() is None
    now.wait(30)
    board.end("aaaa", {})
    assert board.time_left() == 4 * 60 / 2
    board.start("cccc", 2, {})
    board.epoch("cccc", 10.0, remaining=50)
    assert board.time_left() == 500  # it outlasts the three that wait, one after another
    board.start("dddd", 3, {})
    now.wait(20)
    assert board.time_left() == 480


def test_the_last_trials_need_no_finished_one(now):
    board = ProgressTable(1, 2, "dev/mcc", now)
    board.start("aaaa", 0, {})
    board.epoch("aaaa", 10.0, remaining=3)
    assert board.time_left() == 30


def test_a_trial_that_starts_again_counts_once(now):
    board = ProgressTable(2, 1, "dev/mcc", now)
    for _ in range(2):
        board.start("aaaa", 0, {})
    board.end("aaaa", {"dev/mcc": 0.5})
    assert (board.finished, board.failed) == (1, 0)


def test_a_diverged_trial_is_never_the_best(now):
    board = ProgressTable(3, 1, "dev/mcc", now)
    for number, value in enumerate((math.nan, -0.1, math.nan)):
        board.start(str(number), number, {})
        board.end(str(number), {"dev/mcc": value})
    assert board.best.number == 1


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 10)])
def test_the_table_fits_the_terminal(now, width, height):
    board = ProgressTable(300, 100, "dev/accuracy", now)
    for number in range(200):
        board.start(f"a1b2c3d{number}", number, {"regime": "sid", "student_layers": 12})
        changes = {"epoch": 1, "remaining": 99, "stage": 12, "stages": 13, "stage_name": DEEP}
        board.epoch(f"a1b2c3d{number}", 500.0, **changes, metrics={"dev/accuracy": 0.5})
        if number < 100:
            board.end(f"a1b2c3d{number}", reason="x" * 500 if number % 2 else None)
    lines = drawn(board, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any("more running" in line for line in lines)
    assert any("100 of 300 ended, 50 failed" in line for line in lines)


def test_ended_trials_stay_for_a_while_below_the_running_ones(now):
    board = ProgressTable(20, 1, "dev/mcc", now)
    for number in range(10):
        board.start(f"t{number}", number, {"regime": "kd", "student_layers": 3})
        if number < 9:
            board.end(f"t{number}", reason="out of memory" if number == 8 else None)
    rows = drawn(board)[2:]
    assert [row.split()[1] for row in rows[:6]] == ["t9", "t8", "t7", "t6", "t5", "t4"]
    assert "out of mem" in rows[1]
    assert rows[1].endswith("failed")


def test_progress_starts_anew_with_a_new_total(now):
    step = Step("targets", now)
    step.advance(0, 100, "sentences")
    now.wait(10)
    assert step.advance(50, 100, "sentences").time_left == 10
    assert "50 of 100 sentences" in "".join(drawn(step))
    assert step.advance(10, 200, "sentences").rate is None


def test_an_empty_front_is_said(now):
    file = io.StringIO()
    Console(file, now).summary(
        front=[],
        objectives={"dev/mcc": "max"},
        teacher_metrics={},
        failed=[record(f"t{n}", n, "failed", reason="boom\nbang") for n in range(30)],
        lines=[],
    )
    assert "Pareto front: empty, no trial finished" in file.getvalue()
    assert file.getvalue().count("boom bang\n") == 10
    assert "… and 20 more" in file.getvalue()


def test_the_front_is_shown_best_first_with_every_objective(now):
    values = (0.1, 0.3, math.nan)
    front = [
        record(f"t{n}", n, metrics={"dev/f1": value, "student/encoder_params": 5e6})
        for n, value in enumerate(values)
    ]
    file = io.StringIO()
    Console(file, now).summary(
        front=front,
        objectives={"student/encoder_params": "min", "dev/f1": "max"},
        teacher_metrics={"dev/accuracy": 0.8, "dev/f1": 0.9},
        failed=[],
        lines=[],
    )
    lines = file.getvalue().split("\n")
    assert [line.split()[-1] for line in lines if line.startswith("pid")] == ["t1", "t0", "t2"]
    assert "encoder_params ↓" in file.getvalue()
    assert "f1 ↑" in file.getvalue()
