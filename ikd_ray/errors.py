"""Exceptions that several subpackages raise or read."""

from collections.abc import Iterator


class UsageError(ValueError):
    """Bad input, with a message that names what is wrong and what would be right, in one line per mistake.

    Command lines print the message on stderr and exit with status 2, having written nothing.
    """


class StoreError(Exception):
    """A call of MLflow's store failed; the message has no password in it.

    Attributes:
        code: MLflow's error code, or an empty string.
        is_transient: Whether the same call may succeed later: no answer came, or the server is overloaded.
    """

    def __init__(self, message: str, code: str = "", is_transient: bool = False) -> None:
        super().__init__(message)
        self.code, self.is_transient = code, is_transient


class UnavailableError(Exception):
    """Data that a figure needs is not available any more; the message is a sentence for the report's reader."""


_ADVICE = "(raised as a result of Query-invoked autoflush"  # SQLAlchemy puts it before the message


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    lines = (line for line in str(error).strip().splitlines() if not line.startswith(_ADVICE))
    return next(lines, type(error).__name__)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
