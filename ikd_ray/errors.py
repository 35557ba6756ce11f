"""The one exception that means: the user can mend this; and how other errors are told in a line."""


class UsageError(ValueError):
    """Bad input. The message is one line that names what is wrong and what would be right.

    Command lines print it on stderr and exit with status 2, having written nothing.
    """


def in_one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
