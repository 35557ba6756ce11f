"""The password of a tracking URI is nowhere: not on the terminal, in no file, in no process's command line."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.run_command import start_sweep, sweep_flags
from tests.helpers.servers import mlflow_server

PASSWORD, TOKEN = "hunter2-pass", "hunter2-token"

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def server(tmp_path):
    """The port of an MLflow server, which takes any user."""
    with mlflow_server(tmp_path / "server") as running:
        yield running.uri.rpartition(":")[2]


def command_lines(process: subprocess.Popen) -> list[str]:
    """Those of a process and of all below it, Ray's too, which writes them down as they are."""
    found = []
    try:
        root = psutil.Process(process.pid)
        for one in (root, *root.children(recursive=True)):
            found.append(" ".join(one.cmdline()))
    except psutil.Error:
        pass
    return found


def leaks(folder: Path) -> list[str]:
    secrets = (PASSWORD.encode(), TOKEN.encode())
    files = (path for path in folder.rglob("*") if path.is_file())
    return [str(path) for path in files if any(secret in path.read_bytes() for secret in secrets)]


def test_a_whole_sweep(inputs, environment, server, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "space.yaml").write_text(
        "params: {student_layers: 1, epochs: 1, regime: kd}\nteacher: {epochs: 1}\n"
    )
    uri = f"http://ann:{PASSWORD}@127.0.0.1:{server}"
    words = [*sweep_flags(inputs, home / "space.yaml", "s"), "--trials=1"]
    before = set(Path("/tmp").glob("ikd-*"))
    process = start_sweep(environment | {"MLFLOW_TRACKING_URI": uri}, home, words)
    seen, ray_leaks = [], []
    while process.poll() is None:
        seen.append(command_lines(process))
        for room in set(Path("/tmp").glob("ikd-*")) - before:
            ray_leaks += leaks_of_logs(room)
        time.sleep(0.5)
    out = process.stdout.read()
    assert process.returncode == 0, out
    assert PASSWORD not in out
    # Ray reads the command line of its driver when it starts.
    with_ray = [lines for lines in seen if any("gcs_server" in line for line in lines)]
    assert with_ray
    assert not [line for lines in with_ray for line in lines if PASSWORD in line]
    assert not ray_leaks
    assert leaks(home) == []
    assert leaks(tmp_path / "server") == []
    assert f"http://127.0.0.1:{server}" in out


def leaks_of_logs(room: Path) -> list[str]:
    try:
        return leaks(room)
    except OSError:  # Ray removes files while they are read
        return []


@pytest.mark.parametrize(
    "uri",
    [
        f"http://ann:{PASSWORD}@127.0.0.1:1/?token={TOKEN}",
        f"postgresql://ann:{PASSWORD}@127.0.0.1:1/x?password={TOKEN}",
        f"nonsense://ann:{PASSWORD}@127.0.0.1:1/",
        f"http://ann:{PASSWORD}@127.0.0.1:no-port/",
    ],
)
def test_a_store_that_is_not_there(inputs, environment, tmp_path, uri):
    (tmp_path / "space.yaml").write_text("params: {student_layers: 1}\n")
    words = [*sweep_flags(inputs, tmp_path / "space.yaml", "away"), "--trials=1"]
    process = start_sweep(environment | {"MLFLOW_TRACKING_URI": uri}, tmp_path, words)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2, out
    assert [line for line in out.splitlines() if line.startswith("error: --tracking-uri")]
    assert "Traceback" not in out
    assert PASSWORD not in out
    assert TOKEN not in out
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]
