"""The one exception that means: the user can mend this."""


class UsageError(ValueError):
    """Bad input. The message is one line that names what is wrong and what would be right.

    Command lines print it on stderr and exit with status 2, having written nothing.
    """
