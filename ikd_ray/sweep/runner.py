"""Run a sweep: prepare what trials share, run the trials under Ray Tune, record them, find the Pareto front."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from ray import tune
from ray.exceptions import OutOfMemoryError

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.recommendation import recommend
from ikd_ray.analysis.training_costs import compute_savings
from ikd_ray.distill.assistant import AssistantDivergedError
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.distill.student import layer_map
from ikd_ray.errors import UsageError, causes, first_line
from ikd_ray.program import shell_command
from ikd_ray.records import SweepRecord, TrialRecord, is_sweep, load_intact_trials, read_trials, write_sweep
from ikd_ray.redaction import redact_uri
from ikd_ray.report.summary_files import PLOT, write_summary_files
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.trial_queue import TrialQueue
from ikd_ray.storage import store
from ikd_ray.sweep.callback import StopRequest, SweepCallback, SweepStoppedError
from ikd_ray.sweep.cluster import ClusterLostError, cluster_nodes, ray_cluster
from ikd_ray.sweep.final_evaluation import evaluate_on_test
from ikd_ray.sweep.preparation import print_data
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.resources import allocate
from ikd_ray.sweep.run_preparation import prepare_sweep
from ikd_ray.sweep.searcher import LiveTrialScheduler, QueueSearcher
from ikd_ray.sweep.sweep_folder import locked_sweep, open_sweep
from ikd_ray.sweep.sync import SweepSync, pull_students
from ikd_ray.sweep.trainable import make_trainable
from ikd_ray.sweep.trial import format_error
from ikd_ray.sweep.trial_context import TUNE_FOLDER, TrialContext
from ikd_ray.sweep.trial_results import MAX_FAILURES
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.command_line import print_error
from ikd_ray.terminal.console import Console
from ikd_ray.tracking.async_tracker import PATIENCE_S, AsyncTracker
from ikd_ray.tracking.models import publish_front
from ikd_ray.tracking.tracker import Tracker

if TYPE_CHECKING:
    from ikd_ray.distill.loop import Distillation

INTERRUPTED = 130  # the shell's exit status for Ctrl-C
INTERRUPTED_LIMIT_S = 2.0  # for MLflow when the user waits for the process to end


@dataclass(frozen=True)
class SweepEnd:
    """How a sweep ended."""

    status: int
    """Exit status of the command: 0 with at least one finished trial; 1 if no trial finished or the machine stopped the
    sweep; 130 if the user interrupted it."""
    reason: str = ""
    """Why the status is 1."""


def run(
    request: Request, command: str, console: Console, distillation: type[Distillation] | None = None
) -> SweepEnd:
    """Run a sweep to its end.

    Unless its status is 0 the console says how to resume. `command` is the command line, without passwords, for the
    sweep's record; `distillation` trains the students, by default `Distillation`.

    Raises:
        UsageError: The cluster or the tracking store does not fit the flags.
    """
    print_data(request, console)
    console.note("teacher", f"{request.teacher_source.name}, {request.teacher_source.layers} layers")
    try:
        with ray_cluster(nested=request.config.workers_per_trial > 1) as cluster:
            try:
                with cluster.monitor(lambda: _tell_end(ClusterLostError(), request, console).status):
                    end = _run_locked(request, command, console, distillation, cluster.stays)
            except (Exception, KeyboardInterrupt, ClusterLostError) as error:
                end = _tell_end(error, request, console)
            cluster.status = end.status
            return end
    except (KeyboardInterrupt, ClusterLostError) as error:  # Ray has not started
        return _tell_end(error, request, console)


def _tell_end(error: BaseException, request: Request, console: Console) -> SweepEnd:
    """Tell the user which error ended a sweep, and how to go on.

    Errors of the flags are raised again, and so are unexpected ones.
    """
    if isinstance(error, UsageError):
        raise error
    if isinstance(error, DivergedError):
        reason = f"the teacher did not train: {error}; give a smaller teacher.learning_rate"
        if isinstance(error, AssistantDivergedError):
            reason = f"an assistant did not train: {error}; give a smaller assistant.learning_rate"
        console.warn(reason)
        return SweepEnd(1, reason)
    # A signal to the whole group ends Ray as well, which may be noticed first.
    ended_by_user = isinstance(error, ClusterLostError) and interrupts.was_interrupted()
    if isinstance(error, KeyboardInterrupt) or ended_by_user:
        console.note("interrupted", "what was finished is kept")
        _note_resume(request, console)
        return SweepEnd(INTERRUPTED)
    known = isinstance(error, (SweepStoppedError, ClusterLostError))
    reason = str(error) if known else _describe_surroundings(error, request) or ""
    print_error(reason or "the sweep ended with an unexpected error")
    _note_resume(request, console)
    if not reason:
        raise error
    return SweepEnd(1, reason)


def _describe_surroundings(error: BaseException, request: Request) -> str | None:
    """Return a message if the cause lies outside this program (disk, memory, files, network), else None."""
    if store.is_disk_full(error):
        return f"{request.config.output}: no space left on device ({first_line(error)}); make room there"
    if _is_out_of_memory(error):
        return (
            f"the machine ran out of memory {MAX_FAILURES} times with no trial ended in between; "
            "end what else runs there, or give a smaller --concurrent or batch_size"
        )
    surroundings = (cause for cause in causes(error) if isinstance(cause, (OSError, sqlite3.Error)))
    return next(map(format_error, surroundings), None)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether Ray killed processes to save memory; Tune wraps that in an error of its own."""
    return any(isinstance(cause, OutOfMemoryError) for cause in causes(error))


def _describe_failures(trials: Sequence[TrialRecord]) -> str:
    """Say why a sweep whose trials have all ended has no student."""
    failed = [trial for trial in trials if trial.status == "failed"]
    if len(failed) < len(trials):
        return "no trial finished with objectives that are numbers"
    return f"none of {len(trials)} trials finished; {failed[0].id}: {failed[0].reason}"


def _note_resume(request: Request, console: Console) -> None:
    """Say which command goes on; without a record that is the first one, which needs the sweep's name to be free."""
    if not is_sweep(request.folder):
        shutil.rmtree(request.folder / TUNE_FOLDER, ignore_errors=True)
        with suppress(OSError):  # something of the user's is there
            request.folder.rmdir()
    same_command = "the same command does; it starts with what was finished"
    console.note("go on", _resume_command(request) if is_sweep(request.folder) else same_command)


def _describe_store(tracker: Tracker) -> str:
    """Say where a sweep is in MLflow; a database needs a command that serves it."""
    uri = redact_uri(tracker.uri)
    where = f"{uri}, experiment {tracker.experiment_name}"
    return where if uri.startswith("http") else f"{where}: mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _resume_command(request: Request) -> str:
    return _command("run", f"--resume {request.config.name}", request)


def _untried_regimes(request: Request, trials: Sequence[TrialRecord]) -> list[str]:
    """Return the regimes of the space that no trial of the sweep has."""
    tried = {trial.params["regime"] for trial in trials}
    regimes = chain.from_iterable(own.possible_values("regime") for own in request.budget.spaces.values())
    return [regime for regime in dict.fromkeys(regimes) if regime not in tried]


def _command(name: str, flags: str, request: Request) -> str:
    return shell_command(name, flags, request.config.uri or str(request.config.output))


def _run_locked(
    request: Request,
    command: str,
    console: Console,
    distillation: type[Distillation] | None,
    ray_stays: bool,
) -> SweepEnd:
    """Open MLflow, lock and prepare the sweep, and run it."""
    config = request.config
    resources = allocate(
        cluster_nodes(),
        trials=request.trials,
        concurrent=config.concurrent,
        workers=config.workers_per_trial,
        gpus_per_worker=config.gpus_per_worker,
        grows=config.concurrent is None and "RAY_ADDRESS" in os.environ,
    )
    with console.step("opening MLflow"):
        tracker = Tracker(config.tracking_uri, request.task.name)
    with locked_sweep(request):
        with request.output.usage_errors():
            teacher, artifacts = prepare_sweep(request, console)
        record = open_sweep(
            request,
            command,
            tracker.uri,
            teacher,
            artifacts,
            resources.planned_concurrency,
        )
        console.note("sweep", f"{record.name}; if it is interrupted: {_resume_command(request)}")
        context = TrialContext(
            artifacts=artifacts,
            resources=resources,
            sweep_name=record.name,
            sweep_id=record.settings["id"],
            prefix=request.space.prefix,
            sharing=None if config.no_share else request.space.sharing,
            memory=StepMemory(config.step_memory),
            precision=request.space.precision,
            distillation=distillation,
        )
        sync = SweepSync(request.output, context.sweep, console.warn)
        sync.push()
        async_tracker = AsyncTracker(tracker, request.folder, console.warn)
        async_tracker.start_sweep(record, teacher)
        try:
            return _Sweep(request, record, context, tracker, async_tracker, sync, console, ray_stays).run()
        finally:
            sync.push()


@dataclass(frozen=True)
class _Sweep:
    """A prepared sweep, from its first trial to its summary."""

    request: Request
    record: SweepRecord
    context: TrialContext
    tracker: Tracker
    async_tracker: AsyncTracker
    sync: SweepSync
    console: Console
    ray_stays: bool = False  # after the sweep

    def run(self) -> SweepEnd:
        """Run the trials, score the front on the test set, and conclude the sweep."""
        try:
            trials = self._run_trials()
            # Also where no trial was left to run: the process before may have died after the last one.
            shutil.rmtree(self.request.folder / TUNE_FOLDER, ignore_errors=True)
            sweep = self._with_time_up()
            if sweep.record.is_complete(trials):
                record, trials = evaluate_on_test(self.request, sweep.record, trials, self.console)
                sweep = replace(sweep, record=record)
        except BaseException:
            self.async_tracker.close(limit_s=INTERRUPTED_LIMIT_S)
            if self.async_tracker.complete:
                with suppress(Exception):  # the first error is the one to show
                    self.tracker.terminate("KILLED")
            raise
        return sweep._conclude(trials)

    def _with_time_up(self) -> _Sweep:
        """Return this sweep, recorded as one whose time is up if that ended it."""
        if not self.request.config.minutes or interrupts.was_interrupted():
            return self
        record = replace(self.record, settings=self.record.settings | {"time_is_up": True})
        write_sweep(self.request.folder, record)
        return replace(self, record=record)

    def _conclude(self, trials: list[TrialRecord]) -> SweepEnd:
        """Deliver and summarise what the trials gave."""
        complete = self.record.is_complete(trials)
        if complete:
            self.async_tracker.close()
            self.tracker.client.patience_s = PATIENCE_S
        else:
            self.async_tracker.close(limit_s=INTERRUPTED_LIMIT_S)
        has_front = self._summarize(trials)
        self._conclude_tracking(trials)
        if not complete:
            return SweepEnd(INTERRUPTED)
        return SweepEnd(0) if has_front else SweepEnd(1, _describe_failures(trials))

    def _run_trials(self) -> list[TrialRecord]:
        """Run the trials that have not ended, and return all that have: fewer than requested if interrupted.

        Raises:
            SweepStoppedError: The machine lacks something that the sweep needs.
        """
        failures, ended = 0, len(read_trials(self.request.folder))
        started, minutes = time.monotonic(), self.request.config.minutes
        while True:
            left_s = max(60 * minutes - (time.monotonic() - started), 0.1) if minutes else None
            try:
                return self._run_tune(left_s)
            except RuntimeError as error:
                before, ended = ended, len(read_trials(self.request.folder))
                failures = 1 if ended > before else failures + 1
                if failures == MAX_FAILURES or not _is_out_of_memory(error):
                    raise
                self.console.warn(
                    "the machine ran out of memory; trials that ran go on from their last saved epoch"
                )

    def _run_tune(self, limit_s: float | None) -> list[TrialRecord]:
        """Run trials until they have all ended, or for so many seconds."""
        request, resources = self.request, self.context.resources
        trials = self._read_ended_trials()
        remaining = request.trials - sum(trial.number < request.trials for trial in trials)
        stop = StopRequest()
        queue = TrialQueue(
            request.folder,
            request.budget,
            SearchSettings.of(self.record),
            {trial.number: trial for trial in trials},
            remaining,
            stop,
        )
        if remaining:
            layer_maps = {depth: layer_map(depth, request.teacher_source.layers) for depth in request.depths}
            callback = SweepCallback(
                request.folder, layer_maps, self.async_tracker, self.console, self.sync, queue, stop
            )
            metric = request.space.selection_metric(request.task)
            scheduler = LiveTrialScheduler()
            with self.console.sweep(remaining, resources.concurrent, metric, limit_s):
                try:
                    self._tuner(queue, callback, scheduler, limit_s).fit()
                except (KeyboardInterrupt, SystemError) as error:
                    if self.ray_stays:
                        scheduler.stop_trials()
                    # Within its own calls Ray may turn the interrupt into a SystemError.
                    if not (isinstance(error, KeyboardInterrupt) or interrupts.was_interrupted()):
                        raise
            if stop.reason:
                raise SweepStoppedError(stop.reason)
            self.sync.pull()
        return read_trials(request.folder)

    def _read_ended_trials(self) -> list[TrialRecord]:
        """Read the trials that need not run again; damaged ones and those whose process died do."""
        folder = self.request.folder
        trials, damaged = load_intact_trials(folder)
        for path in damaged:
            self.console.warn(f"{folder / 'trials' / path.name}: damaged; made again, and kept in {path}")
        for died in [trial for trial in trials if trial.died]:
            self.sync.delete_trial(died.id)
            trials.remove(died)
        return trials

    def _tuner(
        self,
        queue: TrialQueue,
        callback: SweepCallback,
        scheduler: LiveTrialScheduler,
        limit_s: float | None,
    ) -> tune.Tuner:
        resources = self.context.resources
        return tune.Tuner(
            make_trainable(self.context),
            tune_config=tune.TuneConfig(
                search_alg=QueueSearcher(queue),
                scheduler=scheduler,
                num_samples=-1,  # the queue ends the sweep
                # On a cluster that may grow, its resources alone limit the number.
                max_concurrent_trials=None if resources.grows else resources.concurrent,
                reuse_actors=resources.workers == 1,
                trial_dirname_creator=lambda trial: trial.trial_id,
                time_budget_s=limit_s,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.context.sweep / TUNE_FOLDER),
                callbacks=[callback],
                # In a notebook Tune's own one would clear what the cell has shown.
                progress_reporter=tune.CLIReporter(),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )

    def _summarize(self, trials: list[TrialRecord]) -> bool:
        """Write the summary files and show the summary; return whether the Pareto front has a member."""
        request, sweep, tracker = self.request, self.record, self.tracker
        members, lines = write_summary_files(request.folder, sweep, trials), []
        if members:
            lines.append(("plot", str(request.folder / PLOT)))
        lines.append(("MLflow", _describe_store(tracker)))
        if tracker.students_link:
            lines.append(("students", tracker.students_link))
        if sweep.has_trials_left(trials):
            lines.append(("go on", _resume_command(request)))
        if members:
            lines.append(("export", _command("export", f"--task {sweep.task} --name {sweep.name}", request)))
        if found := recommend(sweep, trials):
            pick = f"--task {sweep.task} --name {sweep.name} --pick {found.trial.id}"
            lines.append(
                ("take", f"{found.trial.id}, {found.reason}; alone: {_command('export', pick, request)}")
            )
        untried = _untried_regimes(request, trials)
        if untried and sweep.is_complete(trials):
            budget = "--minutes" if sweep.is_open_ended else "--trials"
            lines.append(("not tried", f"regime {', '.join(untried)}; give more {budget}"))
        self.console.summary(
            sweep=sweep,
            front=members,
            failed=[trial for trial in trials if trial.status == "failed"],
            savings=compute_savings(trials),
            lines=lines,
        )
        return bool(members)

    def _conclude_tracking(self, trials: list[TrialRecord]) -> None:
        """Complete the sweep's runs in MLflow; where that fails, `--resume` completes them."""
        folder, sweep = self.request.folder, self.record
        try:
            if not self.async_tracker.complete:
                raise self.async_tracker.error or TimeoutError("it does not answer")
            self.tracker.finish_sweep(folder, sweep, trials)
            pull_students(self.request.output, folder, pareto_front(trials, sweep.objectives))
            publish_front(self.tracker, folder, sweep, trials)
        except Exception as error:  # every store raises its own
            # Resuming a sweep that time ended would train more trials first.
            check = _command("report", f"--check {sweep.name}", self.request)
            deliver = check if sweep.settings.get("time_is_up") else _resume_command(self.request)
            self.console.warn(
                f"MLflow lacks a part of this sweep ({self.tracker.redact_error(error)}); {deliver} delivers it"
            )
