"""Arrows point down: which room may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "ikd_ray"
BELOW = {
    "errors": set(),
    "config": {"errors"},
    "yaml_file": {"errors", "config"},
    "tasks": {"errors"},
    "data": {"config", "tasks", "errors", "yaml_file"},
    "distill": {"config", "tasks", "errors", "data"},
    "report": {"config", "tasks", "errors", "data", "distill"},
    "sweep": {"config", "tasks", "errors", "yaml_file", "data", "distill", "report"},
    "bench": {"config", "tasks", "errors", "data", "distill", "report", "sweep"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
            if node.module == "ikd_ray":
                found |= {f"ikd_ray.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.name != "__init__.py" or path.parent != ROOT]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("ikd_ray.")}
    assert rooms - {room(path)} <= BELOW[room(path)]


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if room(p) in ("data", "distill", "tasks", "config")],
    ids=lambda path: path.name,
)
def test_one_trial_is_plain_pytorch(path):
    assert not {"ray", "mlflow", "optuna"} & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 400


def test_only_the_tracker_writes_to_mlflow():
    users = {path.name for path in FILES if any(n.split(".")[0] == "mlflow" for n in imports(path))}
    assert users == {"tracker.py", "models.py"}
