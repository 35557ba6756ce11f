"""Ray Tune callback: trials that finish, fail, or lose their process."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from ikd_ray.distill.epoch_cache import PendingEpoch
from ikd_ray.records import SWEEP_FILE, TrialRecord, read_trials, write_trial
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep import callback
from ikd_ray.sweep.callback import SweepCallback
from ikd_ray.sweep.sync import SweepSync
from ikd_ray.sweep.trial_results import ERROR, FAILED, MAX_FAILURES, PAUSED, REPORT, STOPPED, Paused
from ikd_ray.terminal.console import Console
from tests.helpers.terminal import make_epoch

PARAMS = {"regime": "kd", "student_layers": 1}


class Sweep(SimpleNamespace):
    """A callback whose tracker and search only record their calls."""

    def send(self, event: str, number: int = 0, **result: object) -> None:
        (self.folder / "error.txt").write_text("Failure # 1\n\nThe worker died.\n")
        trial = SimpleNamespace(
            config={"number": number, "method": "", "retrained": False, "seeds": 1, "params": PARAMS},
            last_result=result,
            error_file=str(self.folder / "error.txt"),
        )
        getattr(self.callback, f"on_trial_{event}")(0, [], trial, **({"result": result} if result else {}))

    def send_epoch(self, epoch: int, remaining: int) -> None:
        report = {REPORT: make_epoch(epoch, remaining)}
        self.send("result", **report)
        if not remaining:
            self.send("complete", **report)

    def tracked(self) -> list[tuple[str, str]]:
        """Return the name and the trial of every call to the tracker."""
        return [(name, arguments[0]) for name, arguments, _ in self.tracker.mock_calls]

    def searched(self) -> list[tuple]:
        """Return every call to the search, as name and arguments."""
        return [(name, *arguments, *named.values()) for name, arguments, named in self.search.mock_calls]


@pytest.fixture
def sweep(tmp_path):
    text, tracker, search, stops = io.StringIO(), Mock(), Mock(), []
    (tmp_path / SWEEP_FILE).touch()
    console = Console(text)
    with console.sweep(3, 1, "dev/mcc"):
        sync = SweepSync(SharedStorage(str(tmp_path.parent)), tmp_path, console.warn)
        callback = SweepCallback(tmp_path, {1: (2,)}, tracker, console, sync, search, stops.append)
        yield Sweep(
            callback=callback,
            tracker=tracker,
            search=search,
            stops=stops,
            folder=tmp_path,
            text=text.getvalue,
        )


def test_a_finished_trial_is_logged_from_its_record(sweep):
    sweep.send("start")
    sweep.send_epoch(1, remaining=0)
    assert sweep.tracked() == [("start_trial", "t000"), ("log_epoch", "t000"), ("log_trial", "t000")]
    assert sweep.searched() == [("finish", 0, make_epoch(1, 0).metrics)]
    assert "finished in" in sweep.text()


PENDING = PendingEpoch(Path("state"), Path("lock"))


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({PAUSED: Paused(PENDING, ["a warning"])}, ("retry", 0, ["a warning"], PENDING)),
        ({REPORT: make_epoch(1, remaining=3)}, ("release", 0)),
        ({STOPPED: "no space left"}, ("release", 0)),
        ({}, ("release", 0)),
    ],
)
def test_a_trial_that_ends_early_runs_again(sweep, result, told):
    sweep.send("start")
    sweep.send("complete", **result)
    assert sweep.searched() == [told]
    assert not read_trials(sweep.folder)


def test_a_failed_trial_is_recorded_before_the_search_learns_of_it(sweep):
    sweep.send("start")
    sweep.send("complete", **{FAILED: "loss became nan"})
    [trial] = read_trials(sweep.folder)
    assert (trial.status, trial.reason, trial.died) == ("failed", "loss became nan", False)
    assert sweep.searched() == [("fail", 0, True)]
    assert sweep.tracked()[-1] == ("log_trial", "t000")


def test_an_unexpected_error_fails_a_trial_until_the_sweep_is_resumed(sweep):
    sweep.send("start")
    sweep.send("complete", **{ERROR: "RuntimeError: too many open files"})
    [trial] = read_trials(sweep.folder)
    assert (trial.status, trial.died) == ("failed", True)
    assert sweep.searched() == [("fail", 0, False)]


def test_a_deleted_sweep_is_stopped_and_not_created_in_part(sweep):
    (sweep.folder / SWEEP_FILE).unlink()
    sweep.send("start")
    sweep.send("complete", **{FAILED: "loss became nan"})
    assert sweep.stops == [f"t000: [Errno 2] deleted while the sweep ran: '{sweep.folder}'"]
    assert not (sweep.folder / "trials").exists()


def test_a_trial_whose_process_died_is_retried_and_logs_no_epoch_twice(sweep):
    sweep.send("start")
    sweep.send_epoch(1, remaining=2)
    sweep.send("error")
    assert sweep.searched() == [("retry", 0, [])]
    assert "its process died" in sweep.text()
    assert "goes on after epoch 1" in sweep.text()
    sweep.send("start")
    for epoch in (1, 2, 3):
        sweep.send_epoch(epoch, remaining=3 - epoch)
    assert [call.args[2] for call in sweep.tracker.log_epoch.mock_calls] == [1, 2, 3]
    assert not read_trials(sweep.folder)


def test_a_trial_fails_after_too_many_deaths_without_a_new_epoch(sweep):
    for _ in range(MAX_FAILURES - 1):
        sweep.send("start")
        sweep.send("error")
    sweep.send_epoch(1, remaining=2)  # progress resets the count
    for _ in range(MAX_FAILURES):
        assert not read_trials(sweep.folder)
        sweep.send("start")
        sweep.send("error")
    [trial] = read_trials(sweep.folder)
    assert (trial.status, trial.died) == ("failed", True)
    assert trial.reason == "its process died 3 times in a row: The worker died."
    assert sweep.searched()[-1] == ("fail", 0, False)


def test_a_trial_that_finished_before_its_process_died_counts_as_finished(sweep):
    metrics = {"dev/mcc": 0.5, "time/saved_s": 0.0}
    write_trial(sweep.folder, TrialRecord("t000", 0, PARAMS, [2], "finished", metrics=metrics))
    sweep.send("start")
    sweep.send("error")
    assert sweep.searched() == [("finish", 0, metrics)]
    assert sweep.tracked()[-1] == ("log_trial", "t000")


def test_a_full_disk_stops_the_sweep_and_fails_no_trial(sweep, monkeypatch):
    sweep.send("start")
    sweep.send("complete", **{STOPPED: "[Errno 28] No space left on device: '/x'"})
    assert sweep.stops == ["t000: [Errno 28] No space left on device: '/x'"]
    monkeypatch.setattr(callback, "write_trial", Mock(side_effect=OSError(28, "No space left on device")))
    sweep.send("start", 1)
    sweep.send("complete", 1, **{FAILED: "loss became nan"})
    assert sweep.stops[1] == "t001: [Errno 28] No space left on device"
    assert not read_trials(sweep.folder)
    assert sweep.searched() == [("release", 0)]
