"""Ctrl-C: an exit at once while nothing has begun, later a `KeyboardInterrupt` that is never lost."""

from __future__ import annotations

import os
import signal

MESSAGE = b"\ninterrupted: nothing has begun\ngo on: the same command does\n"
SHOW_CURSOR = b"\x1b[?25h"
_interrupted = False


def exit_on_interrupt() -> None:
    """Exit at once on Ctrl-C, until `raise_on_interrupt` is called.

    An exception in the middle of an import would print a page of traceback, or be lost.
    """
    signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Raise `KeyboardInterrupt` on Ctrl-C from now on, and remember it."""
    signal.signal(signal.SIGINT, _raise)


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


def _exit(*_: object) -> None:
    os.write(1, (SHOW_CURSOR if os.isatty(1) else b"") + MESSAGE)
    os._exit(130)


def _raise(*_: object) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt
