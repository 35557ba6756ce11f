"""`sweeps/run.py` as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny import make_dataset

ROOT = Path(__file__).resolve().parents[2]


def write_glue(folder: Path, train: int = 96, dev: int = 40) -> Path:
    """Made-up sentences in the layout of GLUE's CoLA."""
    (folder / "CoLA").mkdir(parents=True)
    for name, split in make_dataset(train=train, dev=dev).splits.items():
        rows = (f"x\t{label}\t\t{text}\n" for text, label in zip(split.first, split.labels, strict=True))
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(rows))
    return folder


def flags(inputs: Path, space: Path, name: str) -> list[object]:
    """Of a sweep on the tiny teacher and data."""
    teacher, glue = inputs / "teacher", inputs / "glue"
    return ["--task", "cola", "--teacher", teacher, "--data-dir", glue, "--space", space, "--name", name]


def start(environment: dict[str, str], home: Path, arguments: list[object]) -> subprocess.Popen:
    """The sweep in a process whose lines can be read as they come, those on stderr among them."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sweeps" / "run.py"), *map(str, arguments)],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
