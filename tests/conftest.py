# ruff: noqa: E402 - environment and rewriting of assertions before what they are for
"""Fixtures that tests of all rooms share."""

from __future__ import annotations

import os

# Set before any Hugging Face library is imported: no test may depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest
import torch
import typer
from typer.testing import Result

pytest.register_assert_rewrite("tests.helpers")
# A busy machine is no failure; pytest-timeout ends what hangs.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

from tests.helpers.run_command import script_command
from tests.helpers.terminal import invoke

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = {"one_worker", "on_s3"}  # one of the shared sweeps of each module that has some
UNSET = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")

pytest_plugins = ["tests.helpers.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    faults = parser.getgroup("faults", "tests/faults/test_kills.py and test_soak.py")
    faults.addoption("--kills", type=int, default=3, help="processes to kill; 20 for the long form")
    faults.addoption("--kill-seed", type=int, default=0, help="which moments are chosen")
    faults.addoption("--minutes", type=float, help="run the soak alone, for so long; 0 for a single round")
    faults.addoption(
        "--seed", type=int, default=0, help="seed of the soak's first round; each further one has the next"
    )
    parser.addoption("--rehearse", action="store_true", help="with -m gpu: run on the CPU where no GPU is")
    scale = parser.getgroup("scale", "tests/sweep/test_scale.py")
    scale.addoption("--trials", type=int, default=2000, help="trials of each simulated sweep; at least 1,600")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose the soak or all other tests; put modules with real sweeps first, so that no process is left alone."""
    soak = config.getoption("minutes") is not None
    deselected = [item for item in items if bool(item.get_closest_marker("soak")) != soak]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in deselected]
    first = {item.path for item in items if item.get_closest_marker("slow") or SWEEPS & {*item.fixturenames}}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Return a GLUE folder with CoLA, RTE and MRPC: IKD_GLUE_DIR, else `shared/data/glue` beside the repository."""
    folder = Path(os.environ.get("IKD_GLUE_DIR") or ROOT.parent / "shared" / "data" / "glue")
    if not folder.is_dir():
        pytest.skip(f"no GLUE data at {folder}; set IKD_GLUE_DIR")
    return folder


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the GPU, or the CPU in a rehearsal."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not request.config.getoption("rehearse"):
        pytest.skip("no GPU; --rehearse runs this on the CPU")
    return torch.device("cpu")


@pytest.fixture(scope="session")
def command_line() -> Callable[[str], typer.Typer]:
    """`command_line("run")`: the Typer application of `ikd run`."""
    return lambda name: import_module(f"ikd_ray.commands.{name}").app


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Run a server that answers as S3 does, with its keys in the environment; yield `host:port`."""
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


@pytest.fixture(scope="session")
def make_bucket(s3_server) -> Callable[[], str]:
    """`make_bucket()`: the URI of a folder in a new bucket."""

    def make() -> str:
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        request = urllib.request.Request(f"http://{s3_server}/{bucket}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{bucket}/some/where?scheme=http&endpoint_override={s3_server}&region=us-east-1"

    return make


@pytest.fixture
def s3(make_bucket) -> str:
    """Return the URI of a folder in a bucket of the test's own."""
    return make_bucket()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return the user's environment without a tracking server and a cluster that happen to be set."""
    return {key: value for key, value in os.environ.items() if key not in UNSET} | {
        "HF_HUB_OFFLINE": "1",
        # Threads that wait for each other in a loop come to a standstill where others need the cores.
        "OMP_WAIT_POLICY": "passive",
        # Ray's workers have a niceness of 15: beside other tests they would hardly run at all.
        "RAY_worker_niceness": "0",
    }


@pytest.fixture(scope="session")
def machine(environment, s3_server, tmp_path_factory):
    """`machine("a")`: environment of a process on a machine with a disk and, for S3, keys of its own."""
    root = tmp_path_factory.mktemp("machines")

    def make(name: str) -> dict[str, str]:
        (root / name).mkdir(exist_ok=True)
        keys = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        return environment | keys | {"HOME": str(root / name)}

    return make


@pytest.fixture(scope="session")
def command(environment):
    """`command("run", "--task", "cola", cwd=..., NAME=value)`: a script of `sweeps/` in a process of its own.

    It must end with `status`. Further keywords are environment variables.
    """

    def run(
        script: str, *arguments: object, cwd: Path, status: int = 0, **variables: str
    ) -> subprocess.CompletedProcess:
        words, env = script_command(script, *arguments), environment | variables
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def call(command_line, monkeypatch):
    """`call("export", "--task", "cola", cwd=...)`: a command of `ikd`, called in this process.

    It must end with `status`.
    """

    def run(script: str, *arguments: object, cwd: Path, status: int = 0) -> Result:
        for name in UNSET:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(cwd)
        result = invoke(command_line(script), *arguments)
        assert result.exit_code == status, result.output
        return result

    return run
