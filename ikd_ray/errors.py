"""The one exception that means: the user can mend this; and how other errors are told in a line."""

from collections.abc import Iterator


class UsageError(ValueError):
    """Bad input. The message is one line that names what is wrong and what would be right.

    Command lines print it on stderr and exit with status 2, having written nothing.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, what that was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


class UnavailableError(Exception):
    """What a figure needs and is not there any more; the message is a sentence for the reader."""
