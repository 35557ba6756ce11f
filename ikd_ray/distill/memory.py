"""Memory that nobody uses any more goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any


@cache
def _malloc_trim() -> Any:
    """The C library's, where it has one: glibc does."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def trim_heap() -> None:
    """Return the heap's free pages, between its blocks too, to the system.

    Batches of ever other lengths leave holes that later ones do not fit in: without this a process that trains for
    hours takes many times the memory that it uses.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(ctypes.c_size_t(0))
