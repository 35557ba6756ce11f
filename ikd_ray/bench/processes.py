"""Measurements in processes of their own, so that none disturbs another."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Measured = TypeVar("Measured")
MEET_SECONDS = 300.0  # that one process waits for another to get ready
_CONTEXT = multiprocessing.get_context("spawn")
_barrier = None


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


def together(function: Callable[..., Measured], calls: Sequence[tuple]) -> list[Measured]:
    """The function's calls at once, in a new process each; the function must call `meet` once."""
    barrier = _CONTEXT.Barrier(len(calls))
    with ProcessPoolExecutor(len(calls), _CONTEXT, _remember, (barrier,)) as pool:
        # A call waits for the others in `meet`, so none can end before each has a process.
        pending = [pool.submit(function, *arguments) for arguments in calls]
        return [call.result() for call in pending]


def meet() -> None:
    """Within `together`: wait until all calls are here."""
    _barrier.wait(MEET_SECONDS)


def _remember(barrier) -> None:
    global _barrier
    _barrier = barrier
