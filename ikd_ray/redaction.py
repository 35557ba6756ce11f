"""Find passwords and tokens in URIs, and keep them out of output, files and command lines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from ikd_ray.errors import UsageError

REDACTED = "***"
MIN_SECRET = 3  # characters; replacing shorter secrets one by one would reveal them
SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
"""Environment variables from which MLflow, storage and the hub take a secret."""
DATABASES = ("postgresql", "mysql", "mssql")
MIN_TOKEN = 8  # characters; a shorter user name without a password is taken for a name

# A password may hold characters that should have been percent-encoded, so it ends at the last @. Text without a
# colon before its first slash (a host, a path) is no user name.
_SCHEME = re.compile(r"(?:[A-Za-z][\w+.-]*:(?:/{1,2}(?!/))?)?")
_USER = re.compile(r"(?:[^/?#@:]*(?::.*)?@)?", re.DOTALL)
_QUERY = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
_SECRET_NAME = re.compile(r"pass|pwd|token|secret|key|auth|credential|signature|odbc", re.IGNORECASE)
# The scheme is bounded: an unbounded one is tried anew from each letter of a long text.
_URI = re.compile(r"[A-Za-z][\w+.-]{0,40}:/{1,2}[^/\s]\S*")


def refuse_secrets(flag: str, uri: str | None) -> None:
    """Refuse a URI with a password or token as the value of a flag: every process can read command lines.

    Raises:
        UsageError: the URI contains a password, a token or a secret query parameter.
    """
    if uri and next(_secrets(uri), None):
        raise UsageError(
            f"{flag} {redact_uri(uri)}: a password or token on the command line or in a notebook can be read by other "
            "users; put the URI into MLFLOW_TRACKING_URI, or user and password into MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD"
        )


def redact_uri(uri: str) -> str:
    """Return the URI without user and password, and with the values of secret query parameters replaced."""
    user = _user(uri)
    while user[0]:  # the rest of a malformed URI may look like another user
        uri = uri[: user.start()] + uri[user.end() :]
        user = _user(uri)
    return _QUERY.sub(_redact_value, uri)


def redact_text(text: str) -> str:
    """Return the text with every URI in it redacted, and the secrets of the environment replaced."""
    for name in SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "")) >= MIN_SECRET:
            text = text.replace(secret, REDACTED)
    return _URI.sub(lambda match: redact_uri(match[0]), text)


def redact_secrets(text: str, uri: str) -> str:
    """Return the text, such as an error message, with the secrets of `uri` replaced in every spelling."""
    text = text.replace(uri, redact_uri(uri))
    for secret in sorted(set(_spellings(uri)), key=len, reverse=True):
        if len(secret) < MIN_SECRET and secret in text:
            return REDACTED
        text = text.replace(secret, REDACTED)
    return text


def has_credentials(uri: str) -> bool:
    """Return whether redaction would change the URI."""
    return redact_uri(uri) != uri


def _user(uri: str) -> re.Match[str]:
    """Match `user:password@` after the scheme, or nothing at that position."""
    scheme = _SCHEME.match(uri)
    assert scheme is not None
    user = _USER.match(uri, scheme.end())
    assert user is not None
    return user


def _redact_value(parameter: re.Match[str]) -> str:
    separator, name, value = parameter.groups()
    return f"{separator}{name}={REDACTED if value and _is_secret(name) else value}"


def _is_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(unquote(name)))


def _secrets(uri: str) -> Iterator[str]:
    """Yield the password or token of a URI, and the values of its secret query parameters."""
    user, _, password = _user(uri)[0].removesuffix("@").partition(":")
    if password:
        yield password
    elif len(user) >= MIN_TOKEN and not uri.startswith(DATABASES):  # whose users log in by other means
        yield user
    for _, name, value in _QUERY.findall(uri):
        if value and _is_secret(name):
            yield value


def _spellings(uri: str) -> Iterator[str]:
    """Yield each secret of a URI as it may occur in a message: as a whole, in pieces, encoded and decoded."""
    for secret in _secrets(uri):
        pieces = (piece for piece in re.split(r"[/?#@:;=&]", secret) if len(piece) >= MIN_SECRET)
        for raw in (secret, *pieces):
            for plain in {raw, unquote(raw), unquote_plus(raw)} - {""}:
                yield from (plain, quote(plain), quote(plain, safe=""), quote_plus(plain), repr(plain)[1:-1])
