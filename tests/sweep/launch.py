"""`sweeps/run.py` as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
