"""Fixtures that tests of several rooms share: tiny teachers, data, targets, sweeps' inputs and MLflow stores."""

from __future__ import annotations

import multiprocessing
from types import SimpleNamespace

import pytest
import torch

from ikd_ray.search.space import Space, load_space
from ikd_ray.tracking.tracker import Tracker
from tests.helpers import distributed_jobs
from tests.helpers.mlflow_sweeps import sweep_record
from tests.helpers.run_command import write_inputs
from tests.helpers.terminal import FakeClock
from tests.helpers.tiny_models import make_data, make_encoder, make_targets

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_task_data(tmp_path_factory):
    """`make_task_data("mnli", train=..., dev=...)`: tokenized splits of a made-up task, made once."""
    root = tmp_path_factory.mktemp("tiny")
    return lambda *args, **sizes: make_data(root, *args, **sizes)


@pytest.fixture(scope="session")
def data(make_task_data):
    return make_task_data("cola")


@pytest.fixture(scope="session")
def teacher():
    """Four layers; never change it."""
    return make_encoder(layers=4)


@pytest.fixture(scope="session")
def targets(tmp_path_factory, data, teacher):
    """Everything the teacher says about `data`, stored."""
    return make_targets(tmp_path_factory.mktemp("targets"), data, teacher)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory, data):
    """What two processes did together: `folder`, the targets both asked for at once; `built`, the steps each
    made of it; `jobs`, each of `workers.JOBS` and what either rank has of it."""
    out = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    barrier, built = context.Barrier(2), context.Array("i", 2)
    distributed_jobs.run_processes(distributed_jobs.build_and_distill, data.folder, out, barrier, built)
    ranks = {
        name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(2)] for name in distributed_jobs.JOBS
    }
    jobs = {name: SimpleNamespace(**job, ranks=ranks[name]) for name, job in distributed_jobs.JOBS.items()}
    return SimpleNamespace(folder=out / "targets", built=list(built), jobs=jobs)


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
