"""Ray, started with what a sweep needs or joined where one runs, and what of it a trial gets."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from ikd_ray.errors import UsageError

MOST_CONCURRENT = 8  # by default; each trial on a CPU is a process with its own copy of a model
OBJECT_STORE_BYTES = 100_000_000  # data and targets are memory maps: nothing large goes through Ray


@dataclass(frozen=True)
class Shares:
    """How a cluster is divided: trials at once, workers of each, and what every worker gets."""

    concurrent: int
    workers: int
    cpus: int
    gpus: float


@contextmanager
def ray_cluster(nested: bool) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names, or starts one on this machine in a temporary folder.

    Args:
        nested: whether trials start Ray Train themselves, which asks the dashboard's API server.
    """
    os.environ.setdefault("RAY_USAGE_STATS_PROMPT_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    common = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    address = os.environ.get("RAY_ADDRESS")
    temporary = None
    try:
        if address:
            offline = {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
            ray.init(address=address, runtime_env={"env_vars": offline} if offline else None, **common)
        else:
            temporary = tempfile.mkdtemp(prefix="ikd-")
            ray.init(
                address="local",
                include_dashboard=None if nested else False,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=temporary,
                **common,
            )
        yield
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(Path(temporary), ignore_errors=True)


@dataclass(frozen=True)
class Size:
    """CPUs and GPUs of a cluster, and the CPUs of its largest node: no process gets more than those."""

    cpus: int
    gpus: int
    node_cpus: int


def divide(
    size: Size,
    *,
    trials: int,
    concurrent: int | None,
    workers: int,
    gpus_per_worker: float | None,
) -> Shares:
    """Divide a cluster among trials; what is not given is chosen to use the whole of it.

    Without GPUs, as many trials run at once as there are CPUs for (at most `MOST_CONCURRENT`), and each worker
    gets an equal share of threads.

    Raises:
        UsageError: more workers or GPUs are asked for than the cluster has.
    """
    gpus = gpus_per_worker if gpus_per_worker is not None else float(min(1, size.gpus))
    if gpus * workers > size.gpus:
        raise UsageError(
            f"--gpus-per-worker {gpus:g} for {workers} workers: the cluster has {size.gpus} GPUs; "
            "give at most what it has"
        )
    if workers > size.cpus:
        raise UsageError(
            f"--workers-per-trial {workers}: the cluster has {size.cpus} CPUs; give at most that"
        )
    fits = int(size.gpus // (gpus * workers)) if gpus else size.cpus // workers
    fits = max(1, min(fits, size.cpus // workers))
    if concurrent is None:
        concurrent = min(fits, trials, MOST_CONCURRENT)
    elif concurrent > fits:
        raise UsageError(
            f"--concurrent {concurrent}: the cluster has room for {fits} trials of {workers} workers; give at most that"
        )
    cpus = max(1, min(size.cpus // (concurrent * workers), size.node_cpus))
    return Shares(concurrent, workers, cpus, gpus)


def cluster_size() -> Size:
    """Of the cluster that is up."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    return Size(sum(cpus), int(sum(node.get("GPU", 0) for node in nodes)), max(cpus))
