"""Sweeps whose output is a bucket: nothing on this machine's disk is needed to go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ikd_ray.storage import store
from ikd_ray.storage.remote import RemoteStorage
from tests.helpers.run_command import ROOT, start_sweep, sweep_flags, trial_metrics
from tests.helpers.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.long]

SPACE = """
params:
  regime: {choice: [kd, pid]}
  student_layers: 2
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  epochs: 2
  batch_size: 16
teacher: {epochs: 1}
"""


@pytest.fixture
def machine(environment, s3, tmp_path):
    """`machine("a")`: the environment of a process on a machine with a disk of its own."""

    def machine(name: str) -> dict[str, str]:
        (tmp_path / name).mkdir(exist_ok=True)
        keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return environment | keys | {"HOME": str(tmp_path / name)}

    return machine


def finish(environment: dict[str, str], cwd: Path, script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweeps" / f"{script}.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def at_home(machine: dict[str, str], uri: str, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", machine["HOME"])
    return RemoteStorage(uri).folder


def test_a_killed_sweep_goes_on_on_another_machine(inputs, machine, s3, tmp_path, monkeypatch):
    (tmp_path / "space.yaml").write_text(SPACE)
    common = [*sweep_flags(inputs, tmp_path / "space.yaml", "cut"), "--trials", "3", "--concurrent", "1"]
    process = start_sweep(machine("first"), tmp_path, [*common, "--output", s3])
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "finished in" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "".join(seen)
    shutil.rmtree(tmp_path / "first")

    text = finish(machine("second"), tmp_path, "run", "--resume", "cut", "--output", s3)
    assert "fine-tuning" not in text, "the teacher is there already"
    home = at_home(machine("second"), s3, monkeypatch)
    there = trial_metrics(home / "cut")
    assert sorted(there) == ["t000", "t001", "t002"]
    assert not list((home / "cut" / "trials" / "t000").glob("student")), "nobody needs it here"

    common[common.index("cut")] = "whole"
    finish(machine("second"), tmp_path, "run", *common, "--output", tmp_path / "plain")
    assert there == trial_metrics(tmp_path / "plain" / "whole")

    finish(
        machine("third"), tmp_path, "export", "--task", "cola", "--output", s3, "--to", tmp_path / "exports"
    )
    exported = list((tmp_path / "exports").iterdir())
    assert exported
    assert all(store.is_intact(folder) for folder in exported)

    common = sweep_flags(inputs, tmp_path / "space.yaml", "cut")
    again = start_sweep(machine("fourth"), tmp_path, [*common, "--output", s3])
    text, _ = again.communicate(timeout=120)
    assert again.returncode == 2, text
    assert "exists already" in text
    assert "--resume cut" in text


@pytest.fixture
def raylet(machine, tmp_path):
    """`raylet("a", ...)`: a node with a disk of its own, in a process that goes with the test."""
    running = []

    def start_node(name: str, *arguments: str) -> None:
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--num-cpus=1", *arguments]
        with open(tmp_path / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                command, env=machine(name), stdout=log, stderr=log, start_new_session=True
            )
        running.append(process)

    yield start_node
    for process in reversed(running):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_for(seconds: float, is_so) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.5)


def test_nodes_that_share_no_disk_share_a_sweep(inputs, machine, raylet, s3, tmp_path, monkeypatch):
    (tmp_path / "space.yaml").write_text(SPACE.replace("epochs: 2", "epochs: 4"))
    port = free_port()
    address = f"127.0.0.1:{port}"
    raylet("head", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false")
    wait_for(60, lambda: "--block" in (tmp_path / "head.log").read_text())
    raylet("other", f"--address={address}", "--node-ip-address=127.0.0.1")
    wait_for(60, lambda: "--block" in (tmp_path / "other.log").read_text())
    common = [*sweep_flags(inputs, tmp_path / "space.yaml", "both"), "--trials", "4", "--concurrent", "2"]
    cluster = machine("head") | {"RAY_ADDRESS": address}
    text = finish(cluster, tmp_path, "run", *common, "--output", s3)
    assert text.count("teacher epoch 1/1") == 1
    teachers = {}
    for name in ("head", "other"):
        home = at_home(machine(name), s3, monkeypatch)
        students = list((home / "both" / "trials").glob("*/student"))
        assert students, f"{name} has run no trial"
        [teacher] = (home / "cache" / "teachers").glob("[!.]*")
        assert store.is_intact(teacher)
        teachers[name] = (teacher / store.MANIFEST).read_text()
    assert teachers["head"] == teachers["other"]
    assert len(trial_metrics(at_home(machine("head"), s3, monkeypatch) / "both")) == 4
    alone = common[:-2]
    finish(machine("head"), tmp_path, "run", *alone, "--concurrent", "2", "--output", tmp_path / "plain")
    there = trial_metrics(at_home(machine("head"), s3, monkeypatch) / "both")
    plain = trial_metrics(tmp_path / "plain" / "both")
    assert there.keys() == plain.keys()
    for name, trial in there.items():
        assert trial["params"] == plain[name]["params"]
        # A node of one CPU has made the teacher, with other last digits than two have.
        assert trial["metrics"] == pytest.approx(plain[name]["metrics"], rel=1e-3, abs=1e-3)
