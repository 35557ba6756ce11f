"""Bad input: one clear line, exit status 2, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ikd_ray.sweep import runner
from ikd_ray.terminal.command_line import run
from tests.helpers.invalid_folders import EXPORTS, MARKER, RECORDS, RESUMES, TEACHERS
from tests.helpers.invalid_inputs import CHECKS, CLUSTERS, DATA, EXPORT_FLAGS, FLAGS, SPACES
from tests.helpers.invalid_tasks import TABLES, TASK_DEFINITIONS, TASK_FILES, task

pytestmark = pytest.mark.timeout(60)  # reading a pipe that nobody writes to would never end


def tree(folder: Path) -> dict[str, Any]:
    """Return all paths below a folder, with the content of files."""
    return {
        str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(folder.rglob("*"))
    }


# The script, a table of cases, the flag that a case gives (None: it gives several, by name), and further flags.
KINDS: dict[str, tuple[str, Mapping[str, Any], str | None, dict[str, Any]]] = {
    "flag": ("run", FLAGS, None, {}),
    "space": ("run", SPACES, "space", {"trials": 3}),
    "data": ("run", DATA, "data-dir", {}),
    "task file": ("run", TASK_FILES, "task", {}),
    "table": ("run", TABLES, "data-dir", {"task": task()}),
    "resume of a task file's": ("run", TASK_DEFINITIONS, "output", {"resume": "begun"}),
    "export with a task file": (
        "export",
        {k: v for k, v in TASK_FILES.items() if "NUL" not in k},
        "task",
        {},
    ),
    "export of a task file's": ("export", TASK_DEFINITIONS, "output", {"task": "own", "name": "begun"}),
    "check of a task file's": ("report", TASK_DEFINITIONS, "output", {"check": "begun"}),
    "teacher": ("run", TEACHERS, "teacher", {}),
    "cluster": ("run", CLUSTERS, None, {}),
    "resume": ("run", RECORDS | RESUMES, "output", {"resume": "begun"}),
    "export": ("export", EXPORT_FLAGS, None, {}),
    "export of a sweep": ("export", RECORDS | EXPORTS, "output", {"name": "begun"}),
    "check": ("report", CHECKS, None, {}),
    "check of a sweep": ("report", RECORDS, "output", {"check": "begun"}),
}
CASES = {
    f"{kind}: {name}": (script, ({flag: given} if flag else given) | more, words)
    for kind, (script, table, flag, more) in KINDS.items()
    for name, (given, words) in table.items()
}


def flags_of(script: str, flags: Mapping[str, Any], inputs: Path, here: Path) -> dict[str, Any]:
    """Return the flags with their values made, and with valid flags beside them."""
    usual: dict[str, Any] = {}
    if script == "run" and "resume" not in flags:
        (here / "space.yaml").write_text("params: {student_layers: 2}\n")
        usual = {"task": "cola", "teacher": inputs / "teacher", "data-dir": inputs / "glue"}
        usual["space"] = here / "space.yaml"
    elif script == "export":
        usual = {"task": "cola", "to": here / "exports"}
    made = {name: value(here) if callable(value) else value for name, value in flags.items()}
    return {name: value for name, value in (usual | made).items() if value is not None}


def accepted(*_: object) -> None:
    pytest.fail("the input was accepted")


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused(command_line, inputs, tmp_path, monkeypatch, capsys, case):
    script, flags, expected = CASES[case]
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    if case.startswith("cluster"):
        monkeypatch.setenv("RAY_ADDRESS", case.split()[-1])
    else:  # what is not refused would run for a minute
        monkeypatch.setattr(runner, "run", accepted)
    given = flags_of(script, flags, inputs, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(command_line(script), [f"--{name}={value}" for name, value in given.items()])
    out, err = capsys.readouterr()
    assert end.value.code == 2, err
    assert "Traceback" not in out
    lines = err.splitlines()
    assert all(line.startswith("error: ") and line.isprintable() for line in lines), err
    # A YAML file's mistakes have a line each.
    files = tuple(
        f"error: {path}:"
        for path in (given.get("space"), given.get("task"), tmp_path / "outputs" / "begun" / "task.yaml")
    )
    assert len(lines) == 1 or all(line.startswith(files) for line in lines), err
    assert [word for word in expected if word not in err] == [], err
    assert tree(tmp_path) == before, "something was written"
    assert not (tmp_path / MARKER).exists()
