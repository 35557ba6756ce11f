"""The Ray cluster of a sweep: started on this machine, or joined where RAY_ADDRESS names one, or the caller's own."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import ray
from filelock import FileLock
from ray.util.client import ray as client

from ikd_ray.errors import UsageError, first_line
from ikd_ray.sweep import ray_internals
from ikd_ray.sweep.resources import MAX_CONCURRENT, Node
from ikd_ray.terminal.interrupts import TERMINATION

CONNECT_TIMEOUT_S = 10.0
MONITOR_INTERVAL_S, MAX_MISSED_CHECKS = 1.0, 3
STUCK_S = 10.0  # in which the main thread must be done with Ray when it has died
SHUTDOWN_LIMIT_S = 30.0  # Ray's shutdown takes about four
OBJECT_STORE_BYTES = 100_000_000  # data and targets are memory maps: nothing large goes through Ray
PRELOADED_MODULES = ["ikd_ray.sweep.trainable"]
# Tune prints nothing, and writes nothing but one snapshot of its state: sweeps resume from the study and the trials'
# folders. Tune's handler of Ctrl-C would wait for each running trial's epoch.
DEFAULTS = {
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
}
VARIABLES = {"TUNE_DISABLE_SIGINT_HANDLER": "1"}
INIT_OPTIONS: dict[str, Any] = {
    "logging_level": logging.CRITICAL,
    "log_to_driver": False,
    "configure_logging": True,
}


class ClusterLostError(BaseException):
    """Ray did not start or has died; not an `Exception`, since no code that is running then can handle it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message or "Ray's own processes died, and every trial with them (killed, or out of memory)"
        )


class Cluster:
    """A cluster that this process uses.

    Where Ray's control service has died, calls of Ray block for a minute and then end the process without a word.
    Therefore the process ends itself when one of them takes too long.

    Attributes:
        status: exit status of the process, once the user has been told how the sweep ended.
        stays: whether this process had joined or started it before, and uses it after the sweep.
    """

    def __init__(self, folder: str | None = None, stays: bool = False) -> None:
        """Note the folder of Ray's files if the sweep started the cluster."""
        self.status: int | None = None
        self._folder, self.stays = folder, stays

    def monitor(self, tell_lost: Callable[[], int]) -> ClusterMonitor:
        """Return a context that notices when Ray has died.

        `tell_lost` tells the user, and returns the exit status; it is called, in another thread, where calls of Ray
        block the main thread.
        """
        return ClusterMonitor(
            lambda: ray_internals.is_cluster_alive(CONNECT_TIMEOUT_S), lambda: self._exit(tell_lost())
        )

    def shut_down(self) -> None:
        """Leave the cluster, and end it if this process started it."""
        timer = threading.Timer(SHUTDOWN_LIMIT_S, self._exit, [1 if self.status is None else self.status])
        timer.daemon = True
        timer.start()
        try:
            if self.status is not None and not ray_internals.is_cluster_alive(CONNECT_TIMEOUT_S):
                self._exit(self.status)
            ray.shutdown()
        finally:
            timer.cancel()

    def _exit(self, status: int) -> NoReturn:
        """End this process and Ray's own at once."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        if self._folder:
            ray_internals.kill_processes()
            shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(status)


@contextmanager
def ray_cluster(nested: bool) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine in a temporary folder.

    Where this process uses Ray already, that cluster is taken, and stays. With `nested`, trials start Ray Train, which
    asks the dashboard's API server. Most of its processes need no models.

    Raises:
        UsageError: There is no cluster at RAY_ADDRESS.
        ClusterLostError: Ray did not start.
    """
    address, tune_logger = os.environ.get("RAY_ADDRESS"), logging.getLogger("ray.tune")
    defaults = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        stack.callback(tune_logger.setLevel, tune_logger.level)
        tune_logger.setLevel(logging.CRITICAL)  # the console reports on trials
        stack.enter_context(ray_internals.environment(defaults | VARIABLES))
        stack.enter_context(ray_internals.silenced_worker_output())
        stack.enter_context(ray_internals.shared_idle_workers())
        if ray.is_initialized():
            if client.is_connected():
                raise UsageError("Ray is connected as a client (ray://): run on a node of the cluster")
            cluster = Cluster(stays=True)
        elif address:
            cluster = Cluster()
            stack.callback(cluster.shut_down)
            with _kept_handlers():
                _join_cluster(address)
        else:
            folder = stack.enter_context(_temporary_folder())
            cluster = Cluster(folder)
            stack.callback(cluster.shut_down)
            # The shutdown takes about four seconds.
            stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
            stack.enter_context(ray_internals.bind_to_localhost())
            with _kept_handlers():
                _start_cluster(folder, nested)
        yield cluster


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGHUP after the block: Ray's own dump a stack and abort."""
    handlers = {number: signal.getsignal(number) for number in TERMINATION}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def cluster_nodes() -> list[Node]:
    """Return the running cluster's machines."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0))) for resources in alive]


def _start_cluster(folder: str, nested: bool) -> None:
    _create_token()
    # Ray starts an idle worker for each CPU; on a small machine they import the trainable during the preparation.
    preload = not nested and ray_internals.count_cpus() <= MAX_CONCURRENT
    try:
        ray.init(
            address="local",
            include_dashboard=None if nested else False,
            dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            _system_config=ray_internals.preload_config(PRELOADED_MODULES) if preload else None,
            # Ray opens its folder to all users; the one above stays private.
            _temp_dir=os.path.join(folder, "ray"),
            **INIT_OPTIONS,
        )
    except Exception as error:  # Ray raises what its processes and transports raise
        raise ClusterLostError(f"Ray did not start: {first_line(error)}") from None


def _create_token() -> None:
    """Create Ray's token so that only this user can read it; Ray itself leaves its mode to the umask."""
    token = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # without a home folder Ray reports the error itself
        token.parent.mkdir(mode=0o700, exist_ok=True)
        if token.exists():
            token.chmod(0o600)
        else:
            with open(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_hex(32).encode())


def _join_cluster(address: str) -> None:
    if address.startswith("ray://"):
        raise UsageError(f"RAY_ADDRESS {address}: run on a node of the cluster, with RAY_ADDRESS=auto")
    offline = {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray itself would retry for ten minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        ray.init(address=address, runtime_env={"env_vars": offline} if offline else None, **INIT_OPTIONS)
    except Exception as error:  # Ray raises what its transports raise
        raise UsageError(
            f"RAY_ADDRESS {address}: no cluster there, or not with this token ({first_line(error)}); start one, set "
            "RAY_AUTH_MODE=token where it has a token, or unset RAY_ADDRESS for a local one"
        ) from None


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """Create a locked folder for Ray's own files, and remove folders that killed processes left."""
    # Ray's sockets are there, and their paths are limited to about a hundred characters: TMPDIR may be too long.
    parent = Path("/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir())
    for lock in parent.glob("ikd-*/owner.lock"):
        with suppress(OSError), FileLock(lock, blocking=False):
            shutil.rmtree(lock.parent, ignore_errors=True)
    hidden = Path(tempfile.mkdtemp(prefix=".ikd-", dir=parent))
    with FileLock(hidden / "owner.lock"):
        folder = hidden.rename(parent / hidden.name.lstrip("."))  # visible to others only once it is locked
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class ClusterMonitor:
    """Context that raises `ClusterLostError` in the main thread when Ray has died.

    Ray itself waits for minutes or for ever, or ends the process without a message. `is_alive` is called in another
    thread, and so is `give_up` where the main thread does not leave the context then: calls of Ray block it.
    """

    def __init__(self, is_alive: Callable[[], bool], give_up: Callable[[], None]) -> None:
        self._is_alive, self._give_up = is_alive, give_up
        self._left, self._lost = threading.Event(), False

    def __enter__(self) -> None:
        # Not SIGUSR1, which Tune handles like Ctrl-C.
        self._previous_handler = signal.signal(signal.SIGUSR2, self._raise_lost)
        self._thread = threading.Thread(target=self._run, name="cluster-monitor", daemon=True)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._left.set()
        signal.signal(signal.SIGUSR2, self._previous_handler)
        # A check after the shutdown would make Ray join or start another cluster.
        self._thread.join(CONNECT_TIMEOUT_S)
        if self._lost and kind is not None:  # Ray replaces errors that are raised within its calls by its own
            raise ClusterLostError from None

    def _raise_lost(self, *_: object) -> None:
        if not self._left.is_set():
            self._lost = True
            raise ClusterLostError

    def _run(self) -> None:
        missed = 0
        while missed < MAX_MISSED_CHECKS:
            if self._left.wait(MONITOR_INTERVAL_S):
                return
            missed = 0 if self._is_alive() else missed + 1
        os.kill(os.getpid(), signal.SIGUSR2)
        if not self._left.wait(STUCK_S):
            self._give_up()
