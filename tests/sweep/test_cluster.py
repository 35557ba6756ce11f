"""How a cluster is divided among trials."""

from __future__ import annotations

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.sweep.cluster import Shares, Size, divide


def shares(cpus, gpus=0, node_cpus=None, trials=100, concurrent=None, workers=1, gpus_per_worker=None):
    return divide(
        Size(cpus, gpus, node_cpus or cpus),
        trials=trials,
        concurrent=concurrent,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"cpus": 2}, Shares(2, 1, 1, 0)),
        ({"cpus": 2, "trials": 1}, Shares(1, 1, 2, 0)),
        ({"cpus": 2, "workers": 2}, Shares(1, 2, 1, 0)),
        ({"cpus": 1}, Shares(1, 1, 1, 0)),
        ({"cpus": 16, "node_cpus": 4, "trials": 1}, Shares(1, 1, 4, 0)),
        ({"cpus": 64}, Shares(8, 1, 8, 0)),
        ({"cpus": 64, "concurrent": 32}, Shares(32, 1, 2, 0)),
        ({"cpus": 16, "gpus": 1}, Shares(1, 1, 16, 1)),
        ({"cpus": 16, "gpus": 4}, Shares(4, 1, 4, 1)),
        ({"cpus": 16, "gpus": 4, "workers": 2}, Shares(2, 2, 4, 1)),
        ({"cpus": 16, "gpus": 1, "gpus_per_worker": 0.25}, Shares(4, 1, 4, 0.25)),
        ({"cpus": 16, "gpus": 2, "gpus_per_worker": 0}, Shares(8, 1, 2, 0)),
    ],
)
def test_the_whole_cluster_is_used(asked, given):
    assert shares(**asked) == given


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"cpus": 2, "workers": 3}, ("--workers-per-trial 3", "2 CPUs")),
        ({"cpus": 2, "concurrent": 3}, ("--concurrent 3", "room for 2")),
        ({"cpus": 8, "gpus_per_worker": 1}, ("--gpus-per-worker 1", "0 GPUs")),
        ({"cpus": 8, "gpus": 1, "workers": 2}, ("2 workers", "1 GPUs")),
    ],
)
def test_more_than_there_is_is_refused(asked, words):
    with pytest.raises(UsageError) as error:
        shares(**asked)
    assert all(word in str(error.value) for word in words)
