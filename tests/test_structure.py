"""The rooms of the package and the direction of their imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "ikd_ray"

GROUND = ("errors", "config", "tasks", "yaml_file", "formatting", "version", "program", "redaction")
"""Modules at the top of the package, which every room may import."""

ROOMS = (
    "storage",
    "data",
    "distill",
    "records",
    "analysis",
    "search",
    "export",
    "report",
    "tracking",
    "terminal",
    "sweep",
    "bench",
    "api",
    "commands",
)
"""Every room may import the rooms before it."""

FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or not path.name.startswith("__")]
SCRIPTS = sorted((ROOT.parent / "sweeps").glob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    return ".".join(("ikd_ray", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def of_package(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    return imports(path) & MODULES.keys() - {module(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = room(path)
    allowed = {*GROUND, own, *(ROOMS[: ROOMS.index(own)] if own in ROOMS else ())}
    assert {room(MODULES[name]) for name in of_package(path)} <= allowed


def test_no_circle_of_imports():
    waiting = {name: of_package(path) for name, path in MODULES.items()}
    while free := {name for name, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
    assert not waiting, "these modules import each other"


@pytest.mark.parametrize(
    ("library", "rooms"),
    [("ray", {"sweep"}), ("mlflow", {"tracking"}), ("optuna", {"search", "report", "sweep", "bench"})],
)
def test_only_these_rooms_import_a_library(library, rooms):
    """One trial is plain PyTorch, only the sweep needs Ray, and only the tracker writes to MLflow."""
    users = {path for path in FILES if library in {name.split(".")[0] for name in imports(path)}}
    assert users
    assert {room(path) for path in users} <= rooms


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= 500


def opens_text(call: ast.Call) -> bool:
    """Return whether a call reads or writes text, and not bytes."""
    function = ast.unparse(call.func)
    if function in ("open", "os.fdopen", "path.open"):
        return not any("b" in ast.literal_eval(word) for word in call.args if isinstance(word, ast.Constant))
    is_process = any(word.arg == "text" for word in call.keywords) and function.startswith("subprocess.")
    return function.endswith((".read_text", ".write_text")) or is_process


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: path.name)
def test_text_is_utf8_whatever_the_locale_is(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    encoded = {call for call in calls if any(word.arg == "encoding" for word in call.keywords)}
    assert not [ast.unparse(call) for call in calls if opens_text(call) and call not in encoded]
