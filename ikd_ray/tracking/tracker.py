"""Write a sweep to MLflow: a parent run per sweep, a nested run per trial, a run for each teacher."""

from __future__ import annotations

import itertools
import shlex
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ikd_ray.analysis.objectives import dev_metric, main_metric
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.training_costs import compute_savings
from ikd_ray.errors import StoreError, UsageError
from ikd_ray.formatting import clean, shorten_paths
from ikd_ray.records import SPACE_FILE, SweepRecord, TrialRecord, metrics_on_test, trial_name
from ikd_ray.redaction import redact_uri
from ikd_ray.report.summary_files import SUMMARY_FILES
from ikd_ray.tracking import mlflow_internals as internals
from ikd_ray.tracking.champion import choose_champion, headline_metrics
from ikd_ray.tracking.dataset import dataset_input
from ikd_ray.tracking.local_store import (
    absolute_uri,
    describe_refusal,
    require_writable_artifacts,
    require_writable_store,
)
from ikd_ray.tracking.mlflow_internals import SavedView
from ikd_ray.tracking.store_client import StoreClient, process_lock, redact_error

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Experiment, Metric, Param, Run, RunTag

    from ikd_ray.distill.teacher import TeacherRecord

KIND = "ikd.kind"  # sweep, trial, teacher or assistant
TRIAL = "ikd.trial"
TEACHER_KEY = "ikd.teacher_key"
SWEEP_ID = "ikd.sweep_id"
FRONT, CHAMPION = "ikd.front", "ikd.champion"
IDENTITY = (
    KIND,
    TRIAL,
    internals.PARENT_RUN_ID,
    TEACHER_KEY,
    SWEEP_ID,
)  # tags that tell a run from all others

VIEW_METRICS = ("student/params", "student/latency_ms", "dev/attention_kl", "dev/teacher_agreement")
VIEW_PARAMS = ("regime", "student_layers", "temperature", "lambda", "learning_rate", "soft_labels")

UI_ADDRESS = "http://127.0.0.1:5000"  # of `mlflow ui`, unless it is given another one
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_TIMEOUT_S = 5


@dataclass
class _TrialRun:
    """State of a trial's run in the store."""

    run_id: str
    status: str = "RUNNING"
    epochs: int = 0
    has_params: bool = False


class Tracker:
    """Writer of a sweep's runs in the MLflow experiment `ikd-<task>`.

    Every method may be repeated: what the store has already is not written again.

    Attributes:
        uri: URI of the store, with its password if it has one, the same from any working folder.
        client: MLflow client of the store.
        parent_run_id: Run of the sweep; empty before `start_sweep`.
    """

    def __init__(self, uri: str | None, task: str) -> None:
        """Open the store `uri`; None stands for MLFLOW_TRACKING_URI, else MLflow's default.

        Raises:
            UsageError: the store cannot be opened or written, or the experiment is deleted.
        """
        self.uri = absolute_uri(uri or internals.import_mlflow().get_tracking_uri())
        self.experiment_name = f"ikd-{task}"
        self.parent_run_id = ""
        self._tags: dict[str, str] = {}  # of every run of the sweep
        self._inputs: list[DatasetInput] = []  # of the sweep's and every trial's run
        self._runs: dict[str, _TrialRun] = {}  # trial id -> its run
        require_writable_store(uri, self.uri)
        try:
            _check_server(self.uri)
            self.client = StoreClient(self.uri)
            experiment = self._open_experiment()
        except (StoreError, OSError) as error:
            raise UsageError(describe_refusal(uri, self.uri, self.redact_error(error))) from None
        self.experiment_id = experiment.experiment_id
        require_writable_artifacts(experiment.artifact_location)
        if experiment.lifecycle_stage != "active":
            store = shlex.quote(redact_uri(self.uri))
            raise UsageError(
                f"MLflow's experiment {self.experiment_name} is deleted; choose another store, or bring it back with: "
                f"MLFLOW_TRACKING_URI={store} mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )

    @property
    def students_link(self) -> str:
        """Link to the saved view of the sweep's students; empty where the store has no page of MLflow's.

        For a database it is that of `mlflow ui`, which serves it at its default address.
        """
        scheme = urlsplit(self.uri).scheme.partition("+")[0]
        if scheme not in ("http", "https", "sqlite", *DATABASE_PORTS):
            return ""
        server = redact_uri(self.uri).rstrip("/") if scheme.startswith("http") else UI_ADDRESS
        return f"{server}/{internals.students_page(self.experiment_id)}"

    def redact_error(self, error: Exception) -> str:
        """Return the first line of an exception without passwords."""
        return redact_error(error, self.uri)

    def start_sweep(self, sweep: SweepRecord) -> None:
        """Create the sweep's parent run, or reopen the one that the store has."""
        self._tags = {
            "ikd.task": sweep.task,
            "ikd.data_source": sweep.data["source"],
            "ikd.data": sweep.data["description"],
            "ikd.generated": str(sweep.data["generated"]).lower(),
            "ikd.teacher": sweep.teacher["name"],
            "ikd.code_version": sweep.code_version,
            "ikd.sweep": sweep.name,
            SWEEP_ID: sweep.settings["id"],
            internals.SOURCE_NAME: "ikd run",
            internals.SOURCE_TYPE: "LOCAL",
        }
        self._inputs = [dataset_input(sweep)]
        for key, value in internals.experiment_tags(students_view(sweep)).items():
            self.client.set_experiment_tag(self.experiment_id, key, value)
        self.parent_run_id = self.find_parent_run(sweep) or self._create_run(sweep.name, {KIND: "sweep"})
        run = self.client.get_run(self.parent_run_id)
        if not run.data.params:
            space = Path(sweep.settings["space"]).name
            params = {"task": sweep.task, "seed": sweep.seed, "space": space}
            if minutes := sweep.settings.get("minutes"):
                params["minutes"] = minutes
            if not sweep.is_open_ended:
                params["trials"] = sweep.trials
            self.client.log_batch(self.parent_run_id, params=_param_rows(params))
        self.client.log_inputs(self.parent_run_id, self._inputs)
        if run.info.status != "RUNNING":
            self.client.update_run(self.parent_run_id, status="RUNNING")
        self.refresh_runs()

    def find_parent_run(self, sweep: SweepRecord) -> str:
        """Return the id of the sweep's run, or an empty string if the store has none."""
        run_id = sweep.settings.get("run_id")  # of sweeps that have no id of their own
        if run_id and self._is_active(run_id):
            return run_id
        query = f"tags.`{SWEEP_ID}` = '{sweep.settings.get('id')}' and tags.`{KIND}` = 'sweep'"
        return next((run.info.run_id for run in self._search_runs(query)), "")

    def find_trial_runs(self, parent_run_id: str) -> list[Run]:
        """Return the trials' runs nested under a sweep's run."""
        return self._search_runs(f"tags.`{internals.PARENT_RUN_ID}` = '{parent_run_id}'")

    def refresh_runs(self) -> None:
        """Read from the store which trials and epochs it has, after calls whose outcome is unknown.

        Of two runs of one trial, whose creation was repeated after a lost answer, the shorter one is deleted.
        """
        self._runs = {}
        if not self.parent_run_id:
            self.client.get_experiment(self.experiment_id)  # raises if the store does not answer
            return
        for run in self.find_trial_runs(self.parent_run_id):
            epochs = sum(run.data.metrics.get(name, 0.0) for name in ("trained_epochs", "reused_epochs"))
            new = _TrialRun(run.info.run_id, run.info.status, int(epochs), bool(run.data.params))
            trial = run.data.tags[TRIAL]
            old = self._runs.setdefault(trial, new)
            if old is not new:
                shorter, self._runs[trial] = sorted((old, new), key=lambda run: run.epochs)
                self.client.delete_run(shorter.run_id)

    def log_teacher(self, teacher: TeacherRecord, kind: str = "teacher") -> None:
        """Log a teacher's fine-tuning, or an assistant's distillation (`kind` "assistant"), as a run of its own.

        A teacher is its best epoch, whose metrics come once more as its last step; an assistant is its last epoch.
        """
        with process_lock(f"{self.uri} {teacher.key}"):  # two sweeps may log a teacher that they share
            self._log_teacher(teacher, kind)

    def start_trial(self, trial: str, params: Mapping[str, Any], at: float | None = None) -> None:
        """Create a trial's run, or reopen it; `at` is the event's time in seconds since 1970, None for now."""
        run = self._open_run(trial, params, at)
        if not run.has_params:
            self.client.log_inputs(run.run_id, self._inputs)
            self.client.log_batch(run.run_id, params=_param_rows(params))
            run.has_params = True

    def log_epoch(
        self, trial: str, metrics: Mapping[str, float], epoch: int, at: float | None = None
    ) -> None:
        """Log the metrics of a trial's epoch, counted from 1 over all stages; `at` as in `start_trial`."""
        run = self._runs[trial]
        if epoch > run.epochs:
            self.client.log_batch(run.run_id, metrics=_metric_rows(metrics, epoch, at))
            run.epochs = epoch

    def tag_trial(
        self, trial: str, reused_from: Sequence[str] = (), warnings: Sequence[str] = (), reason: str = ""
    ) -> None:
        """Tag a trial's run with all trials whose epochs it has reused so far, its warnings so far, why it failed."""
        if tags := _tag_rows(reused_from, warnings, reason):
            self.client.log_batch(self._runs[trial].run_id, tags=tags)

    def log_trial(self, record: TrialRecord) -> None:
        """Complete the run of an ended trial from its record."""
        status, run = run_status(record), self._runs.get(record.id)
        if run and run.status == status and run.epochs >= len(record.history):
            return
        # Records of earlier versions have no times.
        times: Sequence[float | None] = record.times or [None] * len(record.history)
        run = self._open_run(record.id, record.tracked_params, times[0] if times else None)
        # The trial's metrics are those of its last epoch and the final ones.
        epochs = [*record.history[:-1], record.metrics] if record.history else []
        rows = self._log_full_batches(run, epochs, times)
        if not run.has_params:
            self.client.log_inputs(run.run_id, self._inputs)
        params = [] if run.has_params else _param_rows(record.tracked_params)
        tags = _tag_rows(record.reused_from, record.warnings, record.reason, record.precision)
        if rows or params or tags:
            self.client.log_batch(run.run_id, metrics=rows, params=params, tags=tags)
            run.has_params, run.epochs = True, len(epochs)
        self._terminate_trial(record.id, status, times[-1] if times else None)

    def finish_sweep(self, folder: Path, sweep: SweepRecord, trials: Sequence[TrialRecord]) -> None:
        """Log all ended trials, the sums, the front's numbers and the files of a sweep, and end its run."""
        for trial in trials:
            self.log_trial(trial)
            self._log_test_metrics(trial)
        metrics, champion = compute_savings(trials).metrics(), choose_champion(sweep, trials)
        if champion:
            metrics |= headline_metrics(sweep, len(pareto_front(trials, sweep.objectives)), champion)
        tags = _champion_rows(champion)
        self.client.log_batch(self.parent_run_id, metrics=_metric_rows(metrics, 0), tags=tags)
        for path in (folder / name for name in (*SUMMARY_FILES, SPACE_FILE)):
            if path.is_file():
                self.client.log_artifact(self.parent_run_id, str(path))
        self.terminate(sweep_status(sweep, trials))

    def terminate(self, status: str) -> None:
        """End the sweep's run with a status, and as KILLED the runs of trials that have not ended."""
        for trial, run in self._runs.items():
            if run.status == "RUNNING":
                self._terminate_trial(trial, "KILLED")
        self.client.set_terminated(self.parent_run_id, status=status)

    def _log_test_metrics(self, record: TrialRecord) -> None:
        """Log the metrics on the test set, which are measured when a trial's run has ended.

        They are rows of its last epoch, as `log_trial` writes them where the store has missed the trial: repeated rows
        are the same ones.
        """
        if metrics := metrics_on_test(record.metrics):
            rows = _metric_rows(metrics, len(record.history), record.times[-1] if record.times else None)
            self.client.log_batch(self._runs[record.id].run_id, metrics=rows)

    def _log_teacher(self, teacher: TeacherRecord, kind: str) -> None:
        run = next(iter(self._find_teacher_runs(teacher.key)), None)
        if run and run.info.status == "FINISHED":
            return
        if run is None:
            tags = {KIND: kind, TEACHER_KEY: teacher.key}
            run = self.client.get_run(self._create_run(f"{kind} {teacher.name}", tags))
        # With the run's start as their time, repeated metrics are the same rows.
        run_id, start = run.info.run_id, run.info.start_time / 1000
        self.client.log_batch(run_id, params=_param_rows(teacher.settings))
        epochs = teacher.history if kind == "assistant" else [*teacher.history, teacher.metrics]
        for step, metrics in enumerate(epochs, start=1):
            self.client.log_batch(run_id, metrics=_metric_rows(metrics, step, start))
        self.client.set_terminated(run_id)
        # The lock excludes processes of this machine only: others may have created runs at the same time. One that is
        # older may have appeared after a younger one had looked for it, so finished runs of others are deleted, too.
        for other in self._find_teacher_runs(teacher.key)[1:]:
            if other.info.run_id == run_id or other.info.status == "FINISHED":
                self.client.delete_run(other.info.run_id)

    def _find_teacher_runs(self, key: str) -> list[Run]:
        """Return a teacher's runs, the oldest first: the same order on every machine."""
        runs = self._search_runs(f"tags.`{TEACHER_KEY}` = '{key}'")
        return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _open_experiment(self) -> Experiment:
        experiment = self.client.get_experiment_by_name(self.experiment_name)
        if experiment:
            return experiment
        if urlsplit(self.uri).scheme.partition("+")[0] in ("sqlite", *DATABASE_PORTS):
            require_writable_artifacts()  # before an experiment is created there for good
        try:
            return self.client.get_experiment(self.client.create_experiment(self.experiment_name))
        except StoreError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # another sweep may have created it meanwhile
                raise
        return self.client.get_experiment_by_name(self.experiment_name)

    def _is_active(self, run_id: str) -> bool:
        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except StoreError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _search_runs(self, query: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while token != "":
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            runs += page
            token = page.token or ""
        return runs

    def _create_run(self, name: str, tags: Mapping[str, str], at: float | None = None) -> str:
        attempts = itertools.count()
        known = {internals.RUN_NAME: name, **self._tags, **tags}

        def create() -> Run:
            # The answer to the first attempt may have been lost.
            query = " and ".join(f"tags.`{key}` = '{known[key]}'" for key in IDENTITY if key in known)
            if next(attempts) and (runs := self._search_runs(query)):
                return runs[0]
            start = _milliseconds(at)
            return self.client.create_run(self.experiment_id, start_time=start, run_name=name, tags=known)

        return self.client.repeat(create).info.run_id

    def _open_run(self, trial: str, params: Mapping[str, Any], at: float | None) -> _TrialRun:
        """Return a trial's run, created or reopened where it is not there or has ended."""
        run = self._runs.get(trial)
        if run is None:
            if not self.parent_run_id:
                raise LookupError("the sweep has no run yet")
            tags = {KIND: "trial", internals.PARENT_RUN_ID: self.parent_run_id, TRIAL: trial}
            run = self._runs[trial] = _TrialRun(self._create_run(trial_name(trial, params), tags, at))
        if run.status != "RUNNING":
            self.client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"
        return run

    def _log_full_batches(
        self, run: _TrialRun, epochs: Sequence[Mapping[str, float]], times: Sequence[float | None]
    ) -> list[Metric]:
        """Log the epochs that a trial's run lacks in batches of whole epochs; return the rows of the last batch."""
        rows: list[Metric] = []
        for epoch, (metrics, at) in enumerate(zip(epochs, times, strict=True), start=1):
            if epoch <= run.epochs:
                continue
            if len(rows) + len(metrics) > internals.MAX_METRICS:
                self.client.log_batch(run.run_id, metrics=rows)
                run.epochs, rows = epoch - 1, []
            rows += _metric_rows(metrics, epoch, at)
        return rows

    def _terminate_trial(self, trial: str, status: str, at: float | None = None) -> None:
        run = self._runs[trial]
        self.client.set_terminated(run.run_id, status=status, end_time=_milliseconds(at))
        run.status = status


def log_report(sweep: SweepRecord, files: Iterable[Path], uri: str | None) -> str:
    """Log a report's files as artifacts `report/...` of its sweep's run; return the problem, empty if there is none."""
    try:
        tracker = Tracker(uri, sweep.task)
    except UsageError as error:
        return str(error)
    try:
        parent = tracker.find_parent_run(sweep)
        if not parent:
            return f"no run of sweep {sweep.name} there"
        for file in files:
            tracker.client.log_artifact(parent, str(file), "report")
    except Exception as error:  # every store raises its own
        return tracker.redact_error(error)
    return ""


def run_status(record: TrialRecord) -> str:
    """Return the MLflow status of an ended trial's run."""
    return "FINISHED" if record.status == "finished" else "FAILED"


def sweep_status(sweep: SweepRecord, trials: Sequence[TrialRecord]) -> str:
    """Return the MLflow status of a sweep's run, given its ended trials."""
    if not sweep.is_complete(trials):
        return "KILLED"
    return "FINISHED" if pareto_front(trials, sweep.objectives) else "FAILED"


def students_view(sweep: SweepRecord) -> SavedView:
    """Return the saved view of the experiment: the finished trials of all sweeps, best first."""
    metric = main_metric(sweep.objectives)
    metrics = [f"metrics.`{name}`" for name in dict.fromkeys((metric, dev_metric(metric), *VIEW_METRICS))]
    compared = ("method", "again") if sweep.settings.get("methods") else ()
    params = [f"params.`{name}`" for name in (*compared, *VIEW_PARAMS)]
    columns = [*metrics, *params, f"tags.`{FRONT}`", "tags.`ikd.sweep`", "attributes.`Models`"]
    ascending = sweep.objectives.get(metric) == "min"
    query = f"tags.`{KIND}` = 'trial' and attributes.status = 'FINISHED'"
    return SavedView(query, columns, metrics[0], ascending)


def _check_server(uri: str) -> None:
    """Raise OSError if no database server answers; MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port and parts.hostname:
        socket.create_connection((parts.hostname, parts.port or port), timeout=CONNECT_TIMEOUT_S).close()


def _param_rows(params: Mapping[str, Any]) -> list[Param]:
    from mlflow.entities import Param

    return [Param(key, str(value)) for key, value in params.items()]


def _tag_rows(
    reused_from: Sequence[str], warnings: Sequence[str], reason: str, precision: str = ""
) -> list[RunTag]:
    from mlflow.entities import RunTag

    reused = ", ".join(sorted(set(reused_from)))
    texts = {"ikd.reused_from": reused, "ikd.warnings": "; ".join(warnings), "ikd.reason": reason}
    texts["ikd.precision"] = precision
    return [
        RunTag(name, clean(shorten_paths(text), internals.MAX_TAG)) for name, text in texts.items() if text
    ]


def _champion_rows(champion: TrialRecord | None) -> list[RunTag]:
    from mlflow.entities import RunTag

    return [RunTag(CHAMPION, champion.id)] if champion else []


def _metric_rows(metrics: Mapping[str, float], step: int, at: float | None = None) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(key, value, _milliseconds(at), step) for key, value in metrics.items()]


def _milliseconds(at: float | None) -> int:
    return int((time.time() if at is None else at) * 1000)
