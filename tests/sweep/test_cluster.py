"""How a cluster is divided among trials."""

from __future__ import annotations

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.sweep.cluster import ray_cluster
from ikd_ray.sweep.resources import Node, TrialResources, allocate


def allocated(*nodes, trials=100, concurrent=None, workers=1, gpus_per_worker=None):
    return allocate(
        [Node(*node) for node in nodes],
        trials=trials,
        concurrent=concurrent,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )


ONE_GPU, FOUR_GPUS = (16, 1), (16, 4)


@pytest.mark.parametrize(
    ("nodes", "asked", "given"),
    [
        ([(2,)], {}, TrialResources(2, 1, 1, 0)),
        ([(2,)], {"trials": 1}, TrialResources(1, 1, 2, 0)),
        ([(2,)], {"workers": 2}, TrialResources(1, 2, 1, 0)),
        ([(1,)], {}, TrialResources(1, 1, 1, 0)),
        ([(64,)], {}, TrialResources(8, 1, 8, 0)),
        ([(64,)], {"concurrent": 32}, TrialResources(32, 1, 2, 0)),
        ([(4,)] * 4, {"trials": 1}, TrialResources(1, 1, 4, 0)),
        ([(8,)] * 2, {"workers": 3, "trials": 1}, TrialResources(1, 3, 4, 0)),
        ([(8,), (2,)], {"workers": 2, "trials": 1}, TrialResources(1, 2, 4, 0)),
        ([ONE_GPU], {}, TrialResources(1, 1, 16, 1)),
        ([FOUR_GPUS], {}, TrialResources(4, 1, 4, 1)),
        ([ONE_GPU, (16,)], {}, TrialResources(1, 1, 16, 1)),
        ([FOUR_GPUS], {"workers": 2}, TrialResources(2, 2, 4, 1)),
        ([ONE_GPU], {"gpus_per_worker": 0.25}, TrialResources(4, 1, 4, 0.25)),
        ([(16, 2)], {"gpus_per_worker": 0}, TrialResources(8, 1, 2, 0)),
    ],
)
def test_the_whole_cluster_is_used(nodes, asked, given):
    assert allocated(*nodes, **asked) == given


@pytest.mark.parametrize(
    ("nodes", "asked", "words"),
    [
        ([(2,)], {"workers": 3}, ("--workers-per-trial 3", "2 CPUs")),
        ([(2,)], {"concurrent": 3}, ("--concurrent 3", "room for 2")),
        ([(8,)], {"gpus_per_worker": 1}, ("--gpus-per-worker 1", "0 GPUs")),
        ([(8, 1)], {"workers": 2}, ("2 workers", "1 GPUs")),
        ([(8, 2)], {"gpus_per_worker": 1.5}, ("--gpus-per-worker 1.5", "whole number")),
    ],
)
def test_more_than_there_is_is_refused(nodes, asked, words):
    with pytest.raises(UsageError) as error:
        allocated(*nodes, **asked)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1"])
def test_no_cluster_at_the_address(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match=f"RAY_ADDRESS {address}"), ray_cluster(nested=False):
        pass
