"""A sweep that tests of the report's sections share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, open_analysis
from tests.helpers.sample_sweep import make_sweep, open_sweep


@pytest.fixture(scope="session")
def sample_sweep(tmp_path_factory) -> Path:
    """Fourteen trials with weights; read only."""
    return make_sweep(tmp_path_factory.mktemp("sections") / "outputs", trials=14)


@pytest.fixture(scope="module")
def analysis(sample_sweep) -> SweepAnalysis:
    return open_analysis(sample_sweep)


@pytest.fixture
def loader(sample_sweep) -> ModelLoader:
    return open_sweep(sample_sweep)[1]
