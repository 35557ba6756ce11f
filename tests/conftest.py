"""What several test modules share."""

from __future__ import annotations

import os

# Before any Hugging Face library is imported: no test may depend on what the network happens to hold.
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """A GLUE folder with CoLA, RTE and MRPC: IKD_GLUE_DIR, else `shared/data/glue` beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"
    folder = Path(os.environ.get("IKD_GLUE_DIR") or beside)
    if not folder.is_dir():
        pytest.skip(f"no GLUE data at {folder}; set IKD_GLUE_DIR")
    return folder
