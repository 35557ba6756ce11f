"""Ctrl-C: an end at once while nothing has begun, then a `KeyboardInterrupt` that is never lost."""

from __future__ import annotations

import os
import signal

TOLD = b"\ninterrupted: nothing has begun\ngo on: the same command does\n"
SHOW_CURSOR = b"\x1b[?25h"
_heard = False


def exit_on_interrupt() -> None:
    """Until `raise_on_interrupt`: an exception in the middle of an import is a page of traceback, or is lost."""
    signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """From now on there is something to tidy up."""
    signal.signal(signal.SIGINT, _raise)


def was_interrupted() -> bool:
    """Whether it was raised, whatever others have made of it."""
    return _heard


def raise_if_interrupted() -> None:
    """Raise it again: Python drops what is raised in hooks of a fork, destructors and weak references' callbacks."""
    if _heard:
        raise KeyboardInterrupt


def _end(*_: object) -> None:
    os.write(1, (SHOW_CURSOR if os.isatty(1) else b"") + TOLD)
    os._exit(130)


def _raise(*_: object) -> None:
    global _heard
    _heard = True
    raise KeyboardInterrupt
