"""The driver's ear: what becomes of trials that end well, badly, or with their process."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from ikd_ray.distill.loop import Epoch
from ikd_ray.records import TrialRecord, read_trials, write_trial
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep import callback
from ikd_ray.sweep.callback import SweepCallback
from ikd_ray.sweep.results import FAILED, REPORT, STOPPED
from ikd_ray.sweep.sync import SweepSync
from ikd_ray.terminal.console import Console

PARAMS = {"regime": "kd", "student_layers": 1}


class Recorder:
    """Writes down every call made to it."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        return lambda *arguments, **named: self.calls.append((name, *arguments, *named.values()))


class Sweep(SimpleNamespace):
    def hear(self, event: str, number: int = 0, **result: object) -> None:
        (self.folder / "error.txt").write_text("Failure # 1\n\nThe worker died.\n")
        trial = SimpleNamespace(
            config={"number": number, "method": "", "retrained": False, "seeds": 1, "params": PARAMS},
            last_result=result,
            error_file=str(self.folder / "error.txt"),
        )
        getattr(self.callback, f"on_trial_{event}")(0, [], trial, **({"result": result} if result else {}))

    def epoch(self, epoch: int, remaining: int, number: int = 0) -> None:
        metrics = {"dev/mcc": 0.5, "time/epoch_s": 1.0, "time/evaluation_s": 0.1, "time/saved_s": 0.0}
        report = {REPORT: Epoch(epoch, remaining, 1, 1, "C", metrics)}
        self.hear("result", number, **report)
        if not remaining:
            self.hear("complete", number, **report)

    def tracked(self) -> list[tuple]:
        return [call[:2] for call in self.tracker.calls]


@pytest.fixture
def sweep(tmp_path):
    text, tracker, search, halts = io.StringIO(), Recorder(), Recorder(), []
    console = Console(text)
    with console.sweep(3, 1, "dev/mcc"):
        sync = SweepSync(SharedStorage(str(tmp_path.parent)), tmp_path, console.warn)
        callback = SweepCallback(tmp_path, {1: (2,)}, tracker, console, sync, search, halts.append)
        yield Sweep(
            callback=callback,
            tracker=tracker,
            search=search,
            halts=halts,
            folder=tmp_path,
            text=text.getvalue,
        )


def test_a_finished_trial_is_settled_from_its_record(sweep):
    sweep.hear("start")
    sweep.epoch(1, remaining=0)
    assert sweep.tracked() == [("start_trial", "t000"), ("log_epoch", "t000"), ("log_trial", "t000")]
    assert "finished in" in sweep.text()


def test_a_failed_trial_is_recorded_before_anyone_is_told(sweep):
    sweep.hear("start")
    sweep.hear("complete", **{FAILED: "loss became nan"})
    [trial] = read_trials(sweep.folder)
    assert (trial.status, trial.reason, trial.died) == ("failed", "loss became nan", False)
    assert sweep.search.calls == [("fail", 0, True)]
    assert sweep.tracked()[-1] == ("log_trial", "t000")


def test_a_trial_whose_process_died_goes_on_after_what_was_heard_of_it(sweep):
    sweep.hear("start")
    sweep.epoch(1, remaining=2)
    sweep.hear("error")
    assert sweep.search.calls == [("retry", 0, [])]
    assert "its process died" in sweep.text()
    assert "goes on after epoch 1" in sweep.text()
    sweep.hear("start")
    for epoch in (1, 2, 3):
        sweep.epoch(epoch, remaining=3 - epoch)
    messages = [call[3] for call in sweep.tracker.calls if call[0] == "log_epoch"]
    assert messages == [1, 2, 3], "nothing twice"
    assert not read_trials(sweep.folder)


def test_a_trial_whose_process_dies_again_and_again_fails_for_now(sweep):
    for _ in range(callback.MAX_FAILURES - 1):
        sweep.hear("start")
        sweep.hear("error")
    sweep.epoch(1, remaining=2)  # it has come further: that counts
    for _ in range(callback.MAX_FAILURES):
        assert not read_trials(sweep.folder)
        sweep.hear("start")
        sweep.hear("error")
    [trial] = read_trials(sweep.folder)
    assert (trial.status, trial.died) == ("failed", True)
    assert trial.reason == "its process died 3 times in a row: The worker died."
    assert sweep.search.calls[-1] == ("fail", 0, False)


def test_a_trial_that_had_finished_when_its_process_died_has_finished(sweep):
    metrics = {"dev/mcc": 0.5, "time/saved_s": 0.0}
    write_trial(sweep.folder, TrialRecord("t000", 0, PARAMS, [2], "finished", metrics=metrics))
    sweep.hear("start")
    sweep.hear("error")
    assert sweep.search.calls == [("finished", 0, metrics)]
    assert sweep.tracked()[-1] == ("log_trial", "t000")


def test_a_full_disk_halts_the_sweep_and_fails_no_trial(sweep, monkeypatch):
    sweep.hear("start")
    sweep.hear("complete", **{STOPPED: "[Errno 28] No space left on device: '/x'"})
    assert sweep.halts == ["t000: [Errno 28] No space left on device: '/x'"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callback, "write_trial", full)
    sweep.hear("start", 1)
    sweep.hear("complete", 1, **{FAILED: "loss became nan"})
    assert sweep.halts[1] == "t001: [Errno 28] No space left on device"
    assert not read_trials(sweep.folder)
    assert not sweep.search.calls
