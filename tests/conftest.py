"""What several test modules share."""

from __future__ import annotations

import os

# Before any Hugging Face library is imported: no test may depend on what the network happens to hold.
os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """A GLUE folder with CoLA, RTE and MRPC: IKD_GLUE_DIR, else `shared/data/glue` beside the repository."""
    beside = ROOT.parent / "shared" / "data" / "glue"
    folder = Path(os.environ.get("IKD_GLUE_DIR") or beside)
    if not folder.is_dir():
        pytest.skip(f"no GLUE data at {folder}; set IKD_GLUE_DIR")
    return folder


@pytest.fixture(scope="session")
def command_line() -> Callable[[str], typer.Typer]:
    """`command_line("run")`: the Typer application of `sweeps/run.py`."""

    def load(name: str) -> typer.Typer:
        spec = importlib.util.spec_from_file_location(f"sweeps_{name}", ROOT / "sweeps" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.app

    return load
