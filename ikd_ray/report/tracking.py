"""Where MLflow is written: by the driver alone, one parent run a sweep, a nested run a trial."""

from __future__ import annotations

import logging
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ikd_ray.errors import UsageError, in_one_line
from ikd_ray.report.records import TrialRecord
from ikd_ray.report.words import clean

# MLflow reads these when it is imported. Its telemetry asks the network.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

MOST_WAITING = 1000  # calls; whoever makes more waits for the store
TAG = 1000  # characters of a tag that may grow; MLflow takes 8000

KIND = "ikd.kind"
TRIAL = "ikd.trial"
ENDED = ("FINISHED", "FAILED")  # status of a run that is whole
TEACHER_KEY = "ikd.teacher_key"


def without_password(uri: str) -> str:
    """The URI with credentials left out, fit to print and to keep."""
    parts = urlsplit(uri)
    if not parts.username and not parts.password:
        return uri
    host = parts.hostname or ""
    return urlunsplit(parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host))


def printable_command(arguments: Sequence[str]) -> str:
    """A command line as text, without the passwords of URIs in it."""
    parts = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        parts.append(flag + equals + without_password(value) if equals else without_password(argument))
    return shlex.join(parts)


class Tracker:
    """One sweep's runs in MLflow's experiment `ikd-<task>`."""

    def __init__(self, uri: str | None, task: str) -> None:
        """Opens the store: `uri`, else MLFLOW_TRACKING_URI, else MLflow's own default.

        Raises:
            UsageError: it cannot be opened.
        """
        # Imported late: it takes seconds, and a bad flag should be answered at once.
        import mlflow

        for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = uri or mlflow.get_tracking_uri()
        self.experiment = f"ikd-{task}"
        try:
            self._client = mlflow.MlflowClient(self.uri)
            found = self._client.get_experiment_by_name(self.experiment)
            self._experiment_id = (
                found.experiment_id if found else self._client.create_experiment(self.experiment)
            )
        except Exception as error:  # every store raises its own
            reason = in_one_line(error)[:200].replace(self.uri, "")
            raise UsageError(
                f"--tracking-uri {without_password(self.uri)}: no MLflow store there ({reason}); start the "
                "server, or leave the flag out for a local store"
            ) from None
        if found and found.lifecycle_stage != "active":
            raise UsageError(
                f"MLflow's experiment {self.experiment} is deleted; bring it back with "
                f"'mlflow experiments restore --experiment-id {found.experiment_id}', or choose another store"
            )
        self._runs: dict[str, str] = {}  # trial id -> run id, of the trials that run
        self._ended: set[str] = set()  # trials whose runs are whole
        self.parent = ""

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str], run_id: str = "") -> str:
        """Start the parent run, or go on with `run_id` where this store has it; returns its id."""
        self._tags = dict(tags)
        if run_id and self._has(run_id):
            self.parent = run_id
            self._client.update_run(run_id, status="RUNNING")
            self._take_stock()
        else:
            self.parent = self._create(name, {KIND: "sweep"})
            self._params(self.parent, params)
        return self.parent

    def _has(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _create(self, name: str, tags: Mapping[str, str], at: float | None = None) -> str:
        tags = {"mlflow.runName": name, **self._tags, **tags}
        run = self._client.create_run(self._experiment_id, start_time=_ms(at), run_name=name, tags=tags)
        return run.info.run_id

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])

    def _take_stock(self) -> None:
        """Note which trials have whole runs, and delete those that were cut off: such trials run again."""
        # All of them first: a store's pages shift when runs of an earlier page go.
        for run in list(self._search(f"tags.`mlflow.parentRunId` = '{self.parent}'")):
            if run.info.status in ENDED:
                self._ended.add(run.data.tags[TRIAL])
            else:
                self._client.delete_run(run.info.run_id)

    def settle(self, trials: Iterable[TrialRecord]) -> None:
        """Make sure of a whole run for each ended trial, also for one whose end the driver did not hear of."""
        for record in trials:
            if record.id in self._runs:
                self._client.delete_run(self._runs.pop(record.id))
            if record.id not in self._ended:
                self.trial_started(record.id, record.params | {"layer_map": record.layer_map})
                # The last epoch's are among the trial's own, which also have the final ones.
                for epoch, metrics in enumerate([*record.history[:-1], record.metrics], start=1):
                    self.trial_epoch(record.id, metrics, epoch)
                self.trial_reused(record.id, record.reused_from)
                self.trial_warned(record.id, record.warnings)
                status = "FINISHED" if record.status == "finished" else "FAILED"
                self.trial_ended(record.id, status, record.reason)

    def _search(self, query: str) -> Iterable[Any]:
        token = None
        while token != "":
            page = self._client.search_runs([self._experiment_id], query, page_token=token)
            yield from page
            token = page.token or ""

    def _metrics(self, run: str, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        from mlflow.entities import Metric

        values = [Metric(key, value, _ms(at), step) for key, value in metrics.items()]
        self._client.log_batch(run, metrics=values)

    def teacher(
        self,
        name: str,
        key: str,
        params: Mapping[str, Any],
        history: list[dict[str, float]],
        metrics: Mapping[str, float],
    ) -> None:
        """Record the teacher's fine-tuning, unless this store has it already."""
        if next(iter(self._search(f"tags.`{TEACHER_KEY}` = '{key}'")), None):
            return
        run = self._create(f"teacher {name}", {KIND: "teacher", TEACHER_KEY: key})
        self._params(run, params)
        for step, epoch in enumerate(history, start=1):
            self._metrics(run, epoch, step)
        # The teacher is its best epoch: its values are the run's last.
        self._metrics(run, metrics, len(history) + 1)
        self._client.set_terminated(run)

    def trial_started(self, trial: str, params: Mapping[str, Any], at: float | None = None) -> None:
        """A trial starts, or goes on after it waited for another one's epochs.

        `at`, here and below: when it happened, in seconds since 1970; now by default.
        """
        if trial in self._runs:
            return
        name = f"{trial} {params['regime']} {params['student_layers']}L"
        tags = {KIND: "trial", "mlflow.parentRunId": self.parent, TRIAL: trial}
        self._runs[trial] = self._create(name, tags, at)
        self._params(self._runs[trial], params)

    def trial_epoch(
        self, trial: str, metrics: Mapping[str, float], epoch: int, at: float | None = None
    ) -> None:
        """Metrics of the trial's `epoch`, counted from 1 over all its stages."""
        self._metrics(self._runs[trial], metrics, epoch, at)

    def trial_reused(self, trial: str, origins: Sequence[str], at: float | None = None) -> None:
        """All trials that it has taken epochs from so far, however often each."""
        self._tag(trial, "ikd.reused_from", ", ".join(sorted(set(origins))))

    def trial_warned(self, trial: str, warnings: Sequence[str], at: float | None = None) -> None:
        """All that has happened to its saved epochs so far and should not."""
        self._tag(trial, "ikd.warnings", "; ".join(warnings))

    def _tag(self, trial: str, name: str, text: str) -> None:
        if text:
            self._client.set_tag(self._runs[trial], name, clean(text, TAG))

    def trial_ended(self, trial: str, status: str, reason: str = "", at: float | None = None) -> None:
        """`status` is MLflow's: FINISHED, FAILED or KILLED. A trial that never started is left to `settle`."""
        if trial not in self._runs:
            return
        run = self._runs[trial]
        if reason:
            self._client.set_tag(run, "ikd.reason", reason)
        self._client.set_terminated(run, status=status, end_time=_ms(at))
        del self._runs[trial]
        if status in ENDED:
            self._ended.add(trial)

    def sweep_metrics(self, metrics: Mapping[str, float]) -> None:
        """Metrics of the sweep as a whole."""
        self._metrics(self.parent, metrics, 0)

    def artifact(self, path: Path) -> None:
        """Keep a file with the parent run."""
        self._client.log_artifact(self.parent, str(path))

    def finish(self, status: str) -> None:
        """End the parent run, and as KILLED the trials that still run."""
        for trial in list(self._runs):
            self.trial_ended(trial, "KILLED")
        self._client.set_terminated(self.parent, status=status)


def _ms(at: float | None) -> int:
    return int((time.time() if at is None else at) * 1000)


class Writer:
    """Makes calls in the order they come, in a thread of its own; after one that fails, none.

    So training waits for no store, however far away.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._drop = False
        self._calls: queue.Queue = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have `call(*arguments)` made, soon."""
        self._calls.put((call, arguments))

    def close(self, drop: bool = False) -> None:
        """Wait until all calls are made; or `drop` those that still wait for the store."""
        self._drop = drop
        self._calls.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._calls.get()) is not None:
            call, arguments = task
            try:
                if self.error is None and not self._drop:
                    call(*arguments)
            except Exception as error:  # every store raises its own
                self.error = error
