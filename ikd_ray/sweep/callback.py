"""Ray Tune callback that forwards trial events to the queue, MLflow, the terminal and disk."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from ikd_ray.config import make_trial
from ikd_ray.errors import first_line
from ikd_ray.formatting import MAX_REASON_CHARS, clean
from ikd_ray.records import TrialRecord, read_trial, require_sweep, trial_folder, write_trial
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.sweep.sync import SweepSync
from ikd_ray.sweep.trial_results import (
    ERROR,
    FAILED,
    MAX_FAILURES,
    PAUSED,
    REPORT,
    SPEC_FIELDS,
    STOPPED,
    trial_id,
)
from ikd_ray.terminal.console import Console
from ikd_ray.tracking.async_tracker import AsyncTracker


class SweepStoppedError(RuntimeError):
    """The machine lacks something that the sweep needs; the message says what."""


class StopRequest:
    """Interrupts the sweep, like Ctrl-C, and keeps the first reason for it."""

    reason = ""

    def __call__(self, reason: str) -> None:
        """Interrupt the main thread unless that has been done."""
        if not self.reason:
            self.reason = reason
            os.kill(os.getpid(), signal.SIGINT)


@dataclass
class _TrialState:
    """Reports that the callback has received of a trial that has not ended."""

    epoch: int = 0  # the last one
    failures: int = 0  # of its process in a row, without a new epoch in between
    origins: set[str] = field(default_factory=set)  # trials whose epochs it reused
    warnings: list[str] = field(default_factory=list)


class SweepCallback(tune.Callback):
    """Writes everything about trials that is outside the folders of finished ones."""

    def __init__(
        self,
        sweep: Path,
        layer_maps: Mapping[int, tuple[int, ...]],
        tracker: AsyncTracker,
        console: Console,
        sync: SweepSync,
        queue: TrialQueue,
        stop: StopRequest,
    ) -> None:
        self._sweep, self._layer_maps = sweep, layer_maps
        self._tracker, self._console = tracker, console
        self._sync, self._queue, self._stop = sync, queue, stop
        self._trials: dict[str, _TrialState] = defaultdict(_TrialState)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for `Tuner.restore`, which sweeps do not use.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Announce a trial that starts, or continues."""
        record = self._make_record(trial, "running")
        params = record.tracked_params
        self._tracker.start_trial(record.id, params, time.time())
        # The terminal shows only what the space names; MLflow has every parameter.
        named = (name for name in trial.config["params"] if name != "seed")
        shown = ("method", "regime", "student_layers", *named)
        self._console.trial_started(
            record.id, record.number, {name: params[name] for name in shown if name in params}
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Forward an epoch, unless a trial that was started again repeats it."""
        name, epoch = trial_id(trial.config["number"]), result.get(REPORT)
        state = self._trials[name]
        if epoch is None or epoch.epoch <= state.epoch:
            return
        state.epoch, state.failures = epoch.epoch, 0
        self._tracker.log_epoch(name, epoch.metrics, epoch.epoch, time.time())
        if epoch.reused_from and epoch.reused_from not in state.origins:
            state.origins.add(epoch.reused_from)
            self._tracker.tag_trial(name, reused_from=sorted(state.origins))
        for warning in epoch.warnings:
            self._console.warn(f"{name}: {warning}")
            state.warnings.append(warning)
            self._tracker.tag_trial(name, warnings=list(state.warnings))
        self._console.trial_epoch(name, epoch)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle the last result of a trial."""
        result, number = trial.last_result, trial.config["number"]
        if FAILED in result:
            self._fail_trial(trial, result[FAILED])
        elif ERROR in result:
            self._fail_trial(trial, result[ERROR], died=True)
        elif PAUSED in result:
            self._queue.retry(number, result[PAUSED].warnings, result[PAUSED].pending)
            self._console.trial_paused(trial_id(number))
        elif REPORT in result and result[REPORT].remaining == 0:
            self._finish_trial(number, result[REPORT].metrics)
        else:  # interrupted
            self._queue.release(number)
            if STOPPED in result:
                self._stop(f"{trial_id(number)}: {result[STOPPED]}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Handle the death of a trial's process or node; errors of the trial itself are results."""
        number, name = trial.config["number"], trial_id(trial.config["number"])
        state = self._trials[name]
        state.failures += 1
        self._sync.pull_trial(name)
        if trial_folder(self._sweep, name).exists():  # the trial had finished before
            self._finish_trial(number, read_trial(self._sweep, name).metrics)
        elif state.failures < MAX_FAILURES:
            self._queue.retry(number, state.warnings)
            self._console.trial_died(name)
        else:
            reason = f"its process died {MAX_FAILURES} times in a row: {_read_error(trial.error_file)}"
            self._fail_trial(trial, reason, died=True)

    def _finish_trial(self, number: int, metrics: dict[str, float]) -> None:
        name = trial_id(number)
        self._queue.finish(number, metrics)
        self._sync.pull_trial(name)
        self._tracker.log_trial(name)
        self._console.trial_finished(name, metrics)

    def _fail_trial(self, trial: Any, reason: str, died: bool = False) -> None:
        name = trial_id(trial.config["number"])
        state = self._trials[name]
        origins = sorted(state.origins)
        record = self._make_record(
            trial, "failed", reason=reason, died=died, reused_from=origins, warnings=state.warnings
        )
        try:
            require_sweep(self._sweep)
            write_trial(self._sweep, record)
        except OSError as error:  # the trial runs again when the sweep is resumed
            self._stop(f"{name}: {first_line(error)}")
            return
        self._sync.push_trial(name)
        self._queue.fail(record.number, final=not died)
        self._tracker.log_trial(name)
        self._console.trial_failed(name, reason)

    def _make_record(self, trial: Any, status: str, **fields: Any) -> TrialRecord:
        number, params = trial.config["number"], make_trial(trial.config["params"]).params()
        layers = list(self._layer_maps[params["student_layers"]])
        fields |= {name: trial.config[name] for name in SPEC_FIELDS}
        return TrialRecord(trial_id(number), number, params, layers, status, **fields)


def _read_error(file: str | None) -> str:
    """Return the last line of the error that Tune wrote to a file, if it did."""
    text = ""
    if file is not None:
        with suppress(OSError):
            # Ray Tune writes the file in the locale's encoding.
            text = Path(file).read_text(encoding="utf-8", errors="replace").strip()
    if "low on memory" in text:  # Ray's own last line is advice on configuring Ray
        return "the machine ran out of memory"
    return clean(text.splitlines()[-1], MAX_REASON_CHARS) if text else "the reason is unknown"
