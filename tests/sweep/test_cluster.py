"""Clusters: division among trials, and Ray's private names."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.sweep import cluster, ray_internals
from ikd_ray.sweep.cluster import ClusterLostError, ClusterMonitor, ray_cluster
from ikd_ray.sweep.resources import Node, TrialResources, allocate
from ikd_ray.terminal.interrupts import TERMINATION

ONE_GPU, FOUR_GPUS = (16, 1), (16, 4)


def allocate_nodes(nodes, options):
    defaults = {"trials": 100, "concurrent": None, "workers": 1, "gpus_per_worker": None}
    return allocate([Node(*node) for node in nodes], **defaults | options)


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
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
        ([(64, 16)], {}, TrialResources(16, 1, 4, 1)),
        ([ONE_GPU, (16,)], {}, TrialResources(1, 1, 16, 1)),
        ([FOUR_GPUS], {"workers": 2}, TrialResources(2, 2, 4, 1)),
        ([ONE_GPU], {"gpus_per_worker": 0.25}, TrialResources(4, 1, 4, 0.25)),
        ([(16, 2)], {"gpus_per_worker": 0}, TrialResources(8, 1, 2, 0)),
    ],
)
def test_trials_use_the_whole_cluster(nodes, options, expected):
    assert allocate_nodes(nodes, options) == expected


@pytest.mark.parametrize(
    ("nodes", "options", "words"),
    [
        ([(2,)], {"workers": 3}, ("--workers-per-trial 3", "2 CPUs")),
        ([(2,)], {"concurrent": 3}, ("--concurrent 3", "room for 2")),
        ([(8,)], {"gpus_per_worker": 1}, ("--gpus-per-worker 1", "0 GPUs")),
        ([(8, 1)], {"workers": 2}, ("2 workers", "1 GPUs")),
        ([(8, 2)], {"gpus_per_worker": 1.5}, ("--gpus-per-worker 1.5", "whole number")),
    ],
)
def test_more_than_the_cluster_has_is_refused(nodes, options, words):
    with pytest.raises(UsageError) as error:
        allocate_nodes(nodes, options)
    assert all(word in str(error.value) for word in words)


@pytest.fixture
def fake_ray(monkeypatch):
    """Replace Ray's start by one that takes the signals, as Ray's does; return the arguments of each start."""
    starts = []

    def init(**options):
        folder = Path(options["_temp_dir"])
        starts.append(options | {"modes": (folder.parent.stat().st_mode & 0o777, folder.exists())})
        for number in TERMINATION:
            signal.signal(number, signal.SIG_DFL)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray_internals, "is_cluster_alive", lambda timeout_s: True)
    return starts


def test_ray_does_not_keep_the_signals_that_end_a_sweep(fake_ray):
    handlers = {number: signal.getsignal(number) for number in TERMINATION}
    with ray_cluster(nested=False):
        assert {number: signal.getsignal(number) for number in TERMINATION} == handlers


def test_rays_folder_is_in_one_that_only_the_user_can_open(fake_ray):
    with ray_cluster(nested=False):
        [start] = fake_ray
        assert start["modes"] == (0o700, False)
    assert not Path(start["_temp_dir"]).parent.exists()


@pytest.mark.parametrize(
    ("nested", "cpus", "preloaded"), [(False, 2, True), (True, 2, False), (False, 64, False)]
)
def test_idle_processes_import_models_only_where_trials_run_in_them(
    fake_ray, monkeypatch, nested, cpus, preloaded
):
    monkeypatch.setattr(ray_internals, "count_cpus", lambda: cpus)
    with ray_cluster(nested=nested):
        [start] = fake_ray
        config = start["_system_config"]
    assert config["idle_worker_killing_time_threshold_ms"] > 3_600_000 if preloaded else config is None


def test_nothing_that_ray_and_tune_read_stays_changed(fake_ray, monkeypatch):
    """A notebook goes on after a sweep, perhaps with a Tune experiment of its own."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "60")
    monkeypatch.setattr(ray_internals.class_cache, "DEFAULT_ENV_VARS", {"A": "1"})

    def state():
        logger = logging.getLogger("ray.tune")
        names = [name for name in os.environ if name.startswith("TUNE_") or name == "RAY_AIR_NEW_OUTPUT"]
        return (
            {name: os.environ[name] for name in names},
            logger.level,
            ray_internals.worker.print_to_stdstream,
            dict(ray_internals.class_cache.DEFAULT_ENV_VARS),
        )

    before = state()
    with ray_cluster(nested=False):
        variables, level, _, of_actors = state()
        assert variables["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
        assert variables["TUNE_GLOBAL_CHECKPOINT_S"] == "60", "the user's own"
        assert (level, of_actors) == (logging.CRITICAL, {})
    assert state() == before


def test_a_ray_that_runs_already_is_used_and_stays(fake_ray, monkeypatch):
    shut_down = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: shut_down.append(1))
    with ray_cluster(nested=False) as running:
        assert running.stays
    assert (fake_ray, shut_down) == ([], [])
    monkeypatch.setattr(cluster.client, "is_connected", lambda: True)
    with pytest.raises(UsageError, match="run on a node of the cluster"), ray_cluster(nested=False):
        pass


def test_a_ray_that_does_not_start_is_one_line(fake_ray, monkeypatch):
    def fail(**options):
        raise RuntimeError("the GCS died\nand more")

    monkeypatch.setattr(cluster.ray, "init", fail)
    with pytest.raises(ClusterLostError) as error, ray_cluster(nested=False):
        pass
    assert str(error.value) == "Ray did not start: the GCS died"


def test_a_main_thread_that_ray_blocks_is_given_up(monkeypatch):
    """Ray tidies up after the error, with calls that wait for its dead server."""
    monkeypatch.setattr(cluster, "MONITOR_INTERVAL_S", 0.01)
    monkeypatch.setattr(cluster, "STUCK_S", 0.05)
    given_up = threading.Event()

    def tidy_up() -> None:
        try:
            time.sleep(10)
        finally:
            assert given_up.wait(10)

    with pytest.raises(ClusterLostError), ClusterMonitor(lambda: False, given_up.set):
        tidy_up()


@pytest.mark.parametrize("status", [0, 130])
def test_a_shutdown_that_hangs_ends_the_process_with_its_status(tmp_path, status):
    """Ray's own would end it after a minute, with another status."""
    script = f"""
import sys, time
from ikd_ray.sweep import cluster, ray_internals
cluster.SHUTDOWN_LIMIT_S = 0.1
cluster.ray.shutdown = lambda: time.sleep(60)
ray_internals.is_cluster_alive = lambda timeout_s: True
own = cluster.Cluster({str(tmp_path / "ray")!r})
own.status = {status}
print("told")
own.shut_down()
"""
    (tmp_path / "ray").mkdir()
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "told\n", "")
    assert not (tmp_path / "ray").exists()


FIRST_TRIAL = """
import os, time, psutil, ray
from ray.util.placement_group import placement_group
from ikd_ray.sweep import cluster
cluster.PRELOADED_MODULES = ["json"]

def idle_workers():
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "ray::IDLE" in "".join(child.cmdline())}

with cluster.ray_cluster(nested=False):
    cpus, deadline = int(ray.cluster_resources()["CPU"]), time.monotonic() + 60
    while len(idle := idle_workers()) < cpus:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)
    group = placement_group([{"CPU": cpus}])
    assert group.wait(60)
    time.sleep(1)

    @ray.remote(num_cpus=cpus)
    class Trial:
        def pid(self):
            return os.getpid()

    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
    print(ray.get(Trial.options(scheduling_strategy=strategy).remote().pid.remote()) in idle)
"""


@pytest.mark.slow
def test_the_first_trial_takes_an_idle_worker_also_once_its_cpus_are_reserved():
    ended = subprocess.run([sys.executable, "-c", FIRST_TRIAL], capture_output=True, text=True, timeout=150)
    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["True"]), ended.stderr


def test_the_installed_ray_has_the_private_names():
    assert all(map(callable, (ray_internals.worker.print_to_stdstream, ray_internals.utils.get_num_cpus)))
    assert hasattr(ray_internals.worker, "_global_node")
    assert isinstance(ray_internals.class_cache.DEFAULT_ENV_VARS, dict)
    assert ray_internals.constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    assert isinstance(ray_internals.constants.ENABLE_RAY_CLUSTER, bool)


def test_a_ray_without_the_private_names_loses_only_comfort(monkeypatch):
    for name in ("worker", "constants", "utils", "class_cache"):
        monkeypatch.setattr(ray_internals, name, None)
    assert ray_internals.count_cpus() == os.cpu_count()
    assert ray_internals.is_cluster_alive(1.0)
    before = dict(os.environ)
    with (
        ray_internals.silenced_worker_output(),
        ray_internals.shared_idle_workers(),
        ray_internals.bind_to_localhost(),
    ):
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert dict(os.environ) == before
