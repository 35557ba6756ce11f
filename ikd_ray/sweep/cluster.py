"""Ray, started with what a sweep needs or joined where one runs, and what of it a trial gets."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray._private import ray_constants
from ray._private import worker as _worker
from ray.tune.execution import class_cache

from ikd_ray.errors import UsageError, first_line

MOST_CONCURRENT = 8  # by default; each trial on a CPU is a process with its own copy of a model
FORESEEN = 4  # trials at once on a cluster that may grow
CONNECT_SECONDS = 10
WATCH_SECONDS, MOST_MISSED = 1.0, 3
OBJECT_STORE_BYTES = 100_000_000  # data and targets are memory maps: nothing large goes through Ray
# Ray starts a worker for each CPU; on a small machine they import this while the sweep is being prepared.
PRELOADED, PRELOAD_CPUS = ["ikd_ray.sweep.trainable"], MOST_CONCURRENT


@dataclass(frozen=True)
class TrialResources:
    """Division of a cluster: trials at once, workers of each, and the resources of every worker."""

    concurrent: int
    workers: int
    cpus: int
    gpus: float
    grows: bool = False  # nodes that join later get trials, too

    @property
    def planned_concurrency(self) -> int:
        """Trials at once that the search must have room for."""
        return max(self.concurrent, FORESEEN) if self.grows else self.concurrent

    @property
    def per_worker(self) -> dict[str, float]:
        """What Ray is asked for, for one worker."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


class ClusterLostError(BaseException):
    """Ray is gone while it is needed. Not an `Exception`: whoever is at work then has nothing to mend."""


class _Watch:
    """Interrupts this process's main thread with `ClusterLostError` when Ray is no longer there.

    Ray itself waits for minutes, for good, or ends the process without a word.
    """

    def __init__(self, is_there: Callable[[], bool]) -> None:
        self._is_there, self._over, self._is_lost = is_there, threading.Event(), False

    def __enter__(self) -> None:
        # Not SIGUSR1, which Tune takes for Ctrl-C.
        self._before = signal.signal(signal.SIGUSR2, self._lost)
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        signal.signal(signal.SIGUSR2, self._before)
        # Asked when it is down already, Ray joins or starts another cluster by itself.
        self._thread.join(CONNECT_SECONDS)
        if self._is_lost and kind is not None:  # of what is raised in its calls Ray makes errors of its own
            raise ClusterLostError from None

    def _lost(self, *_: object) -> None:
        if not self._over.is_set():
            self._over.set()
            self._is_lost = True
            raise ClusterLostError

    def _work(self) -> None:
        missed = 0
        while not self._over.wait(WATCH_SECONDS):
            missed = 0 if self._is_there() else missed + 1
            if missed >= MOST_MISSED:
                os.kill(os.getpid(), signal.SIGUSR2)


def _is_there() -> bool:
    """Whether Ray's control service answers, and this machine's part of Ray is alive."""
    node: Any = _worker._global_node
    host, _, port = node.gcs_address.rpartition(":")
    try:  # Ray's own calls would hold up the whole process, where nobody answers them
        if any(
            kind in ("raylet", "gcs_server") for kind, _ in node.dead_processes()
        ):  # of those started here
            return False
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        with socket.socket(socket.AF_UNIX) as raylet:
            raylet.connect(node.raylet_socket_name)
    except OSError:
        return False
    except RuntimeError:  # Ray is starting another process meanwhile
        return True
    return True


@contextmanager
def ray_cluster(nested: bool) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine in a temporary folder.

    Args:
        nested: whether trials start Ray Train themselves, which asks the dashboard's API server.

    Raises:
        UsageError: there is no cluster at RAY_ADDRESS.
        ClusterLostError: Ray died.
    """
    os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Tune gives its actors this environment of their own (for Lightning), which no waiting worker would fit.
    getattr(class_cache, "DEFAULT_ENV_VARS", {}).clear()
    # What becomes of trials is told by others; what Ray says of its processes is for its developers.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if hasattr(_worker, "print_to_stdstream"):
        _worker.print_to_stdstream = lambda *_, **__: None
    common: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": True,
    }
    address = os.environ.get("RAY_ADDRESS")
    with ExitStack() as own:
        own.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        if address:
            own.callback(ray.shutdown)
            _join(address, common)
        else:
            temporary = own.enter_context(_temporary_folder())
            own.callback(ray.shutdown)  # before the folder goes
            own.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # it takes some four seconds, no more
            own.enter_context(_on_this_machine())
            ray.init(
                address="local",
                include_dashboard=None if nested else False,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                _system_config={"preload_python_modules": PRELOADED} if _is_small() else None,
                _temp_dir=temporary,
                **common,
            )
        with _Watch(_is_there):
            yield


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder for Ray's own files, held by a lock. Those that killed processes have left go."""
    # Ray puts sockets there, whose paths may be about a hundred characters long: TMPDIR may be too deep.
    home = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir())
    for lock in home.glob("ikd-*/owner.lock"):
        with suppress(OSError), FileLock(lock, blocking=False):
            shutil.rmtree(lock.parent, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".ikd-", dir=home))
    with FileLock(new / "owner.lock"):
        folder = new.rename(home / new.name.lstrip("."))  # seen by others only now that it is held
        try:
            yield str(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """Has Ray's servers listen on 127.0.0.1 alone, as they do on macOS; elsewhere they listen to everybody.

    It keeps its token where others on the machine cannot read it; by itself Ray makes that file as the umask says.
    """
    token, before = Path.home() / ".ray" / "auth_token", dict(os.environ)
    with suppress(OSError):  # where there is no home Ray has something to say itself
        token.parent.mkdir(mode=0o700, exist_ok=True)
        if token.exists():
            token.chmod(0o600)
        else:
            with open(os.open(token, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
    own = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}  # for the processes that Ray starts
    if "lo" in (name for _, name in socket.if_nameindex()):
        own["GLOO_SOCKET_IFNAME"] = "lo"  # trials of several workers
    os.environ.update(own)
    ray_constants.ENABLE_RAY_CLUSTER = False  # what this process read when it imported Ray
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = True
        for name in own:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]


def _is_small() -> bool:
    return (os.cpu_count() or 1) <= PRELOAD_CPUS


def _join(address: str, options: dict[str, Any]) -> None:
    if address.startswith("ray://"):
        raise UsageError(f"RAY_ADDRESS {address}: run on a node of the cluster, with RAY_ADDRESS=auto")
    offline = {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray itself would go on asking for ten minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, runtime_env={"env_vars": offline} if offline else None, **options)
    except Exception as error:  # Ray raises what its transports raise
        raise UsageError(
            f"RAY_ADDRESS {address}: no cluster there, or not with this token ({first_line(error)}); start one, set "
            "RAY_AUTH_MODE=token where it has a token, or unset RAY_ADDRESS for a local one"
        ) from None


@dataclass(frozen=True)
class Node:
    """What one machine of a cluster has."""

    cpus: int
    gpus: int = 0


def allocate(
    nodes: Sequence[Node],
    *,
    trials: int,
    concurrent: int | None,
    workers: int,
    gpus_per_worker: float | None,
    grows: bool = False,
) -> TrialResources:
    """Divide a cluster among trials; what is not given is chosen to use the whole of it.

    Without GPUs, as many trials run at once as there are CPUs for (at most `MOST_CONCURRENT`), and each worker
    gets the largest equal share of threads for which all find a place on some node.

    Args:
        grows: whether more nodes may join, of which each trial is to get as much.

    Raises:
        UsageError: more workers or GPUs are asked for than the cluster has.
    """
    total_cpus, total_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    gpus = gpus_per_worker if gpus_per_worker is not None else float(min(1, total_gpus))
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker {gpus:g}: give a whole number, or less than one to share a GPU")
    if workers > total_cpus:
        raise UsageError(
            f"--workers-per-trial {workers}: the cluster has {total_cpus} CPUs; give at most that"
        )
    if _places(nodes, 1, gpus) < workers:
        raise UsageError(
            f"--gpus-per-worker {gpus:g} for {workers} workers: the cluster has {total_gpus} GPUs; "
            "give at most what it has"
        )
    fits = _places(nodes, 1, gpus) // workers
    if concurrent is None:
        concurrent = min(fits, trials, MOST_CONCURRENT)
    elif concurrent > fits:
        raise UsageError(
            f"--concurrent {concurrent}: the cluster has room for {fits} trials of {workers} workers; "
            "give at most that"
        )
    cpus = max(n for n in range(1, total_cpus + 1) if _places(nodes, n, gpus) >= concurrent * workers)
    return TrialResources(concurrent, workers, cpus, gpus, grows)


def _places(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    """Workers that find a place, each with so many CPUs and GPUs of one node."""
    return sum(min(node.cpus // cpus, int(node.gpus / gpus) if gpus else node.cpus) for node in nodes)


def cluster_nodes() -> list[Node]:
    """The machines of the cluster that is up."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in alive]
