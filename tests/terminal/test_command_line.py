"""Error messages of the command lines, and the code version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.terminal import command_line
from ikd_ray.version import code_version

ROOT = Path(__file__).resolve().parents[2]


def test_usage_errors_prints_each_line_escaped(capsys):
    with pytest.raises(SystemExit) as stop, command_line.usage_errors():
        raise UsageError("one\x1b[2J\ntwo \udcff é")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: one\\x1b[2J\nerror: two \\udcff é\n"


def test_other_errors_pass_usage_errors():
    with pytest.raises(KeyError), command_line.usage_errors():
        raise KeyError("a mistake of ours")


def test_code_version_without_git_is_the_version(monkeypatch):
    assert "+g" in code_version() or not (ROOT / ".git").exists()
    monkeypatch.setenv("PATH", "")
    assert "+g" not in code_version()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_character_that_the_locale_lacks_ends_a_command(encoding):
    code = (
        "import typer; from ikd_ray.terminal.command_line import run; app = typer.Typer()\n"
        "@app.command()\ndef show(): typer.echo('\\u2026 \\xfc \\udcff'); print('\\u2026 \\xfc \\udcff')\n"
        "run(app)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 2


@pytest.mark.parametrize(
    ("script", "flag", "more"),
    [
        *(("run", flag, ["--task", "cola"]) for flag in ("task", "data-dir", "teacher", "space")),
        ("run", "output", ["--resume", "none"]),
        ("report", "task", []),
        ("report", "output", ["--task", "cola"]),
        ("export", "task", []),
        ("export", "output", ["--task", "cola"]),
        ("cache", "output", ["list"]),
        ("bench", "data-dir", []),
        ("bench", "teacher", []),
    ],
)
def test_a_tilde_is_the_home_folder_where_the_shell_leaves_it(
    call, monkeypatch, tmp_path, script, flag, more
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    value = "~/file.yaml" if flag in ("task", "space") else "~/folder"
    result = call(script, *more, f"--{flag}={value}", cwd=tmp_path, status=2)
    assert str(tmp_path / "home" / value[2:]) in result.stderr
    assert list(tmp_path.iterdir()) == []
