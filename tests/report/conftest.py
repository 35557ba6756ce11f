"""What tests of the terminal, and those of MLflow's store, share."""

from __future__ import annotations

import pytest
from screen import Clock
from told import sweep

from ikd_ray.report.tracking.tracker import Tracker


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def tracker(uri, request):
    tracker = Tracker(uri, request.node.name)
    tracker.start(sweep(request.node.name))
    return tracker
