"""MLflow's server refuses, hangs or loses answers while a sweep runs: nothing is missing, nothing is there twice."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from ikd_ray.records import read_trials
from tests.helpers.consistency import assert_consistent
from tests.helpers.process_tree import title
from tests.helpers.run_command import SweepProcess, run_sweep_process, sweep_flags
from tests.helpers.servers import PASSWORD, free_port, losing_proxy, mlflow_server, postgres, require_postgres

pytestmark = pytest.mark.long

AWAY_S = 30
PATIENCE_S = 30  # seconds that a sweep may wait, after its last trial, for a server that is away
SPACE = """
sampler: grid
params:
  regime: {{choice: [kd, pid]}}
  lambda: {{choice: [{lambdas}]}}
  student_layers: 2
  epochs_per_layer: 3
  epochs: {epochs}
  batch_size: 4
teacher: {{epochs: 2}}
"""
NAME = "away"
LONG, SHORT = (5, 80), (2, 40)  # half the number of trials, and the epochs of each


@pytest.fixture
def start(inputs, environment, home) -> Iterator[Callable[..., SweepProcess]]:
    """`start(uri, size)`: a sweep in `home`, which ends with the test."""
    with ExitStack() as running:

        def start(uri: str, size: tuple[int, int] = SHORT) -> SweepProcess:
            half, epochs = size
            lambdas = ", ".join(f"0.{number + 1:02}" for number in range(half))
            space = SPACE.format(lambdas=lambdas, epochs=epochs)
            flags = sweep_flags(inputs, home, NAME, space, "--concurrent", 2)
            variables = environment | {"MLFLOW_TRACKING_URI": uri}
            return running.enter_context(run_sweep_process(variables, home, flags))

        yield start


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request, tmp_path):
    """Run MLflow's server, with either database behind it."""
    if request.param == "sqlite":
        with mlflow_server(tmp_path / "server") as server:
            yield server
    else:
        with postgres() as database, mlflow_server(tmp_path / "server", database) as server:
            yield server


def with_password(uri: str) -> str:
    return uri.replace("://", f"://ann:{quote(PASSWORD, safe='')}@")


def assert_all_there(uri: str, home: Path, size: tuple[int, int]) -> None:
    assert_consistent(home / "outputs" / NAME, uri, trials=2 * size[0])


def assert_secret(sweep_text: str, *folders: Path) -> None:
    """Assert that the password is in no output and in no file."""
    found = {file: content for folder in folders for file, content in snapshot(folder).items()}
    for part in (*PASSWORD.split("@"), quote(PASSWORD, safe="")):
        assert part not in sweep_text
        assert not [file for file, (_, content) in found.items() if part.encode() in content]


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return the time and the content of every file, except those that other processes have removed meanwhile."""
    found = {}
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if file.is_file():
                found[file] = (file.stat().st_mtime_ns, file.read_bytes())
    return found


@pytest.fixture(params=["refuses", "is silent", "is no database"])
def unavailable(request) -> Iterator[tuple[str, float]]:
    """Return the URI of no store, and the seconds in which that must be known."""
    if request.param == "refuses":
        yield f"http://127.0.0.1:{free_port()}", 15
    elif request.param == "is silent":
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}", 25
    else:
        require_postgres()
        yield f"postgresql://127.0.0.1:{free_port()}/mlflow", 15


def test_a_server_that_is_away_at_the_start_is_a_usage_error(unavailable, inputs, command, home):
    uri, seconds = unavailable
    flags = sweep_flags(inputs, home, NAME, "params: {student_layers: 2}\n")
    done = command("run", *flags, cwd=home, status=2, MLFLOW_TRACKING_URI=with_password(uri))
    assert_refused(done, uri, seconds)
    assert_secret(done.stdout + done.stderr, home)
    assert [file.name for file in home.iterdir()] == ["space.yaml"], "something was written"


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:{secret}@127.0.0.1:1/?token={secret}",
        "postgresql://ann:{secret}@127.0.0.1:1/x?password={secret}",
        "nonsense://ann:{secret}@127.0.0.1:1/",
        "http://ann:{secret}@127.0.0.1:no-port/",
    ],
)
def test_an_error_about_the_store_shows_no_password(uri, inputs, command, home):
    flags = sweep_flags(inputs, home, NAME, "params: {student_layers: 2}\n")
    given = uri.format(secret=quote(PASSWORD, safe=""))
    done = command("run", *flags, cwd=home, status=2, MLFLOW_TRACKING_URI=given)
    assert done.stderr.startswith("error: --tracking-uri")
    assert "Traceback" not in done.stdout + done.stderr
    assert_secret(done.stdout + done.stderr, home)
    assert [file.name for file in home.iterdir()] == ["space.yaml"], "something was written"


def assert_refused(done, uri: str, seconds: float) -> None:
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert uri in done.stderr
    [took] = re.findall(r"opening MLflow: failed after (.+)", done.stdout)
    value, unit = took.split(" ", 1)
    assert unit == "s"
    assert float(value) < seconds


def end_and_deliver(sweep: SweepProcess, command, home: Path, uri: str) -> None:
    """Wait for the end; on a fast machine the sweep may have ended before the server was back, so resume it."""
    returned_in_time = sweep.process.poll() is None
    sweep.end(timeout=300, status=0)
    if not returned_in_time:
        command("run", "--resume", NAME, cwd=home, MLFLOW_TRACKING_URI=uri)


def test_a_server_that_was_away_in_mid_sweep_has_everything(server, start, command, home):
    """It is killed when some trials have ended, some run and some are to come, and comes back 30 s later."""
    uri = with_password(server.uri)
    sweep = start(uri, LONG)
    sweep.wait_for("finished in", count=2)
    server.kill()
    time.sleep(AWAY_S)
    server.start()
    end_and_deliver(sweep, command, home, uri)
    assert sweep.text.count("MLflow cannot be written") <= 1, "a warning that repeats is noise"
    assert_all_there(server.uri, home, LONG)
    assert_secret(sweep.text, home)


def test_a_server_that_hangs_holds_no_trial_up(start, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        sweep = start(server.uri, LONG)
        sweep.wait_for("finished in", count=2)
        server.hang()
        began = time.monotonic()
        time.sleep(AWAY_S)
        server.go_on()
        lines = zip(sweep.times, sweep.lines, strict=False)
        heard = [at - began for at, line in lines if at > began and line.startswith("[")]
        end_and_deliver(sweep, command, home, server.uri)
        # A trial starts, ends or tells of an epoch far more often than this.
        gaps = [after - before for before, after in zip([0.0, *heard], heard, strict=False)]
        assert len(heard) >= 4, sweep.text
        assert max(gaps) < 15, sweep.text
        assert_all_there(server.uri, home, LONG)


def test_a_server_that_stays_away_gets_everything_from_the_next_command(start, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        sweep = start(server.uri)
        sweep.wait_for("finished in")
        server.kill()
        sweep.end(timeout=300, status=0)
        heard = zip(sweep.times, sweep.lines, strict=True)
        [last] = [at for at, line in heard if "sweep ended after" in line]
        assert time.monotonic() - last < PATIENCE_S + 10, sweep.text
        [warning] = [line for line in sweep.lines if "WARNING" in line and "--resume" in line]
        assert "MLflow" in warning
        assert f"--resume {NAME}" in warning

        before = snapshot(home / "outputs" / NAME)
        assert_refused(command("run", "--resume", NAME, cwd=home, status=2), server.uri, 15)
        assert snapshot(home / "outputs" / NAME) == before, "something was written"

        server.start()
        assert "WARNING" not in command("run", "--resume", NAME, cwd=home).stdout
        assert_all_there(server.uri, home, SHORT)
        # Once more, nothing is left to deliver, and nothing comes twice.
        command("run", "--resume", NAME, cwd=home)
        assert_all_there(server.uri, home, SHORT)


def test_a_server_that_goes_before_the_first_trial_is_waited_for_as_well(start, command, home, tmp_path):
    """A teacher may train for hours after the store was opened."""
    with mlflow_server(tmp_path / "server") as server:
        uri = with_password(server.uri)
        sweep = start(uri, LONG)
        sweep.wait_for("opening MLflow: done")
        server.kill()
        sweep.wait_for("MLflow cannot be written")
        server.start()
        end_and_deliver(sweep, command, home, uri)
        assert_all_there(server.uri, home, LONG)
        assert_secret(sweep.text, home)


def test_a_driver_killed_while_the_server_is_away_loses_nothing(start, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        sweep = start(server.uri)
        sweep.wait_for("finished in")
        server.kill()
        sweep.wait_for("finished in")
        sweep.process.kill()
        sweep.end(status=-signal.SIGKILL)
        assert len(read_trials(home / "outputs" / NAME)) < 2 * SHORT[0]
        server.start()
        command("run", "--resume", NAME, cwd=home)
        assert_all_there(server.uri, home, SHORT)


def test_a_call_that_was_carried_out_and_never_answered_is_not_made_twice(start, home, tmp_path):
    """MLflow's client sends such a call again by itself: harmless for metrics, a second run for `runs/create`."""
    with mlflow_server(tmp_path / "server") as server, losing_proxy(server.uri) as proxy:
        proxy.lose("runs/create", 1, 2, 4)  # the sweep's, the teacher's, a trial's
        proxy.lose("runs/log-batch", 1, 2, 10, 50)
        proxy.lose("runs/log-inputs", 1, 3)
        proxy.lose("runs/update", 1, 3)
        sweep = start(proxy.uri)
        sweep.end(timeout=300, status=0)
        assert len(proxy.lost) == 11
        assert_all_there(server.uri, home, SHORT)


def test_a_database_with_a_password_needs_no_server_and_shows_it_to_nobody(start, command, home):
    """Neither on the terminal nor in a file, in Ray's logs or in a command line."""
    with postgres() as uri:
        sweep = start(uri)
        sweep.wait_for("finished in")
        folders = list(Path("/tmp").glob("ikd-*/ray/session_*"))
        assert folders
        command_lines = [title(process) for process in sweep.tree.alive()]
        assert any("gcs_server" in line for line in command_lines)
        assert_secret("\n".join(command_lines))
        assert_secret(sweep.text, home, *folders)
        sweep.end(timeout=300, status=0)
        assert_secret(sweep.text, home)
        done = command("run", "--resume", NAME, cwd=home, MLFLOW_TRACKING_URI=uri)
        assert_secret(done.stdout + done.stderr, home)
        assert_all_there(uri, home, SHORT)


def test_a_slow_server_that_is_often_overloaded_gets_every_trial_once(start, command, home, tmp_path):
    """300 ms a call, and one call in ten is answered with 503."""
    with mlflow_server(tmp_path / "server") as server, losing_proxy(server.uri) as proxy:
        proxy.delay_s, proxy.refuse_every = 0.3, 10
        size = (30, 2)
        sweep = start(proxy.uri, size)
        sweep.end(timeout=500, status=0)
        assert [line for line in sweep.lines if "MLflow lacks a part" in line] == []
        assert proxy.refused > 20
        assert_all_there(server.uri, home, size)
        checked = command("report", "--check", NAME, cwd=home)
        assert "60 of 60 trials have ended, 60 of them finished; 0 differences" in checked.stdout


def test_an_overloaded_server_is_one_line_of_a_check(start, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server, losing_proxy(server.uri) as proxy:
        uri = with_password(proxy.uri)
        sweep = start(uri)
        sweep.end(timeout=300, status=0)
        proxy.refuse_every = 1
        done = command("report", "--check", NAME, cwd=home, status=2, MLFLOW_TRACKING_URI=uri)
        assert done.stderr.count("\n") == 1
        assert_secret(done.stdout + done.stderr, home)


def test_two_sweeps_may_create_one_store_at_once(inputs, environment, home):
    variables = environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    space = "params: {student_layers: 2, epochs: 1}\nteacher: {epochs: 1}\n"
    with ExitStack() as running:
        sweeps = []
        for folder in (home / "first", home / "second"):
            folder.mkdir()
            flags = sweep_flags(inputs, folder, NAME, space, "--trials", 1)
            sweeps.append(running.enter_context(run_sweep_process(variables, folder, flags)))
        for sweep in sweeps:
            sweep.end(timeout=300, status=0)
