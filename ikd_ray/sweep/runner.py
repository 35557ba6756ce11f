"""A whole sweep: prepare what trials share, run them under Tune, record them, find the Pareto front."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ray import tune
from ray.exceptions import OutOfMemoryError

from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.savings import compute_savings
from ikd_ray.distill.assistant import AssistantDivergedError
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.training import DivergedError
from ikd_ray.errors import UsageError, causes, first_line
from ikd_ray.records import SweepRecord, TrialRecord, is_sweep, load_intact_trials, num_pending, read_trials
from ikd_ray.redaction import redact_uri
from ikd_ray.report.summary_files import PLOT, write_summary_files
from ikd_ray.storage import store
from ikd_ray.sweep.callback import StopRequest, SweepCallback, SweepStoppedError
from ikd_ray.sweep.cluster import ClusterLostError, allocate, cluster_nodes, ray_cluster
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.results import MAX_FAILURES
from ikd_ray.sweep.searcher import OrderedSearch, open_study
from ikd_ray.sweep.setup import open_sweep, owned, prepare_shared
from ikd_ray.sweep.sync import SweepSync, pull_students
from ikd_ray.sweep.trainable import make_trainable
from ikd_ray.sweep.trial import TUNE_FOLDER, TrialContext
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.command_line import print_error, script_command
from ikd_ray.terminal.console import Console
from ikd_ray.tracking.async_tracker import PATIENCE_S, AsyncTracker
from ikd_ray.tracking.publish import show_front
from ikd_ray.tracking.tracker import Tracker

INTERRUPTED = 130  # the shell's status for Ctrl-C
HURRY_S = 2.0  # for MLflow, where the user waits for the end

# Tune prints and writes nothing of its own, but for one snapshot of its state: the study and the trials' folders
# hold all that a sweep goes on by.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")


def run(request: Request, command: str, console: Console, method: type[Distillation] = Distillation) -> int:
    """Run a sweep to its end and tell the user; returns the exit status.

    0: it ended, with at least one finished trial. 1: no trial finished, or the machine does not let it go on.
    130: interrupted. After all but 0 the user is told how to go on.

    Args:
        method: how a trial is run.

    Raises:
        UsageError: the cluster or the tracking store is not what the flags need.
    """
    status = 1
    try:
        with _sigterm_as_sigint():
            return _run(request, command, console, method)
    except KeyboardInterrupt:
        console.note("interrupted", "what was finished is kept")
        status = INTERRUPTED
    except DivergedError as error:
        if isinstance(error, AssistantDivergedError):
            console.warn(f"an assistant did not train: {error}; give a smaller assistant.learning_rate")
        else:
            console.warn(f"the teacher did not train: {error}; give a smaller teacher.learning_rate")
        return status
    except SweepStoppedError as error:
        print_error(str(error))
    except ClusterLostError:
        print_error("Ray's own processes died, and every trial with them (killed, or out of memory)")
    except UsageError:
        raise
    except Exception as error:
        line = _machine_lacks(error, request)
        if line is None:
            print_error("the sweep ended by an error that it did not expect")
            _tell_how_to_go_on(request, console)
            raise
        print_error(line)
    _tell_how_to_go_on(request, console)
    return status


def _machine_lacks(error: Exception, request: Request) -> str | None:
    """What the machine has no more of, in a line; none where the error has another reason."""
    if store.is_disk_full(error):
        return f"{request.config.output}: no space left on device ({first_line(error)}); make room there"
    if _out_of_memory(error):
        return (
            f"the machine ran out of memory {MAX_FAILURES} times with no trial ended in between; "
            "end what else runs there, or give a smaller --concurrent or batch_size"
        )
    return None


def _out_of_memory(error: Exception) -> bool:
    """Whether Ray ended processes before the system would have: it tells Tune so by an error unknown to it."""
    return any(isinstance(cause, OutOfMemoryError) for cause in causes(error))


def _tell_how_to_go_on(request: Request, console: Console) -> None:
    if is_sweep(request.folder):
        console.note("go on", _resume(request))
    else:
        console.note("go on", "the same command does, with what was finished")


def _run(request: Request, command: str, console: Console, method: type[Distillation]) -> int:
    config = request.config
    if request.dataset.generated:
        console.warn(request.dataset.description)
    console.note("data", request.dataset.description)
    console.note("teacher", f"{request.source.name}, {request.source.layers} layers")
    with ray_cluster(nested=config.workers_per_trial > 1):
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
        with owned(request):
            with request.output.usage_errors():
                teacher, shared = prepare_shared(request, console)
            sweep = open_sweep(request, command, tracker.uri, teacher, shared, resources.planned_concurrency)
            console.note("sweep", f"{sweep.name}; if it is cut off: {_resume(request)}")
            sharing = None if config.no_share else request.space.sharing
            trial_context = TrialContext(
                shared, resources, sweep.name, sweep.settings["id"], request.space.prefix, sharing, method
            )
            sync = SweepSync(request.output, trial_context.sweep, console.warn)
            sync.push()
            async_tracker = AsyncTracker(tracker, request.folder, console.warn)
            async_tracker.start(sweep, teacher)
            try:
                return _sweep(request, sweep, trial_context, tracker, async_tracker, sync, console)
            finally:
                sync.push()


def _sweep(
    request: Request,
    sweep: SweepRecord,
    trial_context: TrialContext,
    tracker: Tracker,
    async_tracker: AsyncTracker,
    sync: SweepSync,
    console: Console,
) -> int:
    """The trials and what comes of them; returns the exit status."""
    try:
        trials = _trials(request, trial_context, async_tracker, sync, console)
    except BaseException:
        async_tracker.close(HURRY_S)
        if async_tracker.complete:
            with suppress(Exception):  # the first error is the one to show
                tracker.finish("KILLED")
        raise
    complete = not num_pending(sweep.trials, trials)
    async_tracker.close(PATIENCE_S if complete else HURRY_S)
    found = _conclude(request, sweep, trials, tracker, console)
    try:
        if not async_tracker.complete:
            raise async_tracker.error or TimeoutError("it does not answer")
        tracker.conclude(request.folder, sweep, trials)
        pull_students(request.output, request.folder, pareto_front(trials, sweep.objectives))
        show_front(tracker, request.folder, sweep, trials)
    except Exception as error:  # every store raises its own
        console.warn(
            f"MLflow lacks a part of this sweep ({tracker.redact_error(error)}); {_resume(request)} delivers it"
        )
    if not complete:
        return INTERRUPTED
    return 0 if found else 1


@contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """`kill` ends a sweep as cleanly as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _trials(
    request: Request,
    trial_context: TrialContext,
    async_tracker: AsyncTracker,
    sync: SweepSync,
    console: Console,
) -> list[TrialRecord]:
    """Run the trials that are still to run; returns all that have ended, fewer than asked for if interrupted.

    Raises:
        HaltedError: the machine does not let them go on.
    """
    deaths, ended = 0, len(read_trials(request.folder))
    while True:
        try:
            return _round(request, trial_context, async_tracker, sync, console)
        except RuntimeError as error:
            known, ended = ended, len(read_trials(request.folder))
            deaths = 1 if ended > known else deaths + 1
            if deaths == MAX_FAILURES or not _out_of_memory(error):
                raise
            console.warn("the machine ran out of memory; trials that ran go on from their last saved epoch")


def _round(
    request: Request,
    trial_context: TrialContext,
    async_tracker: AsyncTracker,
    sync: SweepSync,
    console: Console,
) -> list[TrialRecord]:
    """What `_trials` does, until Ray ends it."""
    trials, damaged = load_intact_trials(request.folder)
    for path in damaged:
        console.warn(f"{request.folder / 'trials' / path.name}: damaged; made again, and kept in {path}")
    for died in [trial for trial in trials if trial.died]:  # on another day, or another machine, it may not
        sync.forget(died.id)
        trials.remove(died)
    left, halt = num_pending(request.trials, trials), StopRequest()
    search = OrderedSearch(
        request.budget,
        request.objectives,
        request.config.seed,
        trial_context.resources.planned_concurrency,
        open_study(request.folder),
        {trial.number: trial for trial in trials},
        left,
        halt,
    )
    if left:
        matched = {depth: layer_map(depth, request.source.layers) for depth in request.depths}
        callback = SweepCallback(request.folder, matched, async_tracker, console, sync, search, halt)
        metric = request.space.selection_metric(request.task)
        with console.sweep(left, trial_context.resources.concurrent, metric):
            try:
                _tuner(trial_context, search, callback).fit()
            except (KeyboardInterrupt, SystemError) as error:
                # Ctrl-C, or a halt; in its own calls Ray may make a SystemError of it.
                if not (isinstance(error, KeyboardInterrupt) or interrupts.was_interrupted()):
                    raise
        if halt.reason:
            raise SweepStoppedError(halt.reason)
        shutil.rmtree(request.folder / TUNE_FOLDER, ignore_errors=True)
        sync.pull()
    return read_trials(request.folder)


def _tuner(trial_context: TrialContext, search: OrderedSearch, callback: SweepCallback) -> tune.Tuner:
    return tune.Tuner(
        make_trainable(trial_context),
        tune_config=tune.TuneConfig(
            search_alg=search,
            num_samples=-1,  # the search says when it is over
            # Where nodes may join, what they have room for says it.
            max_concurrent_trials=None
            if trial_context.resources.grows
            else trial_context.resources.concurrent,
            reuse_actors=trial_context.resources.workers == 1,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(trial_context.sweep / TUNE_FOLDER),
            callbacks=[callback],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )


def _conclude(
    request: Request, sweep: SweepRecord, trials: list[TrialRecord], tracker: Tracker, console: Console
) -> bool:
    """The front: its files and the summary; whether there is one."""
    best, lines = write_summary_files(request.folder, sweep, trials), []
    if best:
        lines.append(("plot", str(request.folder / PLOT)))
    lines.append(("MLflow", f"{redact_uri(tracker.uri)}, experiment {tracker.experiment}: mlflow ui"))
    if num_pending(sweep.trials, trials):
        lines.append(("go on", _resume(request)))
    if best:
        lines.append(("export", _script("export", f"--task {sweep.task} --name {sweep.name}", request)))
    console.summary(
        front=best,
        objectives=sweep.objectives,
        teacher_metrics=sweep.teacher["metrics"],
        failed=[trial for trial in trials if trial.status == "failed"],
        savings=compute_savings(trials),
        lines=lines,
    )
    return bool(best)


def _resume(request: Request) -> str:
    return _script("run", f"--resume {request.config.name}", request)


def _script(name: str, flags: str, request: Request) -> str:
    return script_command(name, flags, request.config.uri or str(request.config.output))
