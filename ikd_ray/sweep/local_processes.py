"""Function calls in processes of their own on this machine, one at a time or at the same time."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from transformers.utils import logging as transformers_logging

Result = TypeVar("Result")
_SPAWN = multiprocessing.get_context("spawn")
_barrier: threading.Barrier | None = None  # of the calls that run at once


def run_alone(function: Callable[..., Result], *arguments: Any, threads: int | None = None) -> Result:
    """Call a function in a new process, which ends with it.

    `threads` are torch's in that process; None if the function does not compute there.
    """
    with ProcessPoolExecutor(1, _SPAWN, _prepare, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def run_together(function: Callable[..., Result], calls: list[tuple[Any, ...]], threads: int) -> list[Result]:
    """Call a function several times at once, in a process each, with a barrier as the last argument.

    The function must wait at the barrier before its work, so that the calls start it at the same time.
    """
    barrier = _SPAWN.Barrier(len(calls))
    with ProcessPoolExecutor(len(calls), _SPAWN, _prepare, (threads, barrier)) as pool:
        pending = [pool.submit(_call_with_barrier, function, *arguments) for arguments in calls]
        return [call.result() for call in pending]


def _call_with_barrier(function: Callable[..., Result], *arguments: Any) -> Result:
    assert _barrier is not None
    try:
        return function(*arguments, _barrier)
    except BaseException:
        _barrier.abort()  # the other calls would wait for this one
        raise


def _prepare(threads: int | None, barrier: threading.Barrier | None = None) -> None:
    global _barrier
    _barrier = barrier  # a process can only inherit it, not receive it with a call
    transformers_logging.disable_progress_bar()
    if barrier is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for this one
    if threads is not None:
        torch.set_num_threads(threads)
        # Import what a first optimizer would import, which takes a second.
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
