"""Packages that only some commands need, as extras of this one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from ikd_ray.errors import UsageError, first_line

ROOT = Path(__file__).resolve().parents[1]


def require(flag: str, extra: str, packages: Sequence[str]) -> None:
    """Import the packages of an extra.

    Args:
        flag: what needs them.

    Raises:
        UsageError: one is missing; the message says how to install it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f'{flag} needs {", ".join(packages)} ({first_line(error)}): pip install -e "{ROOT}[{extra}]"'
            ) from None
