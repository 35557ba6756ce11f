"""Clusters that a sweep joins: they die, a node dies or joins during a sweep, nodes share no disk but a bucket."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ikd_ray.records import read_trials
from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage
from tests.helpers.consistency import assert_no_epoch_lost, damaged_entries, saved_epochs, trial_metrics
from tests.helpers.process_tree import ProcessTree
from tests.helpers.run_command import run_sweep_process, sweep_flags
from tests.helpers.servers import free_port

pytestmark = pytest.mark.long

SPACE = """
sampler: grid
params:
  regime: {choice: [id, kd]}
  learning_rate: {choice: [1.0e-3, 2.0e-3, 4.0e-3]}
  student_layers: 2
  epochs: 16
  batch_size: 16
teacher: {epochs: 1}
"""
SEARCH = """
params:
  regime: {choice: [kd, pid]}
  student_layers: 2
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  epochs: 2
  batch_size: 16
teacher: {epochs: 1}
"""
TRIALS = 6


class Cluster:
    """Nodes of one CPU each on this machine, started as a user starts them.

    Attributes:
        driver: environment of a sweep on this cluster.
    """

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._tree, self._folder, self._nodes = ProcessTree(), folder, []
        self._port = free_port()
        address = {"RAY_ADDRESS": f"127.0.0.1:{self._port}"}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
        self.driver = environment | token | address
        self._environment = environment | token | self._tree.environment

    def add(self, home: Path | None = None) -> None:
        """Start one more node and wait until it has joined.

        Args:
            home: the home folder of its processes, where nodes share none.
        """
        head = ["--head", f"--port={self._port}", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        role = [f"--address=127.0.0.1:{self._port}"] if self._nodes else head
        common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000"]
        ray = Path(sys.executable).with_name("ray")
        before = self._tree.find("raylet")
        started = subprocess.run(
            [str(ray), "start", *role, *common, "--disable-usage-stats"],
            env=self._environment | ({"HOME": str(home)} if home else {}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert started.returncode == 0, started.stdout + started.stderr
        [raylet] = [raylet for raylet in self._tree.find("raylet") if raylet not in before]
        self._nodes.append(raylet)

    def kill_raylet(self, node: int) -> None:
        """Kill a node's raylet, whose workers then end by themselves."""
        self._nodes[node].kill()

    def kill_control_service(self) -> None:
        """Kill the head's GCS, without which no node is of use."""
        [server] = self._tree.find("gcs_server")
        server.kill()

    def close(self) -> None:
        self._tree.kill()


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    # The paths of Ray's sockets may be about a hundred characters long, too few for pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="ikdn-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        nodes = Cluster(environment, folder)
        stack.callback(nodes.close)
        yield nodes


def target_files(output: Path) -> dict[str, tuple[int, int, int]]:
    """Return what changes in every file of the stored targets if it is built again."""
    found = {}
    for path in (output / "cache/targets").rglob("*.npy"):
        status = path.stat()
        found[str(path)] = status.st_ino, status.st_mtime_ns, status.st_size
    assert found
    return found


def most_at_once(output: str) -> int:
    """Return the largest number of trials that ran at the same time."""
    running, most = set(), 0
    for id, event in re.findall(r"#\d+ (t\d+) (started|finished|FAILED)", output):
        (running.add if event == "started" else running.discard)(id)
        most = max(most, len(running))
    return most


def test_a_node_that_dies_takes_no_trial_with_it(large, environment, tmp_path):
    outputs = tmp_path / "outputs"
    with cluster(environment) as nodes:
        nodes.add()
        nodes.add()
        with run_sweep_process(nodes.driver, tmp_path, sweep_flags(large, tmp_path, "cut", SPACE)) as sweep:
            sweep.wait_for("storing the teacher's targets: done")
            built = target_files(outputs)
            sweep.wait_for("started: ", count=2)
            # Two trials run on nodes with room for one, so one of them is on the node that dies.
            sweep.wait_until(lambda: len({epoch.parent for epoch in saved_epochs(outputs)}) >= 2)
            before = saved_epochs(outputs)
            nodes.kill_raylet(1)
            ended = sweep.end(timeout=300, status=0)
        assert most_at_once(ended.output) == 2
        assert [trial.status for trial in read_trials(outputs / "cut")] == ["finished"] * TRIALS
        assert ended.output.count("storing the teacher's targets ...") == 1
        assert target_files(outputs) == built
        assert_no_epoch_lost(outputs / "cut", before)
        assert damaged_entries(outputs) == []
        undisturbed = sweep_flags(large, tmp_path, "whole", SPACE, "--no-share")
        with run_sweep_process(nodes.driver, tmp_path, undisturbed) as sweep:
            sweep.end(timeout=300, status=0)
    assert trial_metrics(outputs / "cut") == trial_metrics(outputs / "whole")


def test_a_node_that_joins_gets_work(large, environment, tmp_path):
    # A trial must last longer than a new node's first process takes to start.
    longer = SPACE.replace("epochs: 16", "epochs: 24")
    given = sweep_flags(large, tmp_path, "more", longer, "--trials", 4)
    with cluster(environment) as nodes:
        nodes.add()
        with run_sweep_process(nodes.driver, tmp_path, given) as sweep:
            sweep.wait_for("started: ")
            nodes.add()
            ended = sweep.end(timeout=300, status=0)
    assert [trial.status for trial in read_trials(tmp_path / "outputs/more")] == ["finished"] * 4
    assert most_at_once(ended.output) == 2, ended.output


@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_a_cluster_that_dies_ends_the_sweep_with_one_line(large, environment, command, tmp_path, delay):
    outputs = tmp_path / "outputs"
    with cluster(environment) as nodes:
        nodes.add()
        with run_sweep_process(nodes.driver, tmp_path, sweep_flags(large, tmp_path, "cut", SPACE)) as sweep:
            sweep.wait_until(lambda: saved_epochs(outputs))
            time.sleep(delay)
            nodes.kill_control_service()
            ended = sweep.end(timeout=60, status=1)
    [line] = ended.errors.splitlines()
    assert line.startswith("error: Ray's own processes died")
    assert "Traceback" not in ended.text
    assert ended.tells_to_resume("--resume cut")
    before = saved_epochs(outputs)
    with cluster(environment) as nodes:
        nodes.add()
        command("run", "--resume", "cut", cwd=tmp_path, **nodes.driver)
    assert [trial.status for trial in read_trials(outputs / "cut")] == ["finished"] * TRIALS
    assert_no_epoch_lost(outputs / "cut", before)


def output_of(machine: dict[str, str], uri: str, monkeypatch) -> Path:
    """Return the local folder of a remote output on a machine."""
    monkeypatch.setenv("HOME", machine["HOME"])
    return RemoteStorage(uri).folder


def test_a_killed_sweep_is_resumed_on_another_machine(inputs, machine, command, s3, tmp_path, monkeypatch):
    given = sweep_flags(inputs, tmp_path, "cut", SEARCH, "--trials", 3, "--concurrent", 1)
    with run_sweep_process(machine("first"), tmp_path, [*given, "--output", s3]) as sweep:
        sweep.wait_for("finished in")
        sweep.process.kill()
        sweep.end(status=-signal.SIGKILL)
    shutil.rmtree(machine("first")["HOME"])

    done = command("run", "--resume", "cut", "--output", s3, cwd=tmp_path, **machine("second"))
    assert "fine-tuning" not in done.stdout, "the bucket has the teacher"
    output = output_of(machine("second"), s3, monkeypatch)
    resumed = trial_metrics(output / "cut")
    assert sorted(resumed) == ["t000", "t001", "t002"]
    front = {member["id"] for member in json.loads((output / "cut/pareto.json").read_text())["front"]}
    kept = {path.parent.name for path in (output / "cut/trials").glob("*/student")}
    assert "t000" in front or "t000" not in kept, "nobody needs it there"

    given[given.index("cut")] = "whole"
    command("run", *given, "--output", tmp_path / "plain", cwd=tmp_path, **machine("second"))
    assert resumed == trial_metrics(tmp_path / "plain/whole")


def test_nodes_that_share_no_disk_share_a_sweep(inputs, machine, command, s3, tmp_path, monkeypatch):
    longer = SEARCH.replace("epochs: 2", "epochs: 4")
    given = sweep_flags(inputs, tmp_path, "both", longer, "--trials", 4, "--concurrent", 2)
    with cluster(machine("head")) as nodes:
        for name in ("head", "other"):
            nodes.add(home=Path(machine(name)["HOME"]))
        done = command("run", *given, "--output", s3, cwd=tmp_path, **nodes.driver)
    assert done.stdout.count("teacher epoch 1/1") == 1
    manifests = set()
    for name in ("head", "other"):
        output = output_of(machine(name), s3, monkeypatch)
        assert list((output / "both/trials").glob("*/student")), f"{name} has run no trial"
        [teacher] = (output / "cache/teachers").glob("[!.]*")
        assert store.is_intact(teacher)
        manifests.add((teacher / store.MANIFEST).read_text())
    assert len(manifests) == 1
    remote = trial_metrics(output_of(machine("head"), s3, monkeypatch) / "both")
    command("run", *given, "--output", tmp_path / "plain", cwd=tmp_path, **machine("head"))
    plain = trial_metrics(tmp_path / "plain/both")
    assert len(remote) == 4
    assert remote.keys() == plain.keys()
    for name, trial in remote.items():
        assert trial["params"] == plain[name]["params"]
        # A node of one CPU has made the teacher, with other last digits than two CPUs give.
        assert trial["metrics"] == pytest.approx(plain[name]["metrics"], rel=1e-3, abs=1e-3)
