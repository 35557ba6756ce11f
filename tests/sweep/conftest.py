"""A tiny teacher and a tiny CoLA folder."""

from __future__ import annotations

import pytest
from launch import write_glue
from tiny import write_teacher

from ikd_ray.sweep.space import Space, load_space


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """`teacher` and `glue`: folders that the command line takes."""
    root = tmp_path_factory.mktemp("inputs")
    write_teacher(root / "teacher")
    write_glue(root / "glue")
    return root


@pytest.fixture
def load(tmp_path):
    """`load(text)`: the space of a file with that text."""

    def load(text: str | bytes) -> Space:
        path = tmp_path / "space.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_space(path)

    return load
