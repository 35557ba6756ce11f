"""Passwords and tokens in URIs: found, and left out of whatever is printed or kept."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"
SHORT = 3  # characters; blotting out a shorter secret wherever it stands would tell it

# A password may hold any character that should have been encoded, so it ends at the last @. What has no
# colon before its first slash (a host, a file's path) is no user.
_SCHEME = re.compile(r"(?:[A-Za-z][\w+.-]*:(?:/{1,2}(?!/))?)?")
_USER = re.compile(r"[^/?#@:]*(?::.*)?@", re.DOTALL)
_PAIR = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
_SECRET_NAME = re.compile(r"pass|pwd|token|secret|key|auth|credential|signature|odbc", re.IGNORECASE)
_URI = re.compile(r"[A-Za-z][\w+.-]*:/{1,2}[^/\s]\S*")
_ENVIRONMENT = "IKD_RAY_TRACKING_URI"
_TOKEN = 8  # characters; a user without a password is taken for a token from this length on


def without_password(uri: str) -> str:
    """The URI with credentials left out, fit to print and to keep."""
    start, end = _user(uri)
    while end > start:  # what is left may be another
        uri = uri[:start] + uri[end:]
        start, end = _user(uri)
    return _PAIR.sub(_hide_value, uri)


def _user(uri: str) -> tuple[int, int]:
    """Where `user:password@` starts and ends."""
    scheme = _SCHEME.match(uri)
    assert scheme is not None  # it matches nothing, too
    start = scheme.end()
    found = _USER.match(uri, start)
    return start, found.end() if found else start


def _hide_value(pair: re.Match[str]) -> str:
    before, name, value = pair.groups()
    return f"{before}{name}={HIDDEN if value and _is_secret(name) else value}"


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(unquote(name)))


def has_password(uri: str) -> bool:
    """Whether there is anything in it that must not be shown."""
    return without_password(uri) != uri


def without_passwords(text: str) -> str:
    """A text with credentials left out of every URI in it."""
    return _URI.sub(lambda found: without_password(found[0]), text)


def without_secrets(text: str, uri: str) -> str:
    """A text (an exception's message, say) that tells no secret of the URI, in whatever spelling."""
    text = text.replace(uri, without_password(uri))
    for secret in sorted(set(_spellings(uri)), key=len, reverse=True):
        if len(secret) < SHORT and secret in text:
            return HIDDEN
        text = text.replace(secret, HIDDEN)
    return text


def _spellings(uri: str) -> Iterator[str]:
    for secret in _secrets(uri):
        # Whoever takes the URI apart may take the secret apart, too: at its slashes, say.
        pieces = (piece for piece in re.split(r"[/?#@:;=&]", secret) if len(piece) >= SHORT)
        for raw in (secret, *pieces):
            for plain in {raw, unquote(raw), unquote_plus(raw)} - {""}:
                yield from (plain, quote(plain), quote(plain, safe=""), quote_plus(plain), repr(plain)[1:-1])


def _secrets(uri: str) -> Iterator[str]:
    start, end = _user(uri)
    user, colon, password = uri[start:end].removesuffix("@").partition(":")
    if colon:
        yield password
    elif len(user) >= _TOKEN:
        yield user
    for _, name, value in _PAIR.findall(uri):
        if value and _is_secret(name):
            yield value


def printable_command(arguments: Sequence[str]) -> str:
    """A command line as text, without the passwords of URIs in it."""
    parts = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        is_flag = equals and flag.startswith("-")
        parts.append(flag + equals + without_password(value) if is_flag else without_password(argument))
    return shlex.join(parts)


def hide_command_line(flag: str) -> None:
    """Start this process anew where the value of `flag` has a password, with a command line that has none.

    Everybody on the machine can list command lines, and Ray keeps its driver's. The value goes on in this
    user's environment, where `given_in_full` finds it.
    """
    shown, value = _take_out(sys.argv[1:], flag)
    if shown != sys.argv[1:]:
        python = sys.orig_argv[: len(sys.orig_argv) - len(shown)]
        os.execve(sys.executable, [*python, *shown], os.environ | {_ENVIRONMENT: value})


def _take_out(arguments: Sequence[str], flag: str) -> tuple[list[str], str]:
    """The arguments with the flag's values fit to be seen, and its last value as it was."""
    shown, value = list(arguments), ""
    for index, argument in enumerate(arguments):
        if argument.startswith(flag + "="):
            start, value = flag + "=", argument.removeprefix(flag + "=")
        elif index and arguments[index - 1] == flag:
            start, value = "", argument
        else:
            continue
        shown[index] = start + without_password(value)
    return shown, value


def given_in_full(shown: str | None) -> str | None:
    """A URI as it was given on the command line, which `hide_command_line` may have changed."""
    full = os.environ.pop(_ENVIRONMENT, None)
    return full if full and shown == without_password(full) else shown
