"""MLflow stores that are files of this machine: their places, and whether they can be written."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from ikd_ray.errors import UsageError
from ikd_ray.redaction import redact_uri
from ikd_ray.storage.store import check_writable
from ikd_ray.tracking.mlflow_internals import FILE_STORE_ERROR, SCHEMA_ERROR

URI_KEYWORDS = ("databricks", "databricks-uc", "uc")  # URIs that name no folder
DATABASE, ARTIFACTS = "mlflow.db", "mlruns"  # MLflow's defaults in the working folder
SQLITE_HEADER = b"SQLite format 3\0"


def absolute_uri(uri: str) -> str:
    """Return a store's URI with an absolute path, also where it begins with `~`: it is used in other folders, too.

    Raises:
        UsageError: It is not a URI.
    """
    scheme, mark, place = uri.partition(":///")
    if mark and scheme.startswith("sqlite"):
        path, question, query = place.partition("?")
        if path in ("", ":memory:"):
            return uri
        # MLflow creates the folder without unquoting the URI, so only what must be is escaped.
        path = re.sub("[%?&;#]", lambda special: quote(special[0]), _absolute(unquote(path)))
        return f"{scheme}:///{path}{question}{query}"
    try:
        has_scheme = bool(urlsplit(uri).scheme)
    except ValueError as error:
        raise UsageError(
            f"--tracking-uri {redact_uri(uri)}: not a URI ({error}); give one such as http://127.0.0.1:5000"
        ) from None
    return uri if has_scheme or uri in URI_KEYWORDS else _absolute(uri)


def describe_store(given: str | None, uri: str) -> str:
    """Return how a message names a store: with the flag or the variable that it comes from.

    Args:
        given: The flag's value; None stands for MLFLOW_TRACKING_URI, else for MLflow's default.
        uri: The store's URI.
    """
    shown = redact_uri(uri)
    if given:
        return f"--tracking-uri {shown}"
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return f"MLFLOW_TRACKING_URI {shown}"
    return f"MLflow's store in the working folder, {shown}"


def require_writable_store(given: str | None, uri: str | None = None) -> None:
    """Check that a store of this machine can be written, before MLflow, which would try for minutes.

    Args:
        given: As for `describe_store`.
        uri: The store's URI; None: that which `given` stands for.

    Raises:
        UsageError: It cannot.
    """
    uri = absolute_uri(uri or given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}")
    file = _database_file(uri)
    if file is None:
        return
    if not os.path.lexists(file):
        require_writable_artifacts()
    try:
        check_writable(file.parent)
        if os.path.lexists(file):
            _check_database(file)
    except OSError as error:
        raise UsageError(
            f"{describe_store(given, uri)}: cannot write {error.filename} ({error.strerror}); give a store in a folder "
            f"that you own, such as --tracking-uri sqlite:///{Path.home() / DATABASE}"
        ) from None


def require_writable_artifacts(location: str = ARTIFACTS) -> None:
    """Check that files of runs can be written where their location is a folder of this machine.

    The default is where the experiments of a new database have theirs: MLflow takes the working folder.

    Raises:
        UsageError: They cannot.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "file"):
        return
    folder = Path(url2pathname(parts.path if parts.scheme else location)).absolute()
    try:
        check_writable(folder)
    except OSError as error:
        advice = (
            "run the command in" if location == ARTIFACTS else "give another --tracking-uri, or make that"
        )
        raise UsageError(
            f"MLflow would write the files of runs to {folder}: cannot write {error.filename} ({error.strerror}); "
            f"{advice} a folder that you own"
        ) from None


def describe_refusal(given: str | None, uri: str, problem: str) -> str:
    """Return why a store cannot be used, and what to type.

    Args:
        given: As for `describe_store`.
        uri: The store's absolute URI.
        problem: MLflow's error.
    """
    shown, quoted = describe_store(given, uri), shlex.quote(redact_uri(uri))
    if SCHEMA_ERROR in problem:
        return (
            f"{shown}: this database was made by another version of MLflow; if it was a newer one, "
            f"'pip install --upgrade mlflow', else make a copy and run: mlflow db upgrade {quoted}"
        )
    if FILE_STORE_ERROR in problem:
        folder = url2pathname(urlsplit(uri).path) if urlsplit(uri).scheme else uri
        store = shlex.quote(absolute_uri(f"sqlite:///{quote(os.path.dirname(folder))}/{DATABASE}"))
        return (
            f"{shown}: MLflow no longer writes to folders such as mlruns; give --tracking-uri {store}, and to take its "
            f"runs there run: mlflow migrate-filestore --source {shlex.quote(folder)} --target {store}"
        )
    other = (
        "give another one"
        if _database_file(uri)
        else "start the server, or leave the flag out for a local store"
    )
    return f"{shown}: no MLflow store there ({problem}); {other}"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _database_file(uri: str) -> Path | None:
    """Return the file of an SQLite database, or None for another store."""
    scheme, mark, place = uri.partition(":///")
    path = unquote(place.partition("?")[0])
    return Path(path) if mark and scheme.startswith("sqlite") and path not in ("", ":memory:") else None


def _check_database(file: Path) -> None:
    if not os.path.isfile(file) or not os.access(file, os.R_OK | os.W_OK):
        raise OSError(0, "no file that you may write", str(file))
    with open(file, "rb") as database:
        if database.read(len(SQLITE_HEADER)) not in (b"", SQLITE_HEADER):
            raise OSError(0, "not an SQLite database", str(file))
