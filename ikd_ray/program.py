"""The way in which this program was started, and commands for users to copy that start it in the same way."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "ikd"
COMMANDS = ("run", "report", "export", "cache", "bench")
DEFAULT_OUTPUT = "outputs"


def shell_command(command: str, flags: str, output: str = DEFAULT_OUTPUT) -> str:
    """Return a command of this program for an output folder or URI, which works where the user stands.

    Args:
        command: `run`, `report`, `export`, `cache` or `bench`.
        flags: its arguments, quoted for a shell.
        output: the output folder or URI; `--output` is added unless it is the default.
    """
    return _command(_start(command), flags, output)


def installed_command(command: str, flags: str, output: str = DEFAULT_OUTPUT) -> str:
    """Return the same command of the installed program, for pages that are read elsewhere."""
    return _command([PROGRAM, command], flags, output)


def recorded_command(command: str) -> str:
    """Return the command line of this process, for records that are read elsewhere: as one of the installed program."""
    given = sys.argv[1:] if _is_script() else sys.argv[2:]
    return shlex.join([PROGRAM, command, *given])


def _command(start: Sequence[str], flags: str, output: str) -> str:
    where = "" if output == DEFAULT_OUTPUT else f" --output {shlex.quote(output)}"
    return f"{shlex.join(start)} {flags}{where}"


def _start(command: str) -> Sequence[str]:
    """Return the words that start a command: a script of `sweeps/`, the module, or the installed program."""
    if _is_script():
        return ["python", str(Path(sys.argv[0]).with_name(f"{command}.py"))]
    if Path(sys.argv[0]).parts[-2:] == ("ikd_ray", "__main__.py"):
        return ["python", "-m", "ikd_ray", command]
    return [PROGRAM, command]


def _is_script() -> bool:
    started = Path(sys.argv[0])
    return started.parent.name == "sweeps" and started.suffix == ".py" and started.stem in COMMANDS
