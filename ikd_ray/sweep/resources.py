"""Division of a cluster's CPUs and GPUs among the trials of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ikd_ray.errors import UsageError

MAX_CONCURRENT = 8  # default limit without GPUs; each trial is a process with its own copy of a model
PLANNED_CONCURRENT = 8  # trials at once to plan for on a cluster that may grow


@dataclass(frozen=True)
class Node:
    """One machine of a cluster."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class TrialResources:
    """Number of concurrent trials, workers of each trial, and resources of each worker."""

    concurrent: int
    workers: int
    cpus: int
    gpus: float
    grows: bool = False  # whether nodes that join later run trials too

    @property
    def planned_concurrency(self) -> int:
        """The number of concurrent trials that the search plans for."""
        return max(self.concurrent, PLANNED_CONCURRENT) if self.grows else self.concurrent

    @property
    def per_worker(self) -> dict[str, float]:
        """The resources that one worker requests from Ray."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def allocate(
    nodes: Sequence[Node],
    *,
    trials: int,
    concurrent: int | None,
    workers: int,
    gpus_per_worker: float | None,
    grows: bool = False,
) -> TrialResources:
    """Divide a cluster among trials; arguments that are None are chosen so that all of it is used.

    Without GPUs, as many trials run at once as there are CPUs (at most `MAX_CONCURRENT`), and each worker gets the
    largest equal number of CPUs with which all workers still fit on the nodes.

    Args:
        nodes: All nodes of the cluster.
        trials: Trials that are to run in all.
        concurrent: Trials at once.
        workers: Workers of each trial.
        gpus_per_worker: Below 1: a shared GPU; None: 1 where there are any.
        grows: Whether nodes that join later run trials too.

    Raises:
        UsageError: More is asked for than the cluster has.
    """
    total_cpus, total_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    gpus = gpus_per_worker if gpus_per_worker is not None else float(min(1, total_gpus))
    if gpus > 1 and gpus != int(gpus):
        raise UsageError(f"--gpus-per-worker {gpus:g}: give a whole number, or less than one to share a GPU")
    if workers > total_cpus:
        raise UsageError(
            f"--workers-per-trial {workers}: the cluster has {total_cpus} CPUs; give at most that"
        )
    slots = _worker_slots(nodes, 1, gpus)
    if slots < workers:
        raise UsageError(
            f"--gpus-per-worker {gpus:g} for {workers} workers: the cluster has {total_gpus} GPUs; "
            "give at most what it has"
        )
    fitting = slots // workers
    if concurrent is None:
        concurrent = min(fitting, trials) if gpus else min(fitting, trials, MAX_CONCURRENT)
    elif concurrent > fitting:
        raise UsageError(
            f"--concurrent {concurrent}: the cluster has room for {fitting} trials of {workers} workers; "
            "give at most that"
        )
    cpus = max(n for n in range(1, total_cpus + 1) if _worker_slots(nodes, n, gpus) >= concurrent * workers)
    return TrialResources(concurrent, workers, cpus, gpus, grows)


def _worker_slots(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    """Return how many workers with these CPUs and GPUs fit on the nodes."""
    return sum(min(node.cpus // cpus, int(node.gpus / gpus) if gpus else node.cpus) for node in nodes)
