"""Output of a sweep: the same events in a file, in a pipe and on a terminal."""

from __future__ import annotations

import io
import math
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ikd_ray.analysis.training_costs import Savings
from ikd_ray.records import TrialRecord
from ikd_ray.terminal.console import Console
from tests.helpers.sample_records import sweep_record
from tests.helpers.terminal import CONTROL_CHARACTERS, DEEP_STAGE, FakeClock, make_epoch

SAVINGS = Savings(6, 18, 3, 3, 50.0, 40.0)
SAVED = (
    "internal stages: 6 of 18 layer-epochs trained (3.0x fewer); classification: 3 of 3 epochs trained; "
    "40 s of work saved, 50 s spent"
)


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


def strip_controls(text: str) -> str:
    """Return what a terminal shows, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture
def terminal(monkeypatch) -> TerminalStream:
    for name in ("NO_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    return TerminalStream()


def record(id: str, number: int, status: str = "finished", **fields) -> TrialRecord:
    return TrialRecord(id, number, {"regime": "pid", "student_layers": 3}, [2, 4, 6], status, **fields)


def summarize(console: Console, **fields) -> None:
    objectives = fields.pop("objectives", {"dev/mcc": "max"})
    teacher = {"name": "mini", "layers": 6, "metrics": fields.pop("teacher_metrics", {})}
    teacher["sizes"] = fields.pop("teacher_sizes", {})
    sweep = sweep_record(objectives=objectives, teacher=teacher)
    console.summary(**{"sweep": sweep, "front": [], "failed": [], "lines": []} | fields)


def summary(now: FakeClock, **fields) -> str:
    """Return the summary as a file gets it."""
    file = io.StringIO()
    summarize(Console(file, now), **fields)
    return file.getvalue()


def play_sweep(console: Console, now: FakeClock) -> None:
    """Show a sweep from its heading to its summary, with a finished and a failed trial."""
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
        console.trial_epoch("aaaa", make_epoch(1, 3))
        now.wait(4)
        console.trial_epoch("aaaa", make_epoch(2, 2))  # too soon after the last line
        now.wait(12)
        console.trial_epoch("aaaa", make_epoch(4, 0, mcc=0.2, stage=2, stage_name=DEEP_STAGE))
        console.trial_finished("aaaa", {"dev/mcc": 0.2, "student/params": 1e7})
        console.trial_failed("bbbb", CONTROL_CHARACTERS)
    metrics = {"dev/mcc": 0.2, "student/params": 1.08e7, "student/size_mb": 43.2}
    summarize(
        console,
        front=[record("aaaa", 0, metrics=metrics)],
        objectives={"dev/mcc": "max", "student/params": "min"},
        teacher_metrics={"dev/mcc": 0.31},
        teacher_sizes={"student/params": 2.27e7, "student/size_mb": 90.9},
        failed=[record("bbbb", 1, "failed", reason=CONTROL_CHARACTERS)],
        lines=[("MLflow", "mlflow ui")],
    )


SWEEP = """\
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
teacher       6  0.310    22.7  90.9        -     -      -
pid           3  0.200    10.8  43.2        -     -      -  aaaa
3 layers: 2.1x smaller, 65% of the teacher's MCC

1 failed
  #1 bbbb: [bold red]out of memory[/] :smile:

MLflow: mlflow ui
"""


def play_sharing(console: Console, now: FakeClock) -> None:
    """Show a trial that reuses seven epochs, is paused twice before the eighth, and trains the last two."""
    params = {"regime": "sid", "student_layers": 3}

    def finish(id: str, reused: float, trained: float, saved_s: float) -> None:
        metrics = {"reused_epochs": reused, "trained_epochs": trained, "time/saved_s": saved_s}
        console.trial_finished(id, metrics)

    with console.sweep(2, 1, "dev/mcc"):
        console.trial_started("aaaa", 0, params)
        now.wait(10)
        for number in range(1, 8):
            console.trial_epoch("aaaa", make_epoch(number, 10 - number, 0.0, reused_from="other"))
        console.trial_paused("aaaa")
        for _ in range(2):
            now.wait(5)
            console.trial_started("aaaa", 0, params)
            console.trial_paused("aaaa")  # the epoch is not there yet
        console.trial_started("aaaa", 0, params)
        console.trial_epoch("aaaa", make_epoch(8, 2, 0.0, reused_from="other"))
        console.trial_paused("aaaa")
        console.trial_started("aaaa", 0, params)
        for number in (9, 10):
            now.wait(12)
            console.trial_epoch("aaaa", make_epoch(number, 10 - number))
        finish("aaaa", 8.0, 2.0, 96.0)
        console.trial_started("bbbb", 1, {"regime": "kd"})
        now.wait(3)
        finish("bbbb", 0.0, 3.0, 0.0)
    summarize(console, savings=SAVINGS, lines=[("plot", "pareto.png")])


SHARING = f"""\
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

sharing: {SAVED}
plot: pareto.png
"""


@pytest.mark.parametrize(("play", "text"), [(play_sweep, SWEEP), (play_sharing, SHARING)])
def test_a_file_gets_one_line_per_event(now, play, text):
    file = io.StringIO()
    play(Console(file, now), now)
    assert re.sub(" +$", "", file.getvalue(), flags=re.MULTILINE) == text


def test_forced_colour_does_not_make_a_file_a_terminal(now, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    play_sweep(Console(file, now), now)
    assert "\x1b" not in file.getvalue()


def test_a_dumb_terminal_gets_lines(now, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    play_sweep(Console(terminal, now), now)
    assert "\x1b" not in terminal.getvalue()


def test_a_terminal_shows_the_same_events(now, terminal):
    play_sweep(Console(terminal, now), now)
    text = strip_controls(terminal.getvalue())
    for part in ("✓", "│ the corpus is GENERATED", "epoch 1/5: mcc 0.310", "Pareto front", "out of memory"):
        assert part in text
    assert "\x1b]" not in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert max(map(len, text.replace("\r", "\n").split("\n"))) <= 80


def test_a_terminal_shows_what_sharing_saved(now, terminal):
    play_sharing(Console(terminal, now), now)
    text = strip_controls(terminal.getvalue())
    assert f"sharing    {SAVED}" in text
    assert "which another trial trains" not in text  # the table shows it


def test_the_clock_runs_without_events(terminal):
    console = Console(terminal)
    with console.sweep(2, 1, "dev/mcc"):
        console.trial_started("aaaa", 0, {"regime": "pid", "student_layers": 3})
        deadline = time.monotonic() + 4
        while "0:01" not in strip_controls(terminal.getvalue()) and time.monotonic() < deadline:
            time.sleep(0.05)
    text = strip_controls(terminal.getvalue())
    assert "aaaa" in text
    assert "elapsed 0:01" in text


@pytest.mark.parametrize("block", ["step", "sweep"])
@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_an_error_in_a_block_restores_the_terminal(now, terminal, block, error, word):
    console = Console(terminal, now)
    context = console.step("teacher") if block == "step" else console.sweep(2, 1, "dev/mcc")
    with pytest.raises(error), context:
        raise error
    output = terminal.getvalue()
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0
    assert f"{word} after" in strip_controls(output)


@pytest.mark.parametrize(("error", "word"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_an_error_in_a_step_is_written_to_a_file(now, error, word):
    file = io.StringIO()
    with pytest.raises(error), Console(file, now).step("teacher"):
        raise error
    assert file.getvalue() == f"teacher ...\nteacher: {word} after 0.0 s\n"


def test_a_file_that_cannot_encode_a_character_gets_a_question_mark():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Console(file).note("data", "Größe")
    assert raw.getvalue() == b"data: Gr??e\n"


@given(st.text(st.characters(), max_size=400))
@example(CONTROL_CHARACTERS)
@example("x" * 1000)
@example("\ud800")
def test_any_reason_is_one_printable_line(reason):
    file = io.StringIO()
    console = Console(file, FakeClock())
    with console.sweep(1, 1, "dev/mcc"):
        console.trial_failed("aaaa", reason)
    start, failed, totals, end, rest = file.getvalue().split("\n")
    assert failed.startswith("[0:00] #- aaaa FAILED after 0.0 s: ")
    assert all(line.isprintable() for line in (start, failed, totals, end))
    assert len(failed) < 240
    assert rest == ""


@pytest.mark.parametrize("savings", [None, Savings(12, 12, 3, 3, 50.0, 0.0)])
def test_sharing_is_not_mentioned_where_nothing_was_shared(now, savings):
    assert "sharing" not in summary(now, savings=savings)


def test_an_empty_front_is_reported(now):
    failed = [record(f"t{n}", n, "failed", reason="boom\nbang") for n in range(30)]
    text = summary(now, failed=failed)
    assert "Pareto front: empty, no trial finished" in text
    assert text.count("boom bang\n") == 10
    assert "… and 20 more" in text


def test_the_front_shows_metrics_on_the_test_set_where_they_exist(now):
    front = [
        record("t0", 0, metrics={"dev/mcc": 0.5}),
        record("t1", 1, metrics={"dev/mcc": 0.4, "test/mcc": 0.25}),
    ]
    plain = summary(now, front=front[:1], teacher_metrics={"dev/mcc": 0.6})
    assert not re.search(r"\btest\b", plain)
    tested = summary(now, front=front, teacher_metrics={"dev/mcc": 0.6, "test/mcc": 0.35})
    assert re.search(r"^ +test +params.*\n *regime +layers +mcc ↑ +mcc +M ", tested, re.MULTILINE)
    assert re.search(r"^teacher +6 +0\.600 +0\.350 ", tested, re.MULTILINE)
    assert re.findall(r"^pid +3 +(\S+) +(\S+) ", tested, re.MULTILINE) == [("0.500", "-"), ("0.400", "0.250")]


def test_the_front_is_sorted_and_shows_every_objective(now):
    metrics = [{"dev/f1": value, "student/encoder_params": 5e6} for value in (0.1, 0.3, math.nan)]
    front = [record(f"t{n}", n, metrics=each) for n, each in enumerate(metrics)]
    text = summary(
        now,
        front=front,
        objectives={"student/encoder_params": "min", "dev/f1": "max"},
        teacher_metrics={"dev/accuracy": 0.8, "dev/f1": 0.9},
    )
    assert re.findall(r"^pid.* (\w+) *$", text, re.MULTILINE) == ["t1", "t0", "t2"]
    assert "encoder_params ↓" in text
    assert "f1 ↑" in text


def test_a_notebook_gets_facts_as_lines_and_the_rest_in_its_place(notebook_outputs, now, capsys):
    play_sweep(Console(now=now), now)
    text = capsys.readouterr().out
    assert not {"\x1b", "\r"} & {*text}
    assert "started" not in text
    assert "epoch" not in text
    assert "WARNING: the corpus is GENERATED" in text
    assert "sweep ended after 28 s: 1 finished, 1 failed of 3 trials" in text
    assert "Pareto front: 1 student" in text
    places = {output["transient"]["display_id"] for output in notebook_outputs}
    assert len(places) == 3, "two steps and the trials"
