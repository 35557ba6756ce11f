"""Ray's private names: the only module that uses them.

They are those of Ray 2.60. Each function says what is lost with a Ray version that lacks its names.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


worker = _import("ray._private.worker")
constants = _import("ray._private.ray_constants")
utils = _import("ray._private.utils")
class_cache = _import("ray.tune.execution.class_cache")
psutil = _import("psutil")  # a part of Ray's package

CLUSTER_PROCESSES = ("raylet", "gcs_server")
IDLE_LIMIT_MS = 24 * 3600 * 1000  # longer than any preparation


def count_cpus() -> int:
    """Return the CPUs that Ray would detect on this machine.

    Without the private name: the processor's, which ignores limits of a container.
    """
    detect = getattr(utils, "get_num_cpus", os.cpu_count)
    return int(detect() or 1)


def is_cluster_alive(timeout_s: float) -> bool:
    """Return whether Ray's control service answers and this machine's Ray processes run.

    Ray's public calls would block the process when nobody answers. Without the private names: always True, so that
    a sweep whose cluster died ends when Ray itself gives up.
    """
    node = getattr(worker, "_global_node", None)
    if node is None:
        return True
    try:
        if any(kind in CLUSTER_PROCESSES for kind, _ in node.dead_processes()):
            return False
        host, _, port = node.gcs_address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
        with socket.socket(socket.AF_UNIX) as raylet:
            raylet.connect(node.raylet_socket_name)
    except OSError:
        return False
    except (AttributeError, RuntimeError):  # RuntimeError: Ray is starting another process at this moment
        return True
    return True


def kill_processes() -> None:
    """Kill the Ray processes that this process started, and do not wait for their end.

    Without the private names: they notice within a minute that this process is gone, and end then.
    """
    node: Any = getattr(worker, "_global_node", None)
    with suppress(AttributeError):
        servers = [info.process for processes in node.all_processes.values() for info in processes]
        # Trials and agents are the raylet's children.
        children = [child for server in servers for child in _children(server.pid)]
        for process in [*servers, *children]:
            with suppress(OSError, psutil.Error):
                process.kill()


def _children(pid: int) -> list[Any]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@contextmanager
def silenced_worker_output() -> Iterator[None]:
    """Stop Ray from copying its workers' output to the terminal while the block runs.

    Without the private name: messages for Ray's developers appear between the sweep's own lines.
    """
    printing = getattr(worker, "print_to_stdstream", None)
    if printing is None:
        yield
        return
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


@contextmanager
def shared_idle_workers() -> Iterator[None]:
    """Keep Tune from giving its actors environment variables of their own (it sets one for Lightning) in the block.

    Idle workers do not match such an actor. Without the private name: the first trials wait for new processes.
    """
    variables = getattr(class_cache, "DEFAULT_ENV_VARS", {})
    before = dict(variables)
    variables.clear()
    try:
        yield
    finally:
        variables.update(before)


def preload_config(modules: Sequence[str]) -> dict[str, Any]:
    """Return `ray.init`'s system configuration with which idle workers import modules, and wait for the first trials.

    By default Ray kills workers that have been idle for a second once a trial has reserved the CPUs, before the trial's
    actor can take one.
    """
    return {"preload_python_modules": list(modules), "idle_worker_killing_time_threshold_ms": IDLE_LIMIT_MS}


@contextmanager
def bind_to_localhost() -> Iterator[None]:
    """Bind Ray's servers to 127.0.0.1 (its default outside macOS and Windows is 0.0.0.0) while the block runs.

    Without the private names: the servers listen on every interface, for whoever has the token.
    """
    variable = getattr(constants, "ENABLE_RAY_CLUSTERS_ENV_VAR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    variables = {variable: "0"}  # for the processes that Ray starts
    if "lo" in (name for _, name in socket.if_nameindex()):
        variables["GLOO_SOCKET_IFNAME"] = "lo"  # for trials with several workers
    enabled = getattr(constants, "ENABLE_RAY_CLUSTER", None)  # Ray read it from the environment at its import
    if enabled is not None:
        constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment(variables):
            yield
    finally:
        if enabled is not None:
            constants.ENABLE_RAY_CLUSTER = enabled


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
