"""Fixtures of trials that share epochs, and of trials that do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.stage_training import StageTrainer
from ikd_ray.distill.targets import Targets
from tests.helpers.shared_trials import PID, TRAIN_EPOCH, distillation_result
from tests.helpers.tiny_models import make_encoder


@pytest.fixture(scope="module")
def dropping(data, targets):
    """Return targets of a teacher with dropout, which its students have too."""
    return Targets(targets.folder, data, make_encoder(dropout=0.1))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "epochs"


@pytest.fixture
def start(data, dropping, folder):
    """Return `start(trial, "name")`, which creates a trial that shares its epochs; without a name it shares none."""

    def make(trial: Trial, name: str = "", prefix: PrefixConfig | None = None) -> Distillation:
        shared = EpochCache(folder, 20, name, f"owner of {name}") if name else None
        return Distillation(trial, data, dropping, prefix=prefix, checkpoints=shared)

    return make


@pytest.fixture
def run(start):
    """Return `run`, which takes the arguments of `start`, runs the trial and returns its result."""

    def make(*arguments, **more) -> SimpleNamespace:
        return distillation_result(start(*arguments, **more))

    return make


@pytest.fixture(scope="module")
def alone(data, dropping):
    """Return `alone(trial)`: the result of a trial that shares nothing, computed once per trial."""
    known: dict[tuple, SimpleNamespace] = {}

    def make(trial: Trial, prefix: PrefixConfig | None = None) -> SimpleNamespace:
        key = trial.model_dump_json(), str(prefix)
        if key not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StageTrainer, "train_epoch", TRAIN_EPOCH)  # `trained` does not count it
                known[key] = distillation_result(Distillation(trial, data, dropping, prefix=prefix))
        return known[key]

    return make


@pytest.fixture
def trained(monkeypatch):
    """Return a list that gets (stage, epoch) of every epoch that is trained."""
    calls = []

    def spy(self, number: int):
        calls.append((self.stage.name, number))
        return TRAIN_EPOCH(self, number)

    monkeypatch.setattr(StageTrainer, "train_epoch", spy)
    return calls


@pytest.fixture(scope="module")
def kept(tmp_path_factory, data, dropping):
    """Return the saved epochs of a whole trial; tests copy them."""
    folder = tmp_path_factory.mktemp("kept") / "epochs"
    distill(PID, data, dropping, checkpoints=EpochCache(folder, 20, "first"))
    return folder
