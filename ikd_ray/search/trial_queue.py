"""The queue of a sweep's trials: which one runs next, in this run of the sweep or a later one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError

from ikd_ray.distill.epoch_cache import PendingEpoch
from ikd_ray.errors import first_line
from ikd_ray.records import TrialRecord
from ikd_ray.search.budget import Budget
from ikd_ray.search.sampler import SearchSettings, SeededSampler
from ikd_ray.search.study import StudyWriter, to_outcome


class TrialQueue:
    """The trials of a sweep in order, with those that are running or wait to run again.

    Trials of an earlier run are read from the study on disk, and how they ended from their records, so that a killed
    sweep goes on as if it had not been interrupted.
    """

    def __init__(
        self,
        sweep: Path,
        budget: Budget,
        settings: SearchSettings,
        ended: Mapping[int, TrialRecord],
        trials: int,
        stop: Callable[[str], None],
    ) -> None:
        """Open the study in the sweep's folder, or continue the one that is there.

        `ended` has the records of trials that need not run again, by number; so many `trials` are to run.
        `stop` is called with the reason when the study cannot be written; no trial follows.
        """
        self._budget, self._objectives = budget, settings.objectives
        self._study = StudyWriter(sweep, settings.objectives, budget.methods)
        self._sampler = SeededSampler(budget, settings)
        self._stop, self._is_stopped = stop, False
        self._running: dict[int, dict[str, Any]] = {}
        self._waiting: list[tuple[dict[str, Any], PendingEpoch | None]] = []
        self._num_new = trials
        for number in self._resume(ended):
            if self._num_new:
                self._num_new -= 1
                self._waiting.append((self._configure(number), None))

    def _resume(self, ended: Mapping[int, TrialRecord]) -> list[int]:
        """Take up the trials of an earlier run; return the numbers of those that were interrupted."""
        samples, interrupted = self._study.read_samples(), []
        for number in range(max([len(samples), *(number + 1 for number in ended)])):
            record, method = ended.get(number), self._budget.spec(number).method
            if number < len(samples):
                self._sampler.add(number, samples[number])
            elif record:
                self._sampler.add(number, self._budget.to_sample(method, record.params))
                self._study.append(method, self._sampler.samples[number])
            else:
                self._suggest(number)
            if record:
                self._record(number, record.metrics)
            elif number < self._budget.total:
                interrupted.append(number)
        return interrupted

    @property
    def is_finished(self) -> bool:
        """True if no trial runs or is to run any more."""
        return self._is_stopped or not (self._num_new or self._waiting or self._running)

    def next(self) -> dict[str, Any] | None:
        """Return the number, specification and parameters of the next trial; None while it must wait for others.

        A trial that runs again also has the `warnings` of its earlier runs.
        """
        if self._is_stopped:
            return None
        configuration = self._pop_waiting()
        if configuration is None:
            number = len(self._sampler.samples)
            if not self._num_new or not self._sampler.is_ready(number):
                return None
            try:
                self._suggest(number)
            except StorageInternalError as error:
                self._halt(error)
                return None
            self._num_new -= 1
            configuration = self._configure(number)
        self._running[configuration["number"]] = configuration
        return configuration

    def retry(self, number: int, warnings: list[str], pending: PendingEpoch | None = None) -> None:
        """Let a trial run again, with its warnings so far, once the epoch that it waits for is ready."""
        self._waiting.append((self._running.pop(number) | {"warnings": warnings}, pending))

    def finish(self, number: int, metrics: Mapping[str, float]) -> None:
        """Note that a trial finished with these metrics."""
        del self._running[number]
        self._record(number, metrics)

    def fail(self, number: int, final: bool = True) -> None:
        """Note that a trial failed and has a record; unless it is final, a later run of the sweep tries it again."""
        del self._running[number]
        self._record(number, {}, write=final)

    def release(self, number: int) -> None:
        """Note that a trial was interrupted; a later run of the sweep runs it again."""
        del self._running[number]

    def _pop_waiting(self) -> dict[str, Any] | None:
        for index, (configuration, pending) in enumerate(self._waiting):
            if pending is None or pending.ready():
                del self._waiting[index]
                return configuration
        return None

    def _suggest(self, number: int) -> None:
        sample = self._sampler.suggest(number)
        self._study.append(self._budget.spec(number).method, sample)

    def _configure(self, number: int) -> dict[str, Any]:
        spec = self._budget.spec(number)
        return {
            "number": number,
            "method": spec.method,
            "retrained": spec.retrain,
            "seeds": self._budget.seed_count(spec),
            "params": self._sampler.params(number),
        }

    def _record(self, number: int, metrics: Mapping[str, float], write: bool = True) -> None:
        outcome = to_outcome(metrics, self._objectives)
        self._sampler.record(number, outcome)
        if write:
            try:
                self._study.tell(number, outcome, metrics)
            except StorageInternalError as error:
                self._halt(error)

    def _halt(self, error: Exception) -> None:
        self._is_stopped = True
        self._stop(f"the study cannot be written: {first_line(error.__cause__ or error)}")
