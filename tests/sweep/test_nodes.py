"""A cluster of several nodes on one machine, one of which dies or comes in the middle of a sweep."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from ikd_ray.records import read_trials
from tests.helpers.run_command import (
    MARK,
    damaged_entries,
    kill_all,
    processes_with_mark,
    run_sweep_process,
    saved_epochs,
    sweep_flags,
    trial_metrics,
)
from tests.helpers.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.long]

SPACE = """
sampler: grid
params:
  regime: {choice: [id, kd]}
  learning_rate: {choice: [1.0e-3, 2.0e-3, 4.0e-3]}
  student_layers: 2
  epochs: 4
  batch_size: 16
teacher: {epochs: 1}
"""
TRIALS = 6


class Cluster:
    """Nodes of one CPU each on this machine, started as a user starts them."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._mark, self._folder, self._nodes = uuid.uuid4().hex, folder, []
        self._port = free_port()
        address = {"RAY_ADDRESS": f"127.0.0.1:{self._port}"}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
        self.driver = environment | token | address  # the environment of a sweep on this cluster
        self._environment = environment | token | {MARK: self._mark}

    def add(self) -> None:
        """One more; it is there when this returns."""
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        where = [f"--address=127.0.0.1:{self._port}"] if self._nodes else head
        common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000"]
        ray = Path(sys.executable).with_name("ray")
        before = self._raylets()
        started = subprocess.run(
            [str(ray), "start", *where, *common, "--disable-usage-stats"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        [raylet] = [raylet for raylet in self._raylets() if raylet not in before]
        self._nodes.append(raylet)

    def kill_raylet(self, node: int) -> None:
        """Its workers see that it is gone, and go too."""
        self._nodes[node].kill()

    def _raylets(self) -> list[psutil.Process]:
        found = []
        for process in processes_with_mark(self._mark):
            with suppress(psutil.Error):
                if Path(process.cmdline()[0]).name == "raylet":
                    found.append(process)
        return found

    def close(self) -> None:
        kill_all(self._mark)


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    # The paths of Ray's sockets may be about a hundred characters long, pytest's folders are too deep for them.
    folder = Path(tempfile.mkdtemp(prefix="ikdn-", dir="/tmp"))
    cluster = Cluster(environment, folder)
    try:
        cluster.add()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def arguments(inputs: Path, home: Path, name: str) -> list[object]:
    (home / "space.yaml").write_text(SPACE)
    return sweep_flags(inputs, home / "space.yaml", name)


def targets(output: Path) -> dict[str, tuple[int, int, int]]:
    """Every file of the stored targets: what would be another one if it had been built again."""
    found = {}
    for path in (output / "cache/targets").rglob("*.npy"):
        status = path.stat()
        found[str(path)] = status.st_ino, status.st_mtime_ns, status.st_size
    assert found
    return found


def trained(sweep: Path) -> set[float]:
    """How long each epoch of each trial took, to the nanosecond: nobody's second training takes as long."""
    return {epoch["time/epoch_s"] for trial in read_trials(sweep) for epoch in trial.history}


def most_at_once(output: str) -> int:
    """How many trials ran at the same time, at most."""
    running, most = set(), 0
    for id, event in re.findall(r"#\d+ (t\d+) (started|finished|FAILED)", output):
        (running.add if event == "started" else running.discard)(id)
        most = max(most, len(running))
    return most


def test_a_node_that_dies_takes_no_trial_with_it(large, environment, command, tmp_path):
    outputs = tmp_path / "outputs"
    with cluster(environment) as nodes:
        nodes.add()
        with run_sweep_process(nodes.driver, tmp_path, arguments(large, tmp_path, "cut")) as sweep:
            sweep.wait_for("storing the teacher's targets: done")
            built = targets(outputs)
            sweep.wait_for("started: ", count=2)
            # Two trials are at it, on nodes with room for one: so one of them is on the node that dies.
            sweep.wait_until(lambda: len({epoch.parent for epoch in saved_epochs(outputs)}) >= 2)
            before = saved_epochs(outputs)
            nodes.kill_raylet(1)
            ended = sweep.end(timeout=300)
        assert ended.status == 0, ended.output + ended.errors
        assert most_at_once(ended.output) == 2
        trials = read_trials(outputs / "cut")
        assert [trial.status for trial in trials] == ["finished"] * TRIALS
        assert ended.output.count("storing the teacher's targets ...") == 1
        assert targets(outputs) == built
        assert before.items() <= saved_epochs(outputs).items()
        assert set(before.values()) <= trained(outputs / "cut"), "a saved epoch was trained again"
        assert damaged_entries(outputs) == []
        undisturbed = [*arguments(large, tmp_path, "whole"), "--no-share"]
        with run_sweep_process(nodes.driver, tmp_path, undisturbed) as sweep:
            again = sweep.end(timeout=300)
        assert again.status == 0, again.output + again.errors
    assert trial_metrics(outputs / "cut") == trial_metrics(outputs / "whole")


def test_a_node_that_comes_gets_work(large, environment, tmp_path):
    given = [*arguments(large, tmp_path, "more"), "--trials", 4]
    # A trial lasts longer than a new node's first process takes to start.
    (tmp_path / "space.yaml").write_text(SPACE.replace("epochs: 4", "epochs: 16"))
    with cluster(environment) as nodes, run_sweep_process(nodes.driver, tmp_path, given) as sweep:
        sweep.wait_for("started: ")
        nodes.add()
        ended = sweep.end(timeout=300)
    assert ended.status == 0, ended.output + ended.errors
    trials = read_trials(tmp_path / "outputs/more")
    assert [trial.status for trial in trials] == ["finished"] * 4
    assert most_at_once(ended.output) == 2, ended.output
