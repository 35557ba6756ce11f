"""The driver's ear: what Tune hears of trials goes to MLflow, to the console and, for failures, to disk."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray import tune

from ikd_ray.config import make_trial
from ikd_ray.errors import first_line
from ikd_ray.formatting import MAX_REASON_CHARS, clean
from ikd_ray.records import TrialRecord, read_trial, trial_folder, write_trial
from ikd_ray.sweep.results import FAILED, MAX_FAILURES, PAUSED, REPORT, SPEC_FIELDS, STOPPED, trial_id
from ikd_ray.sweep.searcher import OrderedSearch
from ikd_ray.sweep.sync import SweepSync
from ikd_ray.terminal.console import Console
from ikd_ray.tracking.async_tracker import AsyncTracker

OUT_OF_MEMORY = "the machine ran out of memory"


def _last_line(file: str | None) -> str:
    """Of what Tune wrote there of an error."""
    if file is not None:
        with suppress(OSError, IndexError):
            text = Path(file).read_text().strip()
            # Ray's own last line is advice on how to set Ray up.
            return (
                OUT_OF_MEMORY if "low on memory" in text else clean(text.splitlines()[-1], MAX_REASON_CHARS)
            )
    return "nobody knows why"


class SweepStoppedError(RuntimeError):
    """The machine does not let a sweep go on; the message says what it lacks."""


class StopRequest:
    """Ends the sweep, as Ctrl-C does, where the machine does not let it go on."""

    reason = ""

    def __call__(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            os.kill(os.getpid(), signal.SIGINT)


class SweepCallback(tune.Callback):
    """One writer for everything outside the trials' own folders."""

    def __init__(
        self,
        sweep: Path,
        layer_maps: Mapping[int, tuple[int, ...]],
        tracker: AsyncTracker,
        console: Console,
        sync: SweepSync,
        search: OrderedSearch,
        halt: StopRequest,
    ) -> None:
        self._sweep, self._layer_maps = sweep, layer_maps
        self._tracker, self._console = tracker, console
        self._sync, self._search, self._halt = sync, search, halt
        self._listens = signal.getsignal(signal.SIGINT)  # before Tune does
        self._heard: dict[str, int] = defaultdict(int)  # trial -> epochs
        self._deaths: dict[str, int] = defaultdict(
            int
        )  # trial -> times its process died since its last new epoch
        self._origins: dict[str, set[str]] = defaultdict(set)  # trial -> the trials whose epochs it took
        self._warnings: dict[str, list[str]] = defaultdict(list)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for `Tuner.restore`, which sweeps do not go on by.
        return {}

    def setup(self, *_: Any, **info: Any) -> None:
        """Take Ctrl-C back from Tune, which waits for each trial's running epoch, and keeps listening after its end."""
        signal.signal(signal.SIGINT, self._listens)

    def _record(self, trial: Any, status: str, **more: Any) -> TrialRecord:
        config = trial.config
        number, params = config["number"], make_trial(config["params"]).params()
        layers = list(self._layer_maps[params["student_layers"]])
        told = {name: config[name] for name in SPEC_FIELDS} | more
        return TrialRecord(trial_id(number), number, params, layers, status, **told)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record, asked = self._record(trial, "running"), trial.config["params"]
        self._tracker.put("trial_started", record.id, record.tracked_params, time.time())
        # What the user did not ask for is in MLflow; the terminal is narrow.
        shown = ("method", "regime", "student_layers", *(name for name in asked if name != "seed"))
        about = {name: record.tracked_params[name] for name in shown if name in record.tracked_params}
        self._console.trial_started(record.id, record.number, about)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name, epoch = trial_id(trial.config["number"]), result.get(REPORT)
        if epoch is None or epoch.epoch <= self._heard[name]:  # one that comes again tells all from the start
            return
        self._heard[name], self._deaths[name] = epoch.epoch, 0
        self._tracker.put("trial_epoch", name, epoch.metrics, epoch.epoch, time.time())
        if epoch.reused_from and epoch.reused_from not in self._origins[name]:
            self._origins[name].add(epoch.reused_from)
            self._tracker.put("trial_reused", name, sorted(self._origins[name]))
        for warning in epoch.warnings:
            self._console.warn(f"{name}: {warning}")
            self._warnings[name].append(warning)
            self._tracker.put("trial_warned", name, list(self._warnings[name]))
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

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result, name = trial.last_result, trial_id(trial.config["number"])
        if STOPPED in result:
            self._halt(f"{name}: {result[STOPPED]}")
        elif FAILED in result:
            self._failed(trial, result[FAILED])
        elif PAUSED in result:
            self._console.trial_waits(name)
        elif REPORT in result and result[REPORT].remaining == 0:
            self._finished(name, result[REPORT].metrics)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process died, or its machine: errors of a trial's own come as results."""
        number, name = trial.config["number"], trial_id(trial.config["number"])
        self._deaths[name] += 1
        self._sync.fetch_trial(name)
        if trial_folder(self._sweep, name).exists():  # but not before it had finished
            metrics = read_trial(self._sweep, name).metrics
            self._search.finished(number, metrics)
            self._finished(name, metrics)
        elif self._deaths[name] < MAX_FAILURES:
            self._search.retry(number, self._warnings[name])
            self._console.trial_died(name)
        else:
            reason = f"its process died {MAX_FAILURES} times in a row: {_last_line(trial.error_file)}"
            self._failed(trial, reason, died=True)

    def _finished(self, name: str, metrics: dict[str, float]) -> None:
        self._sync.fetch_trial(name)
        self._tracker.settle(name)
        self._console.trial_finished(name, metrics)

    def _failed(self, trial: Any, reason: str, died: bool = False) -> None:
        name = trial_id(trial.config["number"])
        origins, warnings = sorted(self._origins[name]), self._warnings[name]
        record = self._record(
            trial, "failed", reason=reason, died=died, reused_from=origins, warnings=warnings
        )
        try:
            write_trial(self._sweep, record)
        except OSError as error:  # it runs again when the sweep goes on
            self._halt(f"{name}: {first_line(error)}")
            return
        self._sync.push_trial(name)
        self._search.fail(record.number, final=not died)
        self._tracker.settle(name)
        self._console.trial_failed(name, reason)
