"""What several test modules share."""

from __future__ import annotations

import os

# Before any Hugging Face library is imported: no test may depend on what the network happens to hold.
os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.util
import logging
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]

pytest_plugins = ["tests.helpers.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    faults = parser.getgroup("faults", "tests/faults/test_kills.py")
    faults.addoption("--kills", type=int, default=3, help="processes to kill; 20 for the long form")
    faults.addoption("--kill-seed", type=int, default=0, help="which moments are chosen")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first, so that of several processes none is left to end alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """A GLUE folder with CoLA, RTE and MRPC: IKD_GLUE_DIR, else `shared/data/glue` beside the repository."""
    beside = ROOT.parent / "shared" / "data" / "glue"
    folder = Path(os.environ.get("IKD_GLUE_DIR") or beside)
    if not folder.is_dir():
        pytest.skip(f"no GLUE data at {folder}; set IKD_GLUE_DIR")
    return folder


@pytest.fixture(scope="session")
def command_line() -> Callable[[str], typer.Typer]:
    """`command_line("run")`: the Typer application of `sweeps/run.py`."""

    def load(name: str) -> typer.Typer:
        spec = importlib.util.spec_from_file_location(f"sweeps_{name}", ROOT / "sweeps" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.app

    return load


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """`host:port` of a server that answers as S3 does, and in the environment the keys that it asks for."""
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed: no S3 to talk to")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        yield ":".join(map(str, running.get_host_and_port()))
        running.stop()


@pytest.fixture
def s3(s3_server) -> str:
    """The URI of a bucket of the test's own."""
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    request = urllib.request.Request(f"http://{s3_server}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()
    return f"s3://{bucket}/some/where?scheme=http&endpoint_override={s3_server}&region=us-east-1"


@pytest.fixture(scope="session")
def environment():
    """The user's, with no tracking server and no cluster that happen to be set."""
    unset = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    return {key: value for key, value in os.environ.items() if key not in unset} | {
        "HF_HUB_OFFLINE": "1",
        # Two threads that wait for each other in a loop come to a standstill where others want a core, too.
        "OMP_WAIT_POLICY": "passive",
    }


@pytest.fixture(scope="session")
def command(environment):
    """`command("run", "--task", "cola", cwd=..., NAME=value)`: a script of `sweeps/` in a process of its own.

    Upper-case keywords are environment variables.
    """

    def run(script: str, *arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "sweeps" / f"{script}.py"), *map(str, arguments)],
            cwd=cwd,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run
