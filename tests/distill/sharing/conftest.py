"""Trials that share epochs, and trials that do not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.training import StageTrainer
from tests.helpers.shared_trials import PID, TRAIN_EPOCH, distillation_result
from tests.helpers.tiny_models import make_encoder


@pytest.fixture(scope="module")
def dropping(data, targets):
    """Targets of a teacher, and so students, that drop out."""
    return Targets(targets.folder, data, make_encoder(dropout=0.1))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "epochs"


@pytest.fixture
def start(data, dropping, folder):
    """`start(trial, "name")`: a trial that shares its epochs, not yet begun; without a name one that does not."""

    def make(trial: Trial, name: str = "", prefix: PrefixConfig | None = None) -> Distillation:
        shared = EpochCache(folder, 20, name, f"owner of {name}") if name else None
        return Distillation(trial, data, dropping, prefix=prefix, checkpoints=shared)

    return make


@pytest.fixture
def run(start):
    """`start`, and through all of it."""

    def make(*arguments, **more) -> SimpleNamespace:
        course = start(*arguments, **more)
        return distillation_result(course, list(course))

    return make


@pytest.fixture(scope="module")
def alone(data, dropping):
    """What a trial gives that shares nothing, found once."""
    known: dict[tuple, SimpleNamespace] = {}

    def make(trial: Trial, prefix: PrefixConfig | None = None) -> SimpleNamespace:
        key = trial.model_dump_json(), str(prefix)
        if key not in known:
            course = Distillation(trial, data, dropping, prefix=prefix)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    StageTrainer, "train_epoch", TRAIN_EPOCH
                )  # for `trained` it is none of the trials
                known[key] = distillation_result(course, list(course))
        return known[key]

    return make


@pytest.fixture
def trained(monkeypatch):
    """(stage, epoch) of every epoch that was really trained."""
    calls = []

    def spy(self, number: int):
        calls.append((self.stage.name, number))
        return TRAIN_EPOCH(self, number)

    monkeypatch.setattr(StageTrainer, "train_epoch", spy)
    return calls


@pytest.fixture(scope="module")
def kept(tmp_path_factory, data, dropping):
    """The states of a whole trial, to be copied."""
    folder = tmp_path_factory.mktemp("kept") / "epochs"
    distill(PID, data, dropping, checkpoints=EpochCache(folder, 20, "first"))
    return folder
