"""Servers that a test may stop and hang: MLflow's own, one that loses its answers, and a PostgreSQL."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import sqlalchemy

START_S = 90  # seconds that a server may take to start; MLflow's imports a lot
ANSWER_S = 60
POSTGRES = "postgres"  # who runs it where the tests run as root, which it refuses
PASSWORD = "Ne7er@Sh0wn"


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def is_healthy(uri: str) -> bool:
    """Return whether a server of MLflow answers."""
    with suppress(OSError):
        return urlopen(f"{uri}/health", timeout=5).status == 200
    return False


def start_server(
    command: Sequence[str | Path], folder: Path, log: Path, env: Mapping[str, str] | None = None, **owner: Any
) -> subprocess.Popen:
    """Start a server in a folder and a session of its own, with its output behind that in `log`."""
    with log.open("ab") as output:
        streams = {"stdout": output, "stderr": output}
        return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **streams, **owner)


class MlflowServer:
    """An MLflow server in processes of its own, restarted on the same port and store."""

    def __init__(self, folder: Path, store: str = "") -> None:
        """Choose a port.

        Args:
            folder: folder of its database, artifacts and log.
            store: URI of another database.
        """
        self._folder = folder
        self._store = store or f"sqlite:///{folder / 'server.db'}"
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self._store]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self._folder / "server.log"
        self._process = start_server(command, self._folder, log, os.environ | quiet)
        wait_until(lambda: is_healthy(self.uri), self._process, log)

    def kill(self) -> None:
        """Kill it, so that connections are refused."""
        self._signal(signal.SIGKILL)
        self._process.wait(timeout=30)

    def hang(self) -> None:
        """Stop it, so that the kernel takes connections which nobody answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue after `hang` and answer what was asked meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it was killed before
            os.killpg(self._process.pid, number)


@contextmanager
def mlflow_server(folder: Path, store: str = "") -> Iterator[MlflowServer]:
    """Run an MLflow server."""
    folder.mkdir(parents=True, exist_ok=True)
    server = MlflowServer(folder, store)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class LosingProxy(ThreadingHTTPServer):
    """A proxy that passes requests on and loses some answers: the connection ends without one.

    Attributes:
        lost: paths of the requests that were carried out and whose answers are lost.
        delay_s: seconds that each request takes longer.
        refuse_every: n, where every nth request is answered with 503 and not passed on; 0 for none.
        requests: number of requests so far.
        refused: number of those that were answered with 503.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.target = target.removeprefix("http://")
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.lost: list[str] = []
        self.delay_s, self.refuse_every, self.requests, self.refused = 0.0, 0, 0, 0
        self._to_lose: dict[str, set[int]] = {}
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def lose(self, path: str, *nths: int) -> None:
        """Lose the answers of these POSTs, counted from 1, among those whose path ends with `path`."""
        self._to_lose[path] = set(nths)

    def is_refused(self) -> bool:
        """Count a request, wait for `delay_s`, and return whether it is one of each `refuse_every`."""
        time.sleep(self.delay_s)
        with self._lock:
            self.requests += 1
            refused = bool(self.refuse_every) and self.requests % self.refuse_every == 0
            self.refused += refused
            return refused

    def is_lost(self, path: str) -> bool:
        """Return whether to lose the answer of this request, which has been carried out."""
        with self._lock:
            for end, nths in self._to_lose.items():
                if path.endswith(end):
                    self._seen[end] += 1
                    if self._seen[end] in nths:
                        self.lost.append(path)
                        return True
        return False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that have gone away."""


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LosingProxy

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.is_refused():
            self.send_error(503)
            return
        there = http.client.HTTPConnection(self.server.target, timeout=ANSWER_S)
        there.request(self.command, self.path, body, {**self.headers, "Host": self.server.target})
        answer = there.getresponse()
        content = answer.read()
        there.close()
        if self.command == "POST" and self.server.is_lost(self.path):
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _relay  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Write nothing to the terminal."""


@contextmanager
def losing_proxy(target: str) -> Iterator[LosingProxy]:
    """Run a `LosingProxy`."""
    with LosingProxy(target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


def require_postgres() -> Path:
    """Return the folder of PostgreSQL's programs; skip the test where none can be started."""
    try:
        sqlalchemy.create_engine("postgresql://")
    except ImportError as error:  # its version decides which driver it takes
        pytest.skip(f"MLflow needs a driver for PostgreSQL ({error}): pip install 'psycopg[binary]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = found[-1] if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    if os.geteuid() == 0 and POSTGRES not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip(f"PostgreSQL refuses root, and there is no user {POSTGRES}")
    return Path(initdb).parent


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL that asks for a password, with a folder and a port of its own; yield its URI."""
    programs, port = require_postgres(), free_port()
    # Not below pytest's own folder, which other users may not enter.
    folder = Path(tempfile.mkdtemp(prefix="ikd-postgres-"))
    owner = {"user": POSTGRES, "group": POSTGRES, "extra_groups": []} if os.geteuid() == 0 else {}
    log, secret = folder / "log", folder / "password"
    secret.write_text(PASSWORD)
    if owner:
        for path in (folder, secret):
            shutil.chown(path, POSTGRES, POSTGRES)
    process = None
    try:
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "scram-sha-256", "-N"]
        subprocess.run([*initdb, f"--pwfile={secret}"], cwd=folder, check=True, capture_output=True, **owner)
        settings = (f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}")
        flags = [flag for setting in (*settings, "fsync=off") for flag in ("-c", setting)]
        process = start_server([programs / "postgres", "-D", folder / "data", *flags], folder, log, **owner)
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        wait_until(lambda: subprocess.run(ready).returncode == 0, process, log)
        yield f"postgresql://mlflow:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # at once, whoever is still connected
            process.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(is_ready, process: subprocess.Popen, log: Path) -> None:
    """Wait for a server that starts, and raise its log where it does not."""
    end = time.monotonic() + START_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{log.name}: no server: {log.read_text()[-2000:]}")
        time.sleep(0.2)
