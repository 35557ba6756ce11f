"""Error messages of the command lines, and the code version."""

from __future__ import annotations

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
