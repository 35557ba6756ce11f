"""Ctrl-C and termination: an exit at once while nothing has begun, later a `KeyboardInterrupt` that is never lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MESSAGE = b"\ninterrupted: nothing has begun\ngo on: the same command does\n"
SHOW_CURSOR = b"\x1b[?25h"
TERMINATION = [signal.SIGTERM, signal.SIGHUP]  # `kill`, and a terminal that is closed
_interrupted = False


def exit_on_interrupt() -> None:
    """Exit at once on Ctrl-C and on termination, until `raise_on_interrupt` is called.

    An exception in the middle of an import would print a page of traceback, or be lost.
    """
    signal.signal(signal.SIGINT, _exit)
    _handle_termination(_exit)


def raise_on_interrupt() -> None:
    """Raise `KeyboardInterrupt` on Ctrl-C and on termination from now on, and remember it."""
    sys.unraisablehook = _report_unraisable
    signal.signal(signal.SIGINT, _raise)
    _handle_termination(_interrupt)


@contextmanager
def raised_on_interrupt() -> Iterator[None]:
    """Do as `raise_on_interrupt` while the block runs, in a process that goes on after it with its own handlers."""
    global _interrupted
    numbers = (signal.SIGINT, *TERMINATION, signal.SIGUSR1)  # Ray Tune handles the last one
    handlers, hook = {number: signal.getsignal(number) for number in numbers}, sys.unraisablehook
    _interrupted = False
    raise_on_interrupt()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # not set by Python
                signal.signal(number, handler)
        sys.unraisablehook, _interrupted = hook, False


def keep_status() -> None:
    """Ignore termination from now on: a command has said how it ended, and Python's own end takes a moment."""
    _handle_termination(signal.SIG_IGN)


def was_interrupted() -> bool:
    """Return whether a `KeyboardInterrupt` was raised, even if other code replaced it by another error."""
    return _interrupted


def raise_if_interrupted() -> None:
    """Raise a lost `KeyboardInterrupt` again: Python drops exceptions in destructors, fork hooks and weakref callbacks.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if _interrupted:
        raise KeyboardInterrupt


def _handle_termination(handler: Callable[..., None] | signal.Handlers) -> None:
    for number in TERMINATION:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under `nohup`
            signal.signal(number, handler)


def _report_unraisable(unraisable: Any) -> None:
    """Report an exception that Python drops, but for the remembered `KeyboardInterrupt`."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _exit(*_: object) -> None:
    os.write(1, (SHOW_CURSOR if os.isatty(1) else b"") + MESSAGE)
    os._exit(130)


def _interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _raise(*_: object) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt
