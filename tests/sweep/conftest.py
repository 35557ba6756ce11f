"""A tiny teacher and a tiny CoLA folder."""

from __future__ import annotations

import pytest
from launch import write_inputs

from ikd_ray.sweep.space import Space, load_space


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """`teacher` and `glue`: folders that the command line takes."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """The same, of which an epoch, and every other phase of a sweep, takes a while."""
    return write_inputs(tmp_path_factory.mktemp("large"), train=2000, dev=500)


@pytest.fixture
def load(tmp_path):
    """`load(text)`: the space of a file with that text."""

    def load(text: str | bytes) -> Space:
        path = tmp_path / "space.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_space(path)

    return load
