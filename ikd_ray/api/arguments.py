"""Arguments of the Python interface: how errors and records name them, and search spaces given as a dict."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ikd_ray.errors import UsageError
from ikd_ray.records import SPACE_FILE

ARGUMENTS = {
    "--no-share": "share=False",
    "--force": "force=True",
    "--onnx": "onnx=True",
    "--int8": "int8=True",
    "--list": "`.front`",
}
"""Python's form of the flags that are not an argument of the same name."""


def changed_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a function that differ from its defaults."""
    defaults = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if value != defaults[name].default}


def describe_call(name: str, given: Mapping[str, Any]) -> str:
    """Return a call of a function of the package as text, for records."""
    shown = (f"{argument}={_shown(value)}" for argument, value in given.items())
    return f"ikd_ray.{name}({', '.join(shown)})"


@contextmanager
def named_arguments(given: Mapping[str, Any]) -> Iterator[None]:
    """Raise the block's `UsageError` with a message that names Python's arguments, where it names flags.

    Args:
        given: the arguments of the call.
    """
    try:
        yield
    except UsageError as error:
        raise UsageError(name_arguments(str(error), given)) from None


def name_arguments(message: str, given: Mapping[str, Any]) -> str:
    """Return a message of the command line as one for Python: `--trials 0` becomes `trials=0`."""
    for name, value in {**given, "resume": given.get("resume") or given.get("name")}.items():
        spellings = {str(value), repr(str(value)), f"{value:g}" if isinstance(value, float) else str(value)}
        flags = "|".join(re.escape(f"--{name.replace('_', '-')} {text}") for text in spellings)
        argument = f"{name}={_shown(value)}".replace("\\", r"\\")  # as `re` wants a backslash
        message = re.sub(rf"({flags})(?![\w.])", argument, message)
    # A value that the command has changed, such as a path that it has made absolute.
    message = re.sub(r"^--([a-z][a-z0-9-]*) ([^\s']\S*): ", r"--\1='\2': ", message, flags=re.MULTILINE)
    # Commands, which stand in backquotes or after "with: ", keep their flags.
    return re.sub(
        r"`[^`]*`|with: .*|--[a-z][a-z0-9-]*",
        lambda found: _argument(found[0]) if found[0].startswith("--") else found[0],
        message,
    )


def _argument(flag: str) -> str:
    return ARGUMENTS.get(flag, flag.removeprefix("--").replace("-", "_"))


def _shown(value: Any) -> str:
    return repr(str(value) if isinstance(value, Path) else value)


@contextmanager
def space_file(space: Any) -> Iterator[str]:
    """Return, for the block, the name or path of a search space; one that is a dict is written to a temporary file.

    Messages about that file name the place in the dict: `space: params.temprature: unknown name`.

    Raises:
        UsageError: the dict has values that YAML does not have.
    """
    if not isinstance(space, Mapping):
        yield os.path.expanduser(space)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SPACE_FILE
        try:
            text = yaml.dump(dict(space), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
        except yaml.YAMLError as error:
            message = f"{error.args[0]}: {error.args[-1]!r}; give numbers, texts, lists and dicts"
            raise UsageError(f"space: {message}") from None
        path.write_text(text, encoding="utf-8")
        try:
            yield str(path)
        except UsageError as error:
            message = re.sub(rf"^{re.escape(str(path))}(:\d+)?: ", "space: ", str(error), flags=re.MULTILINE)
            raise UsageError(message) from None


class _PlainDumper(yaml.SafeDumper):
    """A dumper that writes a value which occurs twice out twice: space files have no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
