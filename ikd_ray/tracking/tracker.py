"""Where MLflow is written: by the driver alone, one parent run a sweep, a nested run a trial."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.savings import compute_savings
from ikd_ray.errors import UsageError, first_line
from ikd_ray.formatting import clean
from ikd_ray.records import SPACE_FILE, SweepRecord, TrialRecord, num_pending, trial_name
from ikd_ray.redaction import redact_secrets, redact_uri
from ikd_ray.report.summary_files import SUMMARY_FILES
from ikd_ray.tracking.models import model_of
from ikd_ray.tracking.pages import experiment_tags

# MLflow reads these when it is imported. Its telemetry asks the network.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with its password
# Sending again what got no answer, as it does by itself, would make a run twice: `AsyncTracker` looks first.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

TAG = 1000  # characters of a tag that may grow; MLflow takes 8000

KIND = "ikd.kind"
TRIAL = "ikd.trial"
TEACHER_KEY = "ikd.teacher_key"
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}  # of databases, by default
KNOCK_S = 5
SOURCE = "sweeps/run.py"
SWEEP_ID = "ikd.sweep_id"


@dataclass
class _Run:
    """What the store has of a trial."""

    id: str
    status: str = "RUNNING"
    epochs: int = 0
    described: bool = False  # its parameters are there

    @staticmethod
    def of(run: Any) -> _Run:
        epochs = sum(run.data.metrics.get(name, 0.0) for name in ("trained_epochs", "reused_epochs"))
        return _Run(run.info.run_id, run.info.status, int(epochs), bool(run.data.params))


@dataclass(frozen=True)
class Difference:
    """Something that the store has otherwise than the records, in words."""

    what: str
    run: str = ""  # the run that has to be made anew


def _status(record: TrialRecord) -> str:
    return "FINISHED" if record.status == "finished" else "FAILED"


class Tracker:
    """One sweep's runs in MLflow's experiment `ikd-<task>`."""

    def __init__(self, uri: str | None, task: str) -> None:
        """Opens the store: `uri`, else MLFLOW_TRACKING_URI, else MLflow's own default.

        Raises:
            UsageError: it cannot be opened.
        """
        # Imported late: it takes seconds, and a bad flag should be answered at once.
        import mlflow

        for name in ("mlflow", "alembic", "mlflow.store.db.utils", "psycopg"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.uri = uri or mlflow.get_tracking_uri()
        self.experiment = f"ikd-{task}"
        try:
            _knock(self.uri)
            self.client = mlflow.MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(self.experiment)
            self.experiment_id = (
                found.experiment_id if found else self.client.create_experiment(self.experiment)
            )
        except Exception as error:  # every store raises its own
            raise UsageError(
                f"--tracking-uri {redact_uri(self.uri)}: no MLflow store there ({self.redact_error(error)}); start the "
                "server, or leave the flag out for a local store"
            ) from None
        if found and found.lifecycle_stage != "active":
            raise UsageError(
                f"MLflow's experiment {self.experiment} is deleted; bring it back with "
                f"'mlflow experiments restore --experiment-id {found.experiment_id}', or choose another store"
            )
        self._runs: dict[str, _Run] = {}  # by trial
        self.parent = ""

    def redact_error(self, error: Exception) -> str:
        """What a store's exception says, in a line, without any password."""
        return redact_secrets(first_line(error), self.uri)[:200]

    def start(self, sweep: SweepRecord) -> None:
        """Start the sweep's parent run, or go on with the one that this store has."""
        self._tags = {
            "ikd.task": sweep.task,
            "ikd.data_source": sweep.data["source"],
            "ikd.data": sweep.data["description"],
            "ikd.generated": str(sweep.data["generated"]).lower(),
            "ikd.teacher": sweep.teacher["name"],
            "ikd.code_version": sweep.code_version,
            "ikd.sweep": sweep.name,
            SWEEP_ID: sweep.settings["id"],
            "mlflow.source.name": SOURCE,
            "mlflow.source.type": "LOCAL",
        }
        for key, value in experiment_tags(sweep).items():
            self.client.set_experiment_tag(self.experiment_id, key, value)
        self.parent = self.parent_of(sweep) or self._create(sweep.name, {KIND: "sweep"})
        run = self.client.get_run(self.parent)
        if not run.data.params:
            space = Path(sweep.settings["space"]).name
            params = {"task": sweep.task, "seed": sweep.seed, "space": space, "trials": sweep.trials}
            self._params(self.parent, params)
        if run.info.status != "RUNNING":
            self.client.update_run(self.parent, status="RUNNING")
        self.take_stock()

    def parent_of(self, sweep: SweepRecord) -> str:
        known = sweep.settings.get("run_id")  # of sweeps that had no id yet
        if known and self._has(known):
            return known
        query = f"tags.`{SWEEP_ID}` = '{sweep.settings.get('id')}' and tags.`{KIND}` = 'sweep'"
        return next((run.info.run_id for run in self.search(query)), "")

    def _has(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            return False

    def _create(self, name: str, tags: Mapping[str, str], at: float | None = None) -> str:
        tags = {"mlflow.runName": name, **self._tags, **tags}
        run = self.client.create_run(self.experiment_id, start_time=_ms(at), run_name=name, tags=tags)
        return run.info.run_id

    def _params(self, run: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run, params=[Param(key, str(value)) for key, value in params.items()])

    def take_stock(self) -> None:
        """See what the store has of the sweep's trials: after a break nobody knows which call came through."""
        self._runs = {}
        if not self.parent:
            self.client.get_experiment(self.experiment_id)  # raises where nobody answers
            return
        for run in list(self.search(f"tags.`mlflow.parentRunId` = '{self.parent}'")):
            trial, found = run.data.tags[TRIAL], _Run.of(run)
            other = self._runs.setdefault(trial, found)
            if other is not found:  # two were created for one: the one that has less goes
                less, self._runs[trial] = sorted((other, found), key=lambda one: one.epochs)
                self.client.delete_run(less.id)

    def inspect(self, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> list[Difference]:
        """What the store has otherwise than the trials' records, or not at all."""
        self.parent, found = self.parent_of(sweep), []
        if not self.parent:
            return [Difference("the sweep had no run")]
        records, seen = {record.id: record for record in trials}, set()
        best = {trial.id for trial in pareto_front(trials, sweep.objectives)}
        for run in list(self.search(f"tags.`mlflow.parentRunId` = '{self.parent}'")):
            trial, run_id = run.data.tags[TRIAL], run.info.run_id
            if trial in seen:
                found.append(Difference(f"{trial} had more than one run"))
            elif trial not in records:
                if run.info.status != "KILLED":
                    found.append(Difference(f"{trial} was {run.info.status}, and has no record"))
            elif run.info.status != _status(records[trial]):
                found.append(Difference(f"{trial} was {run.info.status}"))
            elif not self._has_all(run, records[trial]):
                found.append(Difference(f"{trial} had not the metrics of its record, each once", run_id))
            elif trial in best and not model_of(run):
                found.append(Difference(f"{trial} is on the front, and its run had no model"))
            seen.add(trial)
        found += [Difference(f"{trial} had no run") for trial in records if trial not in seen]
        status = self.client.get_run(self.parent).info.status
        if status != self.outcome(sweep, trials):
            found.append(Difference(f"the sweep was {status}"))
        return found

    def _has_all(self, run: Any, record: TrialRecord) -> bool:
        if any(run.data.metrics.get(name) != value for name, value in record.metrics.items()):
            return False
        stages = self.client.get_metric_history(run.info.run_id, "stage") if record.history else []
        return sorted(stage.step for stage in stages) == list(range(1, len(record.history) + 1))

    def give_up(self, difference: Difference) -> None:
        """Delete a run that cannot be mended, as MLflow does: `mlflow gc` alone removes it."""
        if difference.run:
            self.client.delete_run(difference.run)

    def settle(self, record: TrialRecord) -> None:
        """Make sure of a whole run for a trial that has ended."""
        status, run = _status(record), self._runs.get(record.id)
        if run and run.status == status and run.epochs >= len(record.history):
            return
        # Earlier versions kept none.
        times: Sequence[float | None] = record.times or [None] * len(record.history)
        self.trial_started(record.id, record.tracked_params, times[0] if times else None)
        # The last epoch's are among the trial's own, which also have the final ones.
        epochs = [*record.history[:-1], record.metrics] if record.history else []
        for epoch, (metrics, at) in enumerate(zip(epochs, times, strict=True), start=1):
            self.trial_epoch(record.id, metrics, epoch, at)
        self.trial_reused(record.id, record.reused_from)
        self.trial_warned(record.id, record.warnings)
        self._end(record.id, status, record.reason, times[-1] if times else None)

    def search(self, query: str) -> Iterable[Any]:
        token = None
        while token != "":
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            yield from page
            token = page.token or ""

    def _metrics(self, run: str, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        from mlflow.entities import Metric

        values = [Metric(key, value, _ms(at), step) for key, value in metrics.items()]
        self.client.log_batch(run, metrics=values)

    def teacher(
        self,
        name: str,
        key: str,
        params: Mapping[str, Any],
        history: list[dict[str, float]],
        metrics: Mapping[str, float],
        kind: str = "teacher",
    ) -> None:
        """Record the teacher's fine-tuning, or an assistant's distillation, unless this store has it already."""
        run = next(iter(self.search(f"tags.`{TEACHER_KEY}` = '{key}'")), None)
        if run and run.info.status == "FINISHED":
            return
        if run is None:
            run = self.client.get_run(self._create(f"{kind} {name}", {KIND: kind, TEACHER_KEY: key}))
        # One time for all: who does this again, after a break, or at the same time, writes the same rows.
        identity, at = run.info.run_id, run.info.start_time / 1000
        self._params(identity, params)
        # The teacher is its best epoch: its values are the run's last.
        for step, epoch in enumerate([*history, metrics], start=1):
            self._metrics(identity, epoch, step, at)
        self.client.set_terminated(identity)

    def trial_started(self, trial: str, params: Mapping[str, Any], at: float | None = None) -> None:
        """A trial starts, or goes on.

        `at`, here and below: when it happened, in seconds since 1970; now by default.
        """
        run = self._runs.get(trial)
        if run is None:
            if not self.parent:
                raise LookupError("the sweep has no run yet")
            tags = {KIND: "trial", "mlflow.parentRunId": self.parent, TRIAL: trial}
            run = self._runs[trial] = _Run(self._create(trial_name(trial, params), tags, at))
        if not run.described:
            self._params(run.id, params)
            run.described = True
        if run.status != "RUNNING":
            self.client.update_run(run.id, status="RUNNING")
            run.status = "RUNNING"

    def trial_epoch(
        self, trial: str, metrics: Mapping[str, float], epoch: int, at: float | None = None
    ) -> None:
        """Metrics of the trial's `epoch`, counted from 1 over all its stages, unless its run has them."""
        run = self._runs[trial]
        if epoch > run.epochs:
            self._metrics(run.id, metrics, epoch, at)
            run.epochs = epoch

    def trial_reused(self, trial: str, origins: Sequence[str]) -> None:
        """All trials that it has taken epochs from so far, however often each."""
        self._tag(trial, "ikd.reused_from", ", ".join(sorted(set(origins))))

    def trial_warned(self, trial: str, warnings: Sequence[str]) -> None:
        """All that has happened to its saved epochs so far and should not."""
        self._tag(trial, "ikd.warnings", "; ".join(warnings))

    def _tag(self, trial: str, name: str, text: str) -> None:
        if text:
            self.client.set_tag(self._runs[trial].id, name, clean(text, TAG))

    def _end(self, trial: str, status: str, reason: str = "", at: float | None = None) -> None:
        run = self._runs[trial]
        if reason:
            self.client.set_tag(run.id, "ikd.reason", clean(reason, TAG))
        self.client.set_terminated(run.id, status=status, end_time=_ms(at))
        run.status = status

    def conclude(self, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
        """All that there is to tell of a sweep that has come to an end, or to a halt; what is told already stays."""
        for trial in trials:
            self.settle(trial)
        self._metrics(self.parent, compute_savings(trials).metrics(), 0)
        for path in (folder / name for name in (*SUMMARY_FILES, SPACE_FILE)):
            if path.is_file():
                self.client.log_artifact(self.parent, str(path))
        self.finish(self.outcome(sweep, trials))

    @staticmethod
    def outcome(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> str:
        """The status that the parent's run ends with."""
        if num_pending(sweep.trials, trials):
            return "KILLED"
        return "FINISHED" if pareto_front(trials, sweep.objectives) else "FAILED"

    def finish(self, status: str) -> None:
        """End the parent run, and as KILLED the trials that have not ended."""
        for trial, run in self._runs.items():
            if run.status == "RUNNING":
                self._end(trial, "KILLED")
        self.client.set_terminated(self.parent, status=status)


def _knock(uri: str) -> None:
    """Raises OSError where no database answers; MLflow would go on asking for minutes."""
    parts = urlsplit(uri)
    port = PORTS.get(parts.scheme.partition("+")[0])
    if port and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), timeout=KNOCK_S).close()


def _ms(at: float | None) -> int:
    return int((time.time() if at is None else at) * 1000)
