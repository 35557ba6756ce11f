"""The driver's ear, with a tracker that fails."""

from __future__ import annotations

import io
from types import SimpleNamespace

from ikd_ray.distill.loop import Epoch
from ikd_ray.report.console import Console
from ikd_ray.report.records import read_trials
from ikd_ray.sweep.driver import SweepCallback
from ikd_ray.sweep.results import FAILED, REPORT


class DeafTracker:
    """A store that takes a trial's start, and nothing after it."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def trial_started(self, name, params, at) -> None:
        self.started.append(name)

    def trial_epoch(self, *arguments, at) -> None:
        raise OSError("disk full")

    trial_ended = trial_epoch


def tune_trial(number: int, result: dict) -> SimpleNamespace:
    params = {"regime": "kd", "student_layers": 1}
    return SimpleNamespace(config={"number": number, "params": params}, last_result=result)


def test_a_store_that_fails_is_told_of_once_and_trials_go_on(tmp_path):
    metrics = {"dev/mcc": 0.5, "time/epoch_s": 1.0, "time/evaluation_s": 0.1}
    result = {REPORT: Epoch(1, 0, 1, 1, "C", metrics)}
    text, tracker = io.StringIO(), DeafTracker()
    console = Console(text)
    with console.sweep(3, 1, "dev/mcc"):
        callback = SweepCallback(tmp_path, {1: (2,)}, tracker, console, stop=lambda: None)
        for number in range(2):
            trial = tune_trial(number, result)
            callback.on_trial_start(0, [], trial)
            callback.on_trial_result(0, [], trial, result)
            callback.on_trial_complete(0, [], trial)
        trial = tune_trial(2, {FAILED: "loss became nan"})
        callback.on_trial_start(0, [], trial)
        callback.on_trial_complete(0, [], trial)
        callback.close()
    assert tracker.started == ["t000"]
    assert text.getvalue().count("MLflow cannot be written (disk full)") == 1
    assert "2 finished, 1 failed of 3 trials" in text.getvalue()
    assert [(trial.status, trial.reason) for trial in read_trials(tmp_path)] == [
        ("failed", "loss became nan")
    ]
