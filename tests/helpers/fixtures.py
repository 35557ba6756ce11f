"""Fixtures that several rooms share: tiny teachers, data, targets, inputs of sweeps and MLflow stores."""

from __future__ import annotations

import pytest
import torch

from ikd_ray.search.space import Space
from ikd_ray.search.space_file import load_space
from ikd_ray.tracking.tracker import Tracker
from tests.helpers.mlflow_sweeps import sweep_record
from tests.helpers.run_command import write_inputs
from tests.helpers.terminal import FakeClock
from tests.helpers.tiny_models import make_data, make_encoder, make_targets

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_task_data(tmp_path_factory):
    """`make_task_data("mnli", train=..., dev=...)`: tokenized splits of generated examples, made once."""
    root = tmp_path_factory.mktemp("tiny")
    return lambda *args, **sizes: make_data(root, *args, **sizes)


@pytest.fixture(scope="session")
def data(make_task_data):
    return make_task_data("cola")


@pytest.fixture(scope="session")
def teacher():
    """Return a teacher of four layers, which no test may change."""
    return make_encoder(layers=4)


@pytest.fixture(scope="session")
def targets(tmp_path_factory, data, teacher):
    """Return the stored targets of all layers for `data`."""
    return make_targets(tmp_path_factory.mktemp("targets"), data, teacher)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """Return a folder with a teacher and data for the command line, `teacher` and `glue`."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Return inputs with which every phase of a sweep takes a while."""
    return write_inputs(tmp_path_factory.mktemp("large"), train=2000, dev=500)


@pytest.fixture
def load(tmp_path):
    """`load(text)`: the space of a file with that text."""

    def load(text: str | bytes) -> Space:
        path = tmp_path / "space.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_space(path)

    return load


@pytest.fixture
def now() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def tracker(uri, request):
    tracker = Tracker(uri, request.node.name)
    tracker.start_sweep(sweep_record(request.node.name))
    return tracker
