"""The program `ikd`: its commands, its version, and commands for users to copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.program import COMMANDS, recorded_command, shell_command
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, find_space, names
from ikd_ray.version import code_version

ROOT = Path(__file__).resolve().parents[1]
STARTS = {
    "sweeps/run.py": "python sweeps/export.py",
    "/a folder/sweeps/run.py": "python '/a folder/sweeps/export.py'",
    "/home/ann/sweeps/train.py": "ikd export",
    "/venv/bin/ikd": "ikd export",
    "/site-packages/ikd_ray/__main__.py": "python -m ikd_ray export",
    "/venv/bin/pytest": "ikd export",
    "/site-packages/pytest/__main__.py": "ikd export",
    "": "ikd export",
}


def start(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("started", STARTS)
def test_commands_to_copy_start_as_this_one_was_started(started, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    assert shell_command("export", "--task cola") == f"{STARTS[started]} --task cola"
    assert shell_command("export", "--list", "a b") == f"{STARTS[started]} --list --output 'a b'"


@pytest.mark.parametrize("words", [["x/sweeps/run.py"], ["/venv/bin/ikd", "run"]])
def test_a_recorded_command_is_one_of_the_installed_program(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*words, "--task", "a b"])
    assert recorded_command("run") == "ikd run --task 'a b'"


def test_the_program_lists_its_commands():
    done = start("-m", "ikd_ray", "--help")
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f" {command} " in done.stdout


def test_the_version_is_that_of_the_code():
    assert start("-m", "ikd_ray", "--version").stdout == f"ikd-ray {code_version()}\n"


def test_an_unknown_command_is_one_line():
    done = start("-m", "ikd_ray", "distil")
    assert (done.returncode, done.stderr) == (2, "error: No such command 'distil'.\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_and_the_program_have_the_same_flags(command):
    script = start(f"sweeps/{command}.py", "--help")
    program = start("-m", "ikd_ray", command, "--help")
    assert script.returncode == program.returncode == 0
    assert (
        script.stdout.split("Usage:")[1].split("\n", 1)[1]
        == program.stdout.split("Usage:")[1].split("\n", 1)[1]
    )


def test_only_the_module_of_the_command_is_imported():
    code = (
        "import sys; from ikd_ray.commands.program import load_app; load_app('cache')\n"
        "assert not {'torch', 'ray', 'mlflow', 'transformers', 'pandas'} & set(sys.modules)"
    )
    done = start("-c", code)
    assert done.returncode == 0, done.stderr


def test_built_in_spaces_go_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {DEFAULT_SPACE, "paper", "regimes"} <= set(names())
    for name in names():
        assert find_space(name).read_text() == (ROOT / "search_spaces" / f"{name}.yaml").read_text()
    (tmp_path / "paper").write_text("params: {}")
    assert find_space("./paper") == Path("paper")
    with pytest.raises(UsageError, match=r"--space papre: no such file, and built in are data_size, default"):
        find_space("papre")


def test_the_installed_package_has_all_of_its_parts():
    """An explicit list of packages may miss a new one."""
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ikd_ray").rglob("__init__.py")
    }
    assert set(listed) == found | {"ikd_ray.search_spaces"}
