"""Measurements in processes of their own, so that none disturbs another."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

Measured = TypeVar("Measured")
RESULT = "result.json"
MEET_SECONDS = 300.0  # that one process waits for another to get ready
_CONTEXT = multiprocessing.get_context("spawn")
_barrier: Barrier | None = None


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Processes that start within the block put their temporary files there; some libraries leave theirs behind."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def alone(function: Callable[..., Measured], *arguments: Any) -> Measured:
    """`function(*arguments)` in a new process, which ends with it."""
    with ProcessPoolExecutor(1, _CONTEXT) as pool:
        return pool.submit(function, *arguments).result()


def together(function: Callable[..., Measured], calls: Sequence[tuple[Any, ...]]) -> list[Measured]:
    """The function's calls at once, in a new process each; the function must call `meet` once."""
    barrier = _CONTEXT.Barrier(len(calls))
    with ProcessPoolExecutor(len(calls), _CONTEXT, _remember, (barrier,)) as pool:
        # A call waits for the others in `meet`, so none can end before each has a process.
        pending = [pool.submit(function, *arguments) for arguments in calls]
        return [call.result() for call in pending]


def meet() -> None:
    """Within `together`: wait until all calls are here."""
    assert _barrier is not None, "within `together` alone"
    _barrier.wait(MEET_SECONDS)


def sweep_alone(
    module: str, arguments: Sequence[str], folder: Path, log: str, variables: Mapping[str, str] | None = None
) -> Any:
    """Run a sweep in a Python process of its own, whose working folder is `folder`.

    Args:
        module: its function `child` runs the sweep, and leaves what it measured as JSON in `folder/RESULT`.
        arguments: what `child` finds in `sys.argv`.
        log: the file in `folder` where all goes that it prints.
        variables: of its environment, besides this process's.

    Returns:
        What it measured.

    Raises:
        RuntimeError: it did not end well; the message has the end of what it wrote.
    """
    unset = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")  # what happens to be set must not be measured
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    result = folder / RESULT
    result.unlink(missing_ok=True)
    with open(folder / log, "w") as file:
        ended = subprocess.run(
            [sys.executable, "-c", f"from {module} import child; child()", *arguments],
            cwd=folder,
            env=environment | dict(variables or {}),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode or not result.is_file():
        raise RuntimeError(f"status {ended.returncode}: {(folder / log).read_text()[-2000:]}")
    return json.loads(result.read_text())


def _remember(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
