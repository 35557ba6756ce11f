"""MLflow client whose errors show no password, and whose repeatable calls are retried."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock

from ikd_ray.errors import StoreError, first_line
from ikd_ray.redaction import redact_secrets, redact_text
from ikd_ray.storage.store import digest
from ikd_ray.tracking.mlflow_internals import import_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0  # bounds of the pause between attempts, which doubles
BRIEF_PATIENCE_S = 2.0  # bridges a server's overload, and delays the message about one that is away
MAX_MESSAGE = 200  # characters of an error
REPEATABLE = (
    "get_",
    "search_",
    "set_",
    "log_batch",
    "log_artifact",
    "log_inputs",
    "log_model_",
    "update_",
    "delete_",
    "finalize_",
)
"""Starts of the names of methods that may be called again when their answer was lost: they write the same rows."""
TRANSIENT_CODES = (
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
)
TRANSIENT_STATUSES = (429, 502, 503, 504)
# No answer came, for which MLflow has only a general code.
TRANSIENT_TEXTS = ("failed with exception", "failed with timeout exception")
Result = TypeVar("Result")


class StoreClient:
    """The methods of `mlflow.MlflowClient`, which raise nothing but `StoreError`.

    Attributes:
        patience_s: Seconds for which calls that are `REPEATABLE` are tried; 0 for a single attempt.
    """

    patience_s = BRIEF_PATIENCE_S

    def __init__(self, uri: str) -> None:
        """Open a store, and create its tables where it has none.

        Raises:
            StoreError: It cannot be opened.
        """
        self._uri = uri
        self._client = self.repeat(lambda: _open_store(uri))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            with _redacted_errors(self._uri):
                return method(*arguments, **options)

        if not name.startswith(REPEATABLE):
            return call
        return lambda *arguments, **options: self.repeat(lambda: call(*arguments, **options))

    def repeat(self, action: Callable[[], Result]) -> Result:
        """Return the result of an action, tried until the store answers or `patience_s` has passed.

        Raises:
            StoreError: The store refuses it, or has not answered in time.
        """
        deadline, pause = time.monotonic() + self.patience_s, FIRST_RETRY_S
        while True:
            try:
                return action()
            except StoreError as error:
                if not error.is_transient or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LAST_RETRY_S)


def _open_store(uri: str) -> MlflowClient:
    with _redacted_errors(uri), _opening_lock(uri):
        return import_mlflow().MlflowClient(uri)  # creates a database's tables


def redact_error(error: Exception, uri: str) -> str:
    """Return the first line of an exception without the passwords of a URI and of the environment."""
    return redact_text(redact_secrets(first_line(error), uri))[:MAX_MESSAGE]


@contextmanager
def _redacted_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every store raises its own
        code, message = str(getattr(error, "error_code", "")), redact_error(error, uri)
        raise StoreError(message, code, _is_transient(error, code)) from None


def _is_transient(error: Exception, code: str) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)  # of an artifact's transfer
    no_answer = any(text in str(error) for text in TRANSIENT_TEXTS)
    return code in TRANSIENT_CODES or status in TRANSIENT_STATUSES or no_answer


@contextmanager
def process_lock(name: str) -> Iterator[None]:
    """Lock a name, which may contain a password, among this user's processes on this machine."""
    folder = Path(tempfile.gettempdir()) / f"ikd-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with FileLock(folder / f"mlflow-{digest(name)}.lock"):
        yield


@contextmanager
def _opening_lock(uri: str) -> Iterator[None]:
    """Lock the opening of a database: two processes that create its tables at once collide."""
    if uri.startswith("http"):  # a server's tables are there
        yield
        return
    scheme, mark, path = uri.partition(":///")
    store = os.path.realpath(path) if mark and scheme.startswith("sqlite") else uri  # relative or absolute
    with process_lock(store):
        yield
