"""A tiny teacher and a tiny CoLA folder, and the command lines as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_dataset, write_teacher

from ikd_ray.sweep.space import Space, load_space

ROOT = Path(__file__).resolve().parents[2]


def write_glue(folder: Path, train: int = 96, dev: int = 40) -> Path:
    """Made-up sentences in the layout of GLUE's CoLA."""
    (folder / "CoLA").mkdir(parents=True)
    for name, split in make_dataset(train=train, dev=dev).splits.items():
        rows = (f"x\t{label}\t\t{text}\n" for text, label in zip(split.first, split.labels, strict=True))
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(rows))
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """`teacher` and `glue`: folders that the command line takes."""
    root = tmp_path_factory.mktemp("inputs")
    write_teacher(root / "teacher")
    write_glue(root / "glue")
    return root


@pytest.fixture(scope="session")
def environment():
    """The user's, with no tracking server and no cluster that happen to be set."""
    unset = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    return {key: value for key, value in os.environ.items() if key not in unset} | {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def command(environment):
    """`command("run", "--task", "cola", cwd=...)`: a script of `sweeps/` in a process of its own."""

    def run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "sweeps" / f"{script}.py"), *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run


@pytest.fixture
def load(tmp_path):
    """`load(text)`: the space of a file with that text."""

    def load(text: str | bytes) -> Space:
        path = tmp_path / "space.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_space(path)

    return load
