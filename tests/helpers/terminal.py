"""Command lines called in this process, a stream that is a terminal, and a clock for what is shown there."""

from __future__ import annotations

import io

from typer.testing import CliRunner


def invoke(app, *arguments):
    """Return the result of a command line, which must not end with a traceback."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


class FakeClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.time += seconds
