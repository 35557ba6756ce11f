"""The driver's ear: what Tune hears of trials goes to MLflow, to the console and, for failures, to disk."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from ikd_ray.config import make_trial
from ikd_ray.errors import in_one_line
from ikd_ray.report.console import Console
from ikd_ray.report.records import TrialRecord, read_trial, trial_folder, write_trial
from ikd_ray.report.tracking import Tracker, Writer
from ikd_ray.sweep.results import FAILED, REPORT, WAITS, trial_id


class SweepCallback(tune.Callback):
    """One writer for everything outside the trials' own folders."""

    def __init__(
        self,
        sweep: Path,
        layer_maps: Mapping[int, tuple[int, ...]],
        tracker: Tracker,
        console: Console,
        stop: Callable[[], None],
    ) -> None:
        """`stop` is called on Ctrl-C."""
        self._sweep, self._layer_maps = sweep, layer_maps
        self._tracker, self._console = tracker, console
        self._writer, self._stop = Writer(), stop
        self._warned = False
        self._origins: dict[str, set[str]] = defaultdict(set)  # trial -> the trials whose epochs it took
        self._warnings: dict[str, list[str]] = defaultdict(list)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for `Tuner.restore`, which sweeps do not go on by.
        return {}

    def setup(self, **info: Any) -> None:
        """Listen to Ctrl-C beside Tune, which by now does."""
        tunes = signal.getsignal(signal.SIGINT)

        def listen(number: int, frame: Any) -> None:
            self._stop()
            if callable(tunes):
                tunes(number, frame)

        signal.signal(signal.SIGINT, listen)

    def close(self, interrupted: bool = False) -> None:
        """Have everything written that is still to write; where the user waits for the end, `Tracker.settle` does."""
        self._writer.close(drop=interrupted)
        self._warn()

    def _track(self, write: Callable[..., None], *arguments: Any) -> None:
        """Training goes on without its tracker; from the first failure on, `Tracker.settle` has all to catch up."""
        self._writer.put(partial(write, at=time.time()), *arguments)
        self._warn()

    def _warn(self) -> None:
        if self._writer.error and not self._warned:
            self._warned = True
            self._console.warn(
                f"MLflow cannot be written ({in_one_line(self._writer.error)}); the sweep goes on and catches up "
                "at its end"
            )

    def _described(self, trial: Any) -> tuple[int, dict[str, Any], list[int]]:
        """A trial's number, all its parameters and its layer map."""
        params = make_trial(trial.config["params"]).params()
        return trial.config["number"], params, list(self._layer_maps[params["student_layers"]])

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number, params, layers = self._described(trial)
        self._track(self._tracker.trial_started, trial_id(number), params | {"layer_map": layers})
        # What the user did not ask for is in MLflow; the terminal is narrow.
        shown = {
            name: params[name]
            for name in ("regime", "student_layers", *trial.config["params"])
            if name != "seed"
        }
        self._console.trial_started(trial_id(number), number, shown)

    def on_trial_result(
        self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if REPORT not in result:
            return
        name, epoch = trial_id(trial.config["number"]), result[REPORT]
        self._track(self._tracker.trial_epoch, name, epoch.metrics, epoch.epoch)
        if epoch.reused_from and epoch.reused_from not in self._origins[name]:
            self._origins[name].add(epoch.reused_from)
            self._track(self._tracker.trial_reused, name, sorted(self._origins[name]))
        for warning in epoch.warnings:
            self._console.warn(f"{name}: {warning}")
            self._warnings[name].append(warning)
            self._track(self._tracker.trial_warned, name, list(self._warnings[name]))
        self._console.trial_epoch(
            name,
            epoch=epoch.epoch,
            remaining=epoch.remaining,
            stage=epoch.stage,
            stages=epoch.stages,
            stage_name=epoch.stage_name,
            metrics=epoch.metrics,
            epoch_s=epoch.metrics["time/epoch_s"] + epoch.metrics["time/evaluation_s"],
            reused=bool(epoch.reused_from),
        )

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        if FAILED in result:
            self._failed(trial, result[FAILED])
        elif WAITS in result:
            self._console.trial_waits(trial_id(trial.config["number"]))
        elif REPORT in result and result[REPORT].remaining == 0:
            self._finished(trial_id(trial.config["number"]), result[REPORT].metrics)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        name = trial_id(trial.config["number"])
        if trial_folder(self._sweep, name).exists():  # it died after it had finished
            record = read_trial(self._sweep, name)
            self._track(self._tracker.trial_epoch, name, record.metrics, len(record.history))
            self._finished(name, record.metrics)
        else:
            self._failed(trial, lines[-1])

    def _finished(self, name: str, metrics: dict[str, float]) -> None:
        self._track(self._tracker.trial_ended, name, "FINISHED")
        self._console.trial_finished(name, metrics)

    def _failed(self, trial: Any, reason: str) -> None:
        number, params, layers = self._described(trial)
        name = trial_id(number)
        told = {"reused_from": sorted(self._origins[name]), "warnings": self._warnings[name]}
        record = TrialRecord(name, number, params, layers, "failed", reason=reason, **told)
        write_trial(self._sweep, record)
        self._track(self._tracker.trial_ended, record.id, "FAILED", reason)
        self._console.trial_failed(record.id, reason)
