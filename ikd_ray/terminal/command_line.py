"""Error messages, exit statuses and optional packages of the command lines."""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, TypeVar

from typer import Abort, Typer
from typer.exceptions import TyperException

from ikd_ray.errors import StoreError, UsageError, first_line
from ikd_ray.redaction import redact_text
from ikd_ray.terminal import interrupts

ROOT = Path(__file__).resolve().parents[2]
PathOrStr = TypeVar("PathOrStr", str, Path, None)


def print_error(message: str) -> None:
    """Print each line of a message to stderr with the prefix `error: `.

    Control characters, which may come from a file or an argument, are escaped; passwords in URIs and secrets of the
    environment are left out.
    """
    _print("error", message)


def print_warning(message: str) -> None:
    """Print a message like `print_error`, with the prefix `warning: `, where the command continues."""
    _print("warning", message)


def _print(kind: str, message: str) -> None:
    for line in redact_text(message).split("\n"):
        print(f"{kind}: {''.join(map(_printable, line))}", file=sys.stderr)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def run(app: Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its status; Typer's errors are printed by `print_error`."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a character that the locale lacks must not end a command
    try:
        status = app(arguments, standalone_mode=False)
    except TyperException as error:
        print_error(error.format_message())
        status = 2
    except Abort:
        print("interrupted", file=sys.stderr)  # by Ctrl-C
        status = 130
    atexit.register(interrupts.keep_status)
    sys.exit(status or 0)


def expand_home(value: PathOrStr) -> PathOrStr:
    """Return a flag's path with `~` expanded: shells do not expand it in quotes and after `=`."""
    return value and type(value)(os.path.expanduser(value))


def requires_backends(flag: str, extra: str, packages: Sequence[str]) -> None:
    """Check that the packages can be imported that `flag` needs, and that an optional extra installs.

    Raises:
        UsageError: A package is missing; the message says how to install the extra.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(
                f"{flag} needs {', '.join(packages)} ({first_line(error)}): pip install {_package(extra)}"
            ) from None


def _package(extra: str) -> str:
    """Return the argument of `pip install` for an extra: of this checkout, or of the installed package."""
    return f'-e "{ROOT}[{extra}]"' if (ROOT / "pyproject.toml").exists() else f'"ikd-ray[{extra}]"'


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a `UsageError` into its message on stderr and exit status 2, a `StoreError` into status 1."""
    try:
        yield
    except UsageError as error:
        print_error(str(error))
        raise SystemExit(2) from None
    except StoreError as error:
        print_error(describe_store_error(error))
        raise SystemExit(1) from None


def describe_store_error(error: StoreError) -> str:
    """Return a message about an error of MLflow's store, with advice."""
    again = "try again when its store answers" if error.is_transient else "fix that, then try again"
    return f"MLflow: {error}; {again}"
