"""A whole sweep: prepare what trials share, run them under Tune, record them, find the Pareto front."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from filelock import FileLock, Timeout
from ray import tune
from ray.exceptions import RayTaskError

from ikd_ray.data.tokens import prepare
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.teacher import TeacherRecord, load_tokenizer
from ikd_ray.distill.training import DivergedError
from ikd_ray.errors import UsageError, in_one_line
from ikd_ray.report.console import Console
from ikd_ray.report.pareto import front, write_pareto, write_trials_csv
from ikd_ray.report.records import SweepRecord, TrialRecord, read_sweep, read_trials, write_sweep
from ikd_ray.report.savings import Savings, savings
from ikd_ray.report.tracking import Tracker, without_password
from ikd_ray.report.version import code_version
from ikd_ray.sweep.cluster import cluster_nodes, divide, ray_cluster
from ikd_ray.sweep.driver import SweepCallback
from ikd_ray.sweep.prepare import Done, Event, Fact, Job, Shared, Step, preparation
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.search import OrderedSearch, open_storage
from ikd_ray.sweep.trainable import SCRATCH, Course, trainable_for

PLOT, FRONT, TABLE = REPORTS = ("pareto.png", "pareto.json", "trials.csv")
INTERRUPTED = 130  # the shell's status for Ctrl-C

# Tune prints and writes nothing of its own, but for one snapshot of its state: the study and the trials' folders
# hold all that a sweep goes on by.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")


def run(request: Request, command: str, console: Console, method: type[Distillation] = Distillation) -> int:
    """Run a sweep to its end and tell the user; returns the exit status.

    0: it ended, with at least one finished trial. 1: no trial finished. 130: interrupted; it can go on.

    Args:
        method: how a trial is run.

    Raises:
        UsageError: the cluster or the tracking store is not what the flags need.
    """
    config = request.config
    if request.dataset.generated:
        console.warn(request.dataset.description)
    console.note("data", request.dataset.description)
    console.note("teacher", f"{request.source.name}, {request.source.layers} layers")
    with _sigterm_as_sigint(), ray_cluster(nested=config.workers_per_trial > 1):
        shares = divide(
            cluster_nodes(),
            trials=request.trials,
            concurrent=config.concurrent,
            workers=config.workers_per_trial,
            gpus_per_worker=config.gpus_per_worker,
        )
        with console.step("opening MLflow"):
            tracker = Tracker(config.tracking_uri, request.task.name)
        with _owned(request):
            try:
                teacher, shared = _prepare(request, console)
            except KeyboardInterrupt:
                console.note("interrupted", "what was finished is kept; the same command goes on from there")
                return INTERRUPTED
            except DivergedError as error:
                console.warn(f"the teacher did not train: {error}; give a smaller teacher.learning_rate")
                return 1
            sweep = _open_sweep(request, command, tracker, teacher, shared)
            sharing, folder = None if config.no_share else request.space.sharing, request.folder.resolve()
            course = Course(
                shared, shares, folder, sweep.settings["id"], request.space.prefix, sharing, method
            )
            return _sweep(request, sweep, course, tracker, console)


def _sweep(request: Request, sweep: SweepRecord, course: Course, tracker: Tracker, console: Console) -> int:
    """The trials and what comes of them; returns the exit status."""
    try:
        trials = _trials(request, course, tracker, console)
    except BaseException:
        with suppress(Exception):  # the first error is the one to show
            tracker.finish("KILLED")
        raise
    complete, saved = len(trials) >= request.trials, savings(trials)
    found = _conclude(request, sweep, trials, saved, tracker, console, complete)
    try:
        tracker.settle(trials)
        tracker.sweep_metrics(saved.metrics())
        for name in (*REPORTS, "space.yaml"):
            if (request.folder / name).is_file():
                tracker.artifact(request.folder / name)
        tracker.finish("KILLED" if not complete else "FINISHED" if found else "FAILED")
    except Exception as error:  # every store raises its own
        console.warn(
            f"MLflow lacks a part of this sweep ({in_one_line(error)}); --resume {sweep.name} delivers it"
        )
    if not complete:
        return INTERRUPTED
    return 0 if found else 1


@contextmanager
def _owned(request: Request) -> Iterator[None]:
    """This process's alone: no second one runs or resumes the same sweep meanwhile."""
    request.config.output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(request.config.output / f".{request.folder.name}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"--name {request.folder.name}: another process is running that sweep; wait for its end, or choose "
            "another name"
        ) from None
    try:
        if request.folder.exists() and not request.resumes:
            raise UsageError(
                f"--name {request.folder.name}: {request.folder} exists already; choose another name"
            )
        for left in (request.folder / "trials").glob(".*"):  # of trials killed while they saved
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """`kill` ends a sweep as cleanly as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare(request: Request, console: Console) -> tuple[TeacherRecord, Shared]:
    """What all trials share, shown while it is made."""
    cache = (request.config.output / "cache").resolve()
    with console.step("tokenizing"):
        tokenizer = load_tokenizer(request.source)
        data = prepare(request.dataset, tokenizer, request.source.key, request.max_length, cache / "tokens")
    known = read_sweep(request.folder).settings["latency_ms"] if request.resumes else {}
    job = Job(
        data.folder,
        request.source,
        request.depths,
        request.space.teacher,
        request.space.targets,
        cache,
        {int(depth): milliseconds for depth, milliseconds in known.items()},
    )
    events = _events(job)
    record = shared = None
    event = next(events, None)
    while event is not None:
        if isinstance(event, Step):
            with console.step(event.text):
                event = _within(events, console, request)
            continue
        if isinstance(event, Fact):
            console.note(event.label, event.text)
        elif isinstance(event, TeacherRecord):
            record = event
            console.note("teacher", ", ".join(f"{k} {v:.4f}" for k, v in record.metrics.items()))
        elif isinstance(event, Shared):
            shared = event
        event = next(events, None)
    return record, shared


def _events(job: Job) -> Iterator[Event]:
    """The preparation: in this process, which has all it needs imported, or where the GPUs are."""
    node = max(cluster_nodes(), key=lambda node: (node.gpus > 0, node.cpus))
    if not node.gpus and "RAY_ADDRESS" not in os.environ:
        return preparation(job, node.cpus)
    cpus, gpus = max(1, min(node.cpus, int(ray.available_resources().get("CPU", 0)))), min(1, node.gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, num_returns="streaming", max_retries=0)(preparation)
    return map(_result, task.remote(job, cpus))


def _result(reference: ray.ObjectRef) -> Event:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray wraps what a task raises in a traceback; these two are for the user.
        if isinstance(error.cause, (UsageError, DivergedError)):
            raise error.cause from None
        raise


def _within(events: Iterator, console: Console, request: Request):
    """Show what happens within a step; returns the event that ends it."""
    for event in events:
        if isinstance(event, Done):
            console.progress(event.done, event.total, "examples")
        elif isinstance(event, Epoch):
            metric = f"dev/{request.task.metric}"
            shown = {key: event.metrics[key] for key in ("train/loss", metric)}
            console.epoch("teacher", event.epoch, event.epoch + event.remaining, shown)
        else:
            return event
    return None


def _open_sweep(
    request: Request,
    command: str,
    tracker: Tracker,
    teacher: TeacherRecord,
    shared: Shared,
) -> SweepRecord:
    """The sweep's folder, its record and its runs in MLflow: new ones, or those that go on."""
    config, dataset, code = request.config, request.dataset, code_version()
    request.folder.mkdir(parents=True, exist_ok=True)
    # One with a password is not kept: it must be given again.
    uri = tracker.uri if without_password(tracker.uri) == tracker.uri else None
    settings = config.model_dump(mode="json") | {"tracking_uri": uri, "latency_ms": shared.latency_ms}
    run_id, identity = "", uuid.uuid4().hex
    if request.resumes:
        earlier = read_sweep(request.folder)
        command, run_id = earlier.command, earlier.settings.get("run_id", "")
        identity = earlier.settings.get("id", identity)
    tags = {
        "ikd.task": request.task.name,
        "ikd.data_source": dataset.source,
        "ikd.data": dataset.description,
        "ikd.generated": str(dataset.generated).lower(),
        "ikd.teacher": teacher.name,
        "ikd.code_version": code,
        "ikd.sweep": config.name,
    }
    params = {
        "task": request.task.name,
        "seed": config.seed,
        "space": config.space.name,
        "trials": request.trials,
    }
    run_id = tracker.start(config.name, params, tags, run_id)
    tracker.teacher(teacher.name, teacher.key, teacher.settings, teacher.history, teacher.metrics)
    sweep = SweepRecord(
        name=config.name,
        task=request.task.name,
        seed=config.seed,
        trials=request.trials,
        command=command,
        code_version=code,
        data={
            "source": dataset.source,
            "description": dataset.description,
            "fingerprint": dataset.fingerprint,
            "generated": dataset.generated,
            "max_length": request.max_length,
        },
        teacher={
            "name": teacher.name,
            "key": teacher.key,
            "source_key": request.source.key,
            "layers": request.source.layers,
            "metrics": teacher.metrics,
        },
        objectives=request.objectives,
        settings=settings | {"run_id": run_id, "id": identity},
    )
    (request.folder / "space.yaml").write_text(request.space.text)
    write_sweep(request.folder, sweep)
    return sweep


def _trials(request: Request, course: Course, tracker: Tracker, console: Console) -> list[TrialRecord]:
    """Run the trials that are still to run; returns all that have ended, fewer than asked for if interrupted."""
    trials = read_trials(request.folder)
    missing = request.trials - len(trials)
    search = OrderedSearch(
        request.space,
        request.objectives,
        request.config.seed,
        course.shares.concurrent,
        open_storage(request.folder),
        {trial.number: trial.metrics or None for trial in trials},
        missing,
    )
    matched = {depth: layer_map(depth, request.source.layers) for depth in request.depths}
    metric = f"dev/{request.task.metric}"
    if missing > 0:
        callback = SweepCallback(request.folder, matched, tracker, console, search.stop)
        tuner = tune.Tuner(
            trainable_for(course),
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,  # the search says when it is over
                max_concurrent_trials=course.shares.concurrent,
                reuse_actors=course.shares.workers == 1,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(course.sweep / SCRATCH),
                callbacks=[callback],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        with console.sweep(missing, course.shares.concurrent, metric):
            try:
                tuner.fit()
            finally:
                trials = read_trials(request.folder)
                callback.close(interrupted=len(trials) < request.trials)
        shutil.rmtree(request.folder / SCRATCH, ignore_errors=True)
    search.finish()
    return trials


def _conclude(
    request: Request,
    sweep: SweepRecord,
    trials: list[TrialRecord],
    saved: Savings,
    tracker: Tracker,
    console: Console,
    complete: bool,
) -> bool:
    """The front: its files and the summary; whether there is one."""
    from ikd_ray.report.plots import pareto_png  # imported late: until here nobody waits for matplotlib

    folder, best, lines = request.folder, front(trials, sweep.objectives), []
    write_trials_csv(folder / TABLE, trials, best)
    if best:
        write_pareto(folder / FRONT, sweep, best)
        pareto_png(folder / PLOT, sweep, trials, best)
        lines.append(("plot", str(folder / PLOT)))
    lines.append(("MLflow", f"{without_password(tracker.uri)}, experiment {tracker.experiment}: mlflow ui"))
    if not complete:
        lines.append(("go on", _script("run", f"--resume {sweep.name}", request)))
    if best:
        lines.append(("export", _script("export", f"--task {sweep.task} --name {sweep.name}", request)))
    console.summary(
        front=best,
        objectives=sweep.objectives,
        teacher_metrics=sweep.teacher["metrics"],
        failed=[trial for trial in trials if trial.status == "failed"],
        savings=saved,
        lines=lines,
    )
    return bool(best)


def _script(name: str, flags: str, request: Request) -> str:
    output = request.config.output
    where = "" if output == Path("outputs") else f" --output {output}"
    return f"python sweeps/{name}.py {flags}{where}"
