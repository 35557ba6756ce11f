"""`ikd_ray.sweep`: run or resume a sweep from Python."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ikd_ray.api.arguments import changed_arguments, describe_call, named_arguments, space_file
from ikd_ray.api.library_settings import quiet_libraries
from ikd_ray.api.results import Sweep
from ikd_ray.config import STEP_MEMORY_GB, SweepConfig
from ikd_ray.data.task_file import find_task
from ikd_ray.errors import StoreError, UsageError
from ikd_ray.program import DEFAULT_OUTPUT
from ikd_ray.records import SPACE_FILE, is_sweep
from ikd_ray.redaction import refuse_secrets
from ikd_ray.storage.remote import SharedStorage, open_storage
from ikd_ray.sweep.request import Request, read_config, validate
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.command_line import describe_store_error
from ikd_ray.terminal.console import Console

if TYPE_CHECKING:
    from ikd_ray.sweep.runner import SweepEnd

PATHS = ("task", "data_dir", "unlabelled", "teacher", "output")
"""Arguments that name a file or folder, or something else."""


class SweepError(RuntimeError):
    """A sweep has ended without a student; the message says why, and where to look further."""


def sweep(
    task: str | os.PathLike[str] | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    unlabelled: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    space: str | os.PathLike[str] | Mapping[str, Any] = "default",
    trials: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    concurrent: int | None = None,
    workers_per_trial: int = 1,
    gpus_per_worker: float | None = None,
    step_memory: float = STEP_MEMORY_GB,
    output: str | os.PathLike[str] = "outputs",
    name: str | None = None,
    resume: str | None = None,
    tracking_uri: str | None = None,
    share: bool = True,
) -> Sweep:
    """Run a sweep as `ikd run` does: teacher, targets, trials, Pareto front.

    Call it in the main thread. Ctrl-C, or the interrupt of a notebook's kernel, raises `KeyboardInterrupt`; `resume`
    continues from there. Ray is shut down at the end unless it was initialised before.

    Args:
        task: a GLUE task, or the path of a task file.
        data_dir: folder in the GLUE layout, or the folder of a task file's tables; by default the Hugging Face hub.
        unlabelled: table of texts without labels.
        teacher: Hugging Face name or folder; by default bert-base-uncased where a GPU and the hub are there, else the
            bundled MiniLM.
        space: name or path of a search space, or its content as a dict.
        trials: configurations to try; by default twice as many as there are depths, at least 8.
        minutes: minutes in which trials run, in place of a number of trials.
        seed: seed of the search and of every trial.
        concurrent: trials at the same time; by default as many as fit.
        workers_per_trial: Ray Train workers of each trial.
        gpus_per_worker: GPUs of each worker; by default 1 where there are GPUs.
        step_memory: gigabytes that the tensors of a step may take in each worker.
        output: folder of the sweeps and their shared cache, or `s3://BUCKET/PREFIX`.
        name: name of the sweep; by default the task and the time.
        resume: name of a sweep to continue; the other arguments may then be left out.
        tracking_uri: MLflow store; by default MLFLOW_TRACKING_URI, else `./mlflow.db`.
        share: reuse epochs that another trial has trained.

    Returns:
        The sweep, with at least one finished trial.

    Raises:
        UsageError: an argument, a file or a record is wrong; nothing was written.
        SweepError: no trial has finished, or the machine does not allow the sweep to go on.
        KeyboardInterrupt: it was interrupted.
    """
    given = changed_arguments(sweep, locals())
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("ikd_ray.sweep: call it in the main thread, which Ctrl-C interrupts")
    for argument in PATHS:
        if argument in given:
            given[argument] = os.path.expanduser(given[argument])
    with _python_errors(given), interrupts.raised_on_interrupt(), quiet_libraries():
        refuse_secrets("--tracking-uri", tracking_uri)
        storage = open_storage(os.path.expanduser(output))
        flags = {argument: value for argument, value in given.items() if argument not in ("resume", "share")}
        with space_file(space) as path:
            flags |= {"space": path} if "space" in given else {}
            flags |= {} if share else {"no_share": True}
            config = read_config(flags, storage, resume)
            request, end = _run(
                config, bool(resume), describe_call("sweep", given), isinstance(space, Mapping)
            )
    return _result(request, storage, end)


@contextmanager
def _python_errors(given: Mapping[str, Any]) -> Iterator[None]:
    try:
        with named_arguments(given):
            yield
    except StoreError as error:
        raise SweepError(describe_store_error(error)) from None


def _run(config: SweepConfig, resumes: bool, command: str, has_dict: bool) -> tuple[Request, SweepEnd]:
    """Validate a sweep and run it, with its progress on the console."""
    console = Console()
    console.heading(f"{find_task(config.task).name}: students of {config.teacher or 'the default teacher'}")
    with console.step("reading data and teacher"):
        request = validate(config, resumes=resumes)
        # In a notebook Ray asks for ipywidgets when it is imported, for widgets that nothing here shows.
        logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
        from ikd_ray.sweep import runner  # imported late: it takes seconds
    if has_dict:  # the sweep's own copy of it is the only file that stays
        config = request.config.model_copy(update={"space": request.folder / SPACE_FILE})
        request = replace(request, config=config)
    return request, runner.run(request, command, console)


def _result(request: Request, storage: SharedStorage, end: SweepEnd) -> Sweep:
    """Return a sweep that has ended, or raise the error that it ended with."""
    from ikd_ray.sweep.runner import INTERRUPTED

    name, output = request.folder.name, str(request.config.uri or request.config.output)
    where = "" if output == DEFAULT_OUTPUT else f", output={output!r}"
    again = f"ikd_ray.sweep(resume={name!r}{where})" if is_sweep(request.folder) else "the same call"
    if end.status == INTERRUPTED:
        raise KeyboardInterrupt(f"go on: {again}")
    if end.status:
        look = f"see ikd_ray.open_sweep({name!r}{where}).trials; " if is_sweep(request.folder) else ""
        raise SweepError(f"{name}: {end.reason}; {look}go on: {again}")
    return Sweep(storage, request.folder)
