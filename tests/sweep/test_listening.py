"""A cluster of a sweep's own is this machine's alone, and of who has its token."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# In a process of its own: Ray reads the environment once.
LOOK = """
import json, sys
import psutil, ray
from ray._private import worker
from ikd_ray.sweep.cluster import ray_cluster

with ray_cluster(nested=sys.argv[1] == "nested"):
    ray.get(ray.remote(lambda: None).remote())
    me, found = psutil.Process(), []
    for process in (me, *me.children(recursive=True)):
        try:
            name, sockets = process.name(), process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found += [(name, s.laddr.ip) for s in sockets if s.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)]
    from ray._raylet import AuthenticationMode, get_authentication_mode
    print(json.dumps([found, get_authentication_mode() == AuthenticationMode.TOKEN]))
"""


@pytest.mark.parametrize("kind", ["flat", "nested"])
def test_servers_listen_on_this_machine_alone(environment, tmp_path, kind):
    asked = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    asked["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, kind],
        cwd=tmp_path,
        env=asked,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found, has_token = json.loads(done.stdout.splitlines()[-1])
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert [entry for entry in found if entry[1] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == []
    assert has_token
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
