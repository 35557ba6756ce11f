"""MLflow's real server refuses, hangs, or loses answers while a sweep runs: nothing is missing, nothing twice."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient

from ikd_ray.records import TrialRecord, read_trials
from tests.helpers.run_command import start_sweep, sweep_flags
from tests.helpers.servers import (
    PASSWORD,
    free_port,
    losing_proxy,
    mlflow_server,
    postgres,
    postgres_unavailable_reason,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

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
ARTIFACTS = {"pareto.png", "pareto.json", "trials.csv", "space.yaml"}
LONG, SHORT = (5, 80), (2, 40)  # half the trials, and the epochs of each


class Sweep:
    """A sweep that runs, and what it has said so far."""

    def __init__(self, environment: dict[str, str], home: Path, arguments: list[object]) -> None:
        self.process = start_sweep(environment, home, arguments)
        self.lines: list[tuple[float, str]] = []  # when, what
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    @property
    def text(self) -> str:
        return "".join(line for _, line in self.lines)

    def wait_for(self, words: str, times: int = 1) -> None:
        """Until so many lines have the words."""
        end = time.monotonic() + 240
        while self.text.count(words) < times:
            assert time.monotonic() < end, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.05)

    def end(self) -> int:
        """Its exit status."""
        status = self.process.wait(timeout=300)
        self._reader.join(timeout=30)
        return status

    def when(self, words: str) -> float:
        """When the first line with the words came."""
        return next(at for at, line in self.lines if words in line)


@pytest.fixture
def begin(inputs, environment, tmp_path):
    """`begin(uri, size)`: a sweep in `tmp_path/home`, which ends with the test."""
    home, begun = tmp_path / "home", []
    home.mkdir()

    def begin(uri: str, size: tuple[int, int] = SHORT) -> Sweep:
        half, epochs = size
        lambdas = ", ".join(f"0.{number + 1}" for number in range(half))
        (home / "space.yaml").write_text(SPACE.format(lambdas=lambdas, epochs=epochs))
        arguments = [*sweep_flags(inputs, home / "space.yaml", NAME), "--concurrent", 2]
        begun.append(Sweep(environment | {"MLFLOW_TRACKING_URI": uri}, home, arguments))
        return begun[-1]

    yield begin
    for sweep in begun:
        sweep.process.kill()
        sweep.process.wait()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request, tmp_path):
    """MLflow's, with either database behind it."""
    if request.param == "sqlite":
        with mlflow_server(tmp_path / "server") as server:
            yield server
    else:
        with database() as behind, mlflow_server(tmp_path / "server", behind.uri) as server:
            yield server


@contextmanager
def database() -> Iterator:
    if reason := postgres_unavailable_reason():
        pytest.skip(reason)
    with postgres() as running:
        yield running


def with_password(uri: str) -> str:
    return uri.replace("://", f"://ann:{quote(PASSWORD, safe='')}@")


def epochs_of(record: TrialRecord) -> dict[str, list[tuple[int, float]]]:
    """Metric -> each epoch that has it, and its value. The last epoch's are among the trial's own."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, metrics in enumerate([*record.history[:-1], record.metrics], start=1):
        for key, value in metrics.items():
            found.setdefault(key, []).append((step, value))
    return found


def assert_all_there(uri: str, home: Path, count: int) -> None:
    """MLflow tells what the records on disk tell: each trial, each of its metrics and epochs, exactly once."""
    trials, client = read_trials(home / "outputs" / NAME), MlflowClient(uri)
    assert [trial.status for trial in trials] == ["finished"] * count
    experiment = client.get_experiment_by_name("ikd-cola").experiment_id
    runs = {kind: [] for kind in ("sweep", "teacher", "trial")}
    for run in client.search_runs([experiment]):
        runs[run.data.tags["ikd.kind"]].append(run)
    assert {run.info.status for kind in runs.values() for run in kind} == {"FINISHED"}
    [parent], [teacher] = runs["sweep"], runs["teacher"]
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == ARTIFACTS
    assert parent.data.tags["ikd.sweep"] == NAME
    assert [m.step for m in history(client, teacher, "dev/mcc")] == [1, 2, 3]
    assert sorted(run.data.tags["ikd.trial"] for run in runs["trial"]) == [trial.id for trial in trials]
    by_trial = {run.data.tags["ikd.trial"]: run for run in runs["trial"]}
    for trial in trials:
        run, expected = by_trial[trial.id], epochs_of(trial)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        params = trial.params | {"layer_map": trial.layer_map}
        assert run.data.params == {key: str(value) for key, value in params.items()}
        assert run.data.metrics == {key: entries[-1][1] for key, entries in expected.items()}
        found = {key: [(m.step, m.value) for m in history(client, run, key)] for key in expected}
        assert found == expected, trial.id


def history(client: MlflowClient, run, key: str) -> list:
    """A metric's entries in the order of their times."""
    return sorted(client.get_metric_history(run.info.run_id, key), key=lambda m: (m.timestamp, m.step))


def assert_secret(sweep_text: str, *folders: Path) -> None:
    """The password is in no output and in no file."""
    for part in (*PASSWORD.split("@"), quote(PASSWORD, safe="")):
        assert part not in sweep_text
        holders = [file for folder in folders for file in files(folder) if part.encode() in content(file)]
        assert not holders


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # another process's, which has ended
        return b""


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {file: (file.stat().st_mtime_ns, content(file)) for file in files(folder)}


@pytest.fixture(params=["refuses", "is silent", "is no database"])
def nobody(request) -> Iterator[tuple[str, float]]:
    """Where no store is, and the seconds after which that must be known."""
    if request.param == "refuses":
        yield f"http://127.0.0.1:{free_port()}", 15
    elif request.param == "is silent":
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            yield f"http://127.0.0.1:{deaf.getsockname()[1]}", 25
    else:
        if reason := postgres_unavailable_reason():
            pytest.skip(reason)
        yield f"postgresql://127.0.0.1:{free_port()}/mlflow", 15


def test_a_server_that_is_away_at_the_start_is_a_usage_error(nobody, inputs, command, home):
    uri, seconds = nobody
    home.mkdir()
    (home / "space.yaml").write_text("params: {student_layers: 2}\n")
    arguments = sweep_flags(inputs, home / "space.yaml", NAME)
    done = command("run", *arguments, cwd=home, MLFLOW_TRACKING_URI=with_password(uri))
    assert_refused(done, uri, seconds)
    assert_secret(done.stdout + done.stderr, home)
    assert [file.name for file in home.iterdir()] == ["space.yaml"], "something was written"


def assert_refused(done, uri: str, seconds: float) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert uri in done.stderr
    [took] = re.findall(r"opening MLflow: failed after (.+)", done.stdout)
    value, unit = took.split(" ", 1)
    assert unit == "s"
    assert float(value) < seconds


def test_a_server_that_was_away_in_mid_sweep_has_everything(server, begin, command, home):
    """It is killed when some trials have ended, some run and some are to come, and comes back 30 s later."""
    uri = with_password(server.uri)
    sweep = begin(uri, LONG)
    sweep.wait_for("finished in", times=2)
    server.kill()
    time.sleep(AWAY_S)
    server.start()
    later, status = sweep.process.poll() is None, sweep.end()
    assert status == 0, sweep.text
    assert sweep.text.count("MLflow cannot be written") <= 1, "a warning that repeats is noise"
    if not later:  # a fast machine was through before: the next command delivers
        assert command("run", "--resume", NAME, cwd=home, MLFLOW_TRACKING_URI=uri).returncode == 0
    assert_all_there(server.uri, home, count=2 * LONG[0])
    assert_secret(sweep.text, home)


def test_a_server_that_hangs_holds_no_trial_up(begin, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        sweep = begin(server.uri, LONG)
        sweep.wait_for("finished in", times=2)
        server.hang()
        began = time.monotonic()
        time.sleep(AWAY_S)
        server.go_on()
        heard = [at - began for at, line in list(sweep.lines) if at > began and line.startswith("[")]
        later, status = sweep.process.poll() is None, sweep.end()
        assert status == 0, sweep.text
        # A trial starts, ends or tells of an epoch far more often than this.
        gaps = [after - before for before, after in zip([0.0, *heard], heard, strict=False)]
        assert len(heard) >= 4, sweep.text
        assert max(gaps) < 15, sweep.text
        if not later:
            assert command("run", "--resume", NAME, cwd=home).returncode == 0
        assert_all_there(server.uri, home, count=2 * LONG[0])


def test_a_server_that_stays_away_gets_everything_from_the_next_command(begin, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        sweep = begin(server.uri)
        sweep.wait_for("finished in")
        server.kill()
        assert sweep.end() == 0, sweep.text
        assert time.monotonic() - sweep.when("sweep ended after") < PATIENCE_S + 5, sweep.text
        [warning] = [line for _, line in sweep.lines if "WARNING" in line and "--resume" in line]
        assert "MLflow" in warning
        assert f"--resume {NAME}" in warning

        before = snapshot(home / "outputs" / NAME)
        assert_refused(command("run", "--resume", NAME, cwd=home), server.uri, 15)
        assert snapshot(home / "outputs" / NAME) == before, "something was written"

        server.start()
        done = command("run", "--resume", NAME, cwd=home)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stdout
        assert_all_there(server.uri, home, count=2 * SHORT[0])
        # Once more, nothing is left to deliver, and nothing comes twice.
        assert command("run", "--resume", NAME, cwd=home).returncode == 0
        assert_all_there(server.uri, home, count=2 * SHORT[0])


def test_a_server_that_goes_before_the_first_trial_is_waited_for_as_well(begin, command, home, tmp_path):
    """A teacher may train for hours after the store was opened."""
    with mlflow_server(tmp_path / "server") as server:
        uri = with_password(server.uri)
        sweep = begin(uri, LONG)
        sweep.wait_for("opening MLflow: done")
        server.kill()
        sweep.wait_for("MLflow cannot be written")
        server.start()
        later, status = sweep.process.poll() is None, sweep.end()
        assert status == 0, sweep.text
        if not later:
            assert command("run", "--resume", NAME, cwd=home, MLFLOW_TRACKING_URI=uri).returncode == 0
        assert_all_there(server.uri, home, count=2 * LONG[0])
        assert_secret(sweep.text, home)


def test_a_driver_killed_while_the_server_is_away_loses_nothing(begin, command, home, tmp_path):
    with mlflow_server(tmp_path / "server") as server:
        sweep = begin(server.uri)
        sweep.wait_for("finished in")
        server.kill()
        sweep.wait_for("finished in", times=2)
        sweep.process.send_signal(signal.SIGKILL)
        sweep.process.wait(timeout=30)
        assert len(read_trials(home / "outputs" / NAME)) < 2 * SHORT[0]
        server.start()
        done = command("run", "--resume", NAME, cwd=home)
        assert done.returncode == 0, done.stderr
        assert_all_there(server.uri, home, count=2 * SHORT[0])


def test_a_call_that_was_carried_out_and_never_answered_is_not_made_twice(begin, home, tmp_path):
    """MLflow's client sends such a call again by itself: harmless for metrics, a second run for `runs/create`."""
    with mlflow_server(tmp_path / "server") as server, losing_proxy(server.uri) as proxy:
        proxy.lose("runs/create", 1, 2, 4)  # the sweep's, the teacher's, a trial's
        proxy.lose("runs/log-batch", 1, 2, 10, 50)
        proxy.lose("runs/update", 1, 3)
        sweep = begin(proxy.uri)
        assert sweep.end() == 0, sweep.text
        assert len(proxy.lost) == 9
        assert_all_there(server.uri, home, count=2 * SHORT[0])


def test_a_database_with_a_password_needs_no_server_and_shows_it_to_nobody(begin, command, home):
    """Ray keeps the command line that started it, and logs in a folder of its own."""
    with database() as store:
        sweep = begin(store.uri)
        sweep.wait_for("finished in")
        folders = list(Path("/tmp").glob("ikd-*/session_*"))
        assert folders
        assert_secret(sweep.text, home, *folders)
        assert sweep.end() == 0, sweep.text
        assert_secret(sweep.text, home)
        done = command("run", "--resume", NAME, cwd=home, MLFLOW_TRACKING_URI=store.uri)
        assert done.returncode == 0, done.stderr
        assert_secret(done.stdout + done.stderr, home)
        assert_all_there(store.uri, home, count=2 * SHORT[0])
