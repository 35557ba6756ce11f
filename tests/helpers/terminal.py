"""Command lines called in this process, a clock, and what is shown on a terminal."""

from __future__ import annotations

import io

from rich.console import Console
from typer.testing import CliRunner

from ikd_ray.distill.epoch import Epoch


def invoke(app, *arguments):
    """Return the result of a command line, which must not end with a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def usage_error(result) -> str:
    """Return the one line of a command that refused what it was given, and printed nothing else."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    return line


DEEP_STAGE = "+".join(map(str, range(1, 13))) + "+C"
CONTROL_CHARACTERS = "\x1b]0;owned\x07\x1b[2J[bold red]out of\r\nmemory[/] :smile:\x9b1A\u202e"
"""Text that would change a terminal, if it were printed as it is."""


class FakeClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds


def render(view, width: int = 80, height: int = 24) -> list[str]:
    """Return the lines of a rich view on a terminal of this size."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, record=True)
    terminal.print(view)
    return terminal.export_text().rstrip("\n").split("\n")


def make_epoch(number: int, remaining: int, seconds: float = 12.0, **fields) -> Epoch:
    """Return the report of an epoch; `fields` are further ones of `Epoch`, and `mcc` a metric."""
    metrics = {"dev/mcc": fields.pop("mcc", 0.1), "dev/attention_kl": 0.25, "dev/layer_1/kl": 0.3}
    metrics |= {"time/epoch_s": seconds, "time/evaluation_s": 0.0}
    defaults = {"stage": 1, "stages": 2, "stage_name": "1", "metrics": metrics}
    return Epoch(number, remaining, **defaults | fields)
