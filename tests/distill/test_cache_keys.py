"""The key of a stage's epochs: what it must tell apart, and what it must not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ikd_ray
from ikd_ray.config import Trial
from ikd_ray.data.tokens import open_data
from ikd_ray.distill import cache_keys
from ikd_ray.distill.cache_keys import environment, stage_key, start_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.targets import Targets
from tests.helpers.tiny_models import NON_DEFAULT_FIELDS, make_data, make_encoder, make_targets

BASE = {"student_layers": 2, "epochs": 2, "epochs_per_layer": 2}
OTHER = NON_DEFAULT_FIELDS | {
    "regime": {"pid": "sid", "sid": "pid", "hard": "kd", "kd": "id", "id": "hard"},
    "student_layers": 3,
    "assistant_layers": 3,
    "soft_labels": {"top": "always", "always": "top"},
    "internal_losses": "cos",
    "batch_size": 16,
}
NEVER = 3
# Of the stages 1, 2 and C the first whose key the field changes; all after it stand on it.
COURSES = ["pid-top", "pid-always", "sid-top", "sid-always"]
FIRST_CHANGED = {
    "regime": (1, 1, 1, 1),
    "student_layers": (0, 0, 0, 0),
    "assistant_layers": (NEVER, NEVER, NEVER, NEVER),  # who teaches tells by its targets
    "student_init": (0, 0, 0, 0),
    "temperature": (2, 0, 2, 0),
    "lambda_": (2, 2, 2, 2),
    "soft_labels": (0, 0, 0, 0),
    "internal_losses": (0, 0, 0, 0),
    "internal_weight": (0, 0, 0, 0),
    "epochs": (2, 2, 2, 2),
    "epochs_per_layer": (NEVER, NEVER, NEVER, NEVER),
    "cosine_threshold": (NEVER, NEVER, NEVER, NEVER),
    "train": (1, 1, NEVER, NEVER),
    "top_trains": (2, 2, 2, 2),
    "embeddings": (0, 0, 0, 0),
    "learning_rate": (0, 0, 0, 0),
    "batch_size": (0, 0, 0, 0),
    "train_fraction": (0, 0, 0, 0),
    "seed": (0, 0, 0, 0),
}
ALWAYS = {"regime", "student_layers", "student_init", "epochs", "embeddings", "learning_rate", "batch_size"}
ALWAYS |= {"train_fraction", "seed"}
IN_ONE_STAGE = {
    "hard": ALWAYS,
    "kd": ALWAYS | {"temperature", "lambda_"},
    "id": ALWAYS | {"temperature", "lambda_", "internal_losses", "internal_weight"},
}


def keys(trial: Trial, data, targets, workers: int = 1, taken: int = 2, prefix: bool = False) -> list[str]:
    """Of each stage, where `taken` epochs of every stage before it were taken."""
    matched = layer_map(trial.student_layers, len(targets.teacher.layers))
    found, epochs = (
        [start_key(trial, data, targets, matched, [environment(DistributedContext())] * workers)],
        0,
    )
    for stage in REGIMES[trial.regime](trial):
        found.append(stage_key(found[-1], epochs, stage, prefix))
        epochs = taken
    return found[1:]


def change(trial: Trial, field: str) -> Trial:
    other = OTHER[field]
    value = other[getattr(trial, field)] if isinstance(other, dict) else other
    assert value != getattr(trial, field)
    return trial.model_copy(update={field: value})


def first_difference(a: list[str], b: list[str]) -> int:
    """Where it begins; from there on all differ."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    first = same.index(False) if False in same else NEVER
    assert not any(same[first:])
    return first


def test_no_field_is_forgotten():
    assert set(FIRST_CHANGED) == set(OTHER) == set(Trial.model_fields)


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("field", Trial.model_fields)
def test_a_field_changes_the_stages_that_it_matters_to(data, targets, field, course):
    regime, soft_labels = course.split("-")
    trial = Trial(**BASE, regime=regime, soft_labels=soft_labels)
    found = first_difference(keys(trial, data, targets), keys(change(trial, field), data, targets))
    assert found == FIRST_CHANGED[field][COURSES.index(course)]


@pytest.mark.parametrize("regime", IN_ONE_STAGE)
@pytest.mark.parametrize("field", Trial.model_fields)
def test_a_field_changes_the_one_stage_that_it_matters_to(data, targets, field, regime):
    trial = Trial(**BASE, regime=regime)
    found = first_difference(keys(trial, data, targets), keys(change(trial, field), data, targets))
    assert (found == 0) == (field in IN_ONE_STAGE[regime])


def test_pid_and_sid_begin_with_the_same_stage(data, targets):
    pid, upto, sid = (
        keys(Trial(**BASE, **fields), data, targets)
        for fields in ({"regime": "pid"}, {"regime": "pid", "train": "upto"}, {"regime": "sid"})
    )
    assert pid[0] == upto[0] == sid[0]
    assert len({pid[1], upto[1], sid[1]}) == len({pid[2], upto[2], sid[2]}) == 3


@pytest.mark.parametrize("regime", ["pid", "sid"])
def test_a_stage_stands_on_the_epochs_taken_before_it(data, targets, regime):
    trial = Trial(**BASE, regime=regime)
    two, three = (keys(trial, data, targets, taken=taken) for taken in (2, 3))
    assert first_difference(two, three) == 1


def test_stored_and_recomputed_outputs_of_frozen_layers_are_two(data, targets):
    trial = Trial(**BASE, regime="pid")
    stored, recomputed = (keys(trial, data, targets, prefix=prefix) for prefix in (True, False))
    assert first_difference(stored, recomputed) == 0


def test_every_stage_of_every_trial_has_its_own(data, targets):
    found = [
        key for regime in ("hard", "kd", "id", "pid") for key in keys(Trial(regime=regime), data, targets)
    ]
    assert len(set(found)) == len(found)
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in found)


def test_threads(data, targets):
    trial, before = Trial(**BASE), torch.get_num_threads()
    one = keys(trial, data, targets)
    torch.set_num_threads(before + 1)
    try:
        two = keys(trial, data, targets)
    finally:
        torch.set_num_threads(before)
    assert one != two
    assert one == keys(trial, data, targets)


def test_workers(data, targets):
    trial = Trial(**BASE)
    assert keys(trial, data, targets, workers=1) != keys(trial, data, targets, workers=2)
    assert environment(DistributedContext(0, 2)) == environment(DistributedContext(1, 2))


def test_the_precision_of_matrix_products(data, targets):
    trial, before = Trial(**BASE), torch.get_float32_matmul_precision()
    usual = keys(trial, data, targets)
    torch.set_float32_matmul_precision("medium")
    try:
        assert keys(trial, data, targets) != usual
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("sizes", [{"seed": 1}, {"train": 47}, {"dev": 19}], ids=str)
def test_other_data(tmp_path, data, teacher, targets, sizes):
    other = make_data(tmp_path, **sizes)
    trial = Trial(**BASE)
    assert keys(trial, other, make_targets(tmp_path / "t", other, teacher)) != keys(trial, data, targets)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_another_teacher(data, targets, number):
    """One weight of it, in the last bit, the targets left as they are."""
    teacher = make_encoder()
    same = Targets(targets.folder, data, teacher)
    assert keys(Trial(**BASE), data, same) == keys(Trial(**BASE), data, targets)
    other = make_encoder()
    weight = list(other.parameters())[number].data.view(-1)
    weight[-1] = float(np.nextafter(np.float32(weight[-1]), np.float32(9)))
    found = keys(Trial(**BASE), data, Targets(targets.folder, data, other))
    assert found != keys(Trial(**BASE), data, targets)


def test_a_teacher_that_drops_out(data, targets):
    """The student does as well; no weight tells."""
    dropping = Targets(targets.folder, data, make_encoder(dropout=0.1))
    assert keys(Trial(**BASE), data, dropping) != keys(Trial(**BASE), data, targets)


def test_who_the_student_is_compared_with(data, targets):
    matched, trial = layer_map(2, 4), Trial(**BASE)
    one = start_key(trial, data, targets, matched, [environment(DistributedContext())])
    two = start_key(
        trial, data, targets, matched, [environment(DistributedContext())], targets.fingerprint((1, 3))
    )
    three = start_key(
        trial, data, targets, matched, [environment(DistributedContext())], targets.fingerprint((1, 2))
    )
    assert len({one, two, three}) == 3


def test_where_attention_comes_from(data, teacher, targets):
    online = Targets(targets.folder, data, teacher, attention_stored=False)
    assert keys(Trial(**BASE), data, online) != keys(Trial(**BASE), data, targets)


def test_other_content_of_the_targets(tmp_path, data, targets):
    """Of a layer that is matched; others are not read."""
    for layer, differs in ((4, True), (2, True), (1, False), (3, False)):
        folder = tmp_path / str(layer)
        shutil.copytree(targets.folder, folder)
        parts = [part for part in folder.iterdir() if part.name.endswith(str(layer))]
        assert len(parts) == 2
        for part in parts:
            manifest = part / "manifest.json"
            manifest.write_text(manifest.read_text().replace("a", "b"))
        found = keys(Trial(**BASE), data, Targets(folder, data, targets.teacher))
        assert (found != keys(Trial(**BASE), data, targets)) == differs


def test_the_code_that_computes(tmp_path, data, targets, monkeypatch):
    package = Path(ikd_ray.__file__).parent
    shutil.copytree(package, tmp_path / "ikd_ray")
    here = keys(Trial(**BASE), data, targets)

    def there() -> list[str]:
        cache_keys._code.cache_clear()
        return keys(Trial(**BASE), data, targets)

    monkeypatch.setattr(ikd_ray, "__file__", str(tmp_path / "ikd_ray" / "__init__.py"))
    try:
        same = there()
        with open(tmp_path / "ikd_ray" / "report" / "console.py", "a") as file:
            file.write("# tells, does not compute\n")
        told = there()
        with open(tmp_path / "ikd_ray" / "distill" / "losses.py", "a") as file:
            file.write("# other losses\n")
        changed = there()
    finally:
        monkeypatch.undo()
        cache_keys._code.cache_clear()
    assert same == told == here
    assert not set(changed) & set(here)


PRINT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.distill.test_cache_keys import BASE, keys, open_data, Targets, make_encoder, Trial
data = open_data(next(Path(sys.argv[1]).iterdir()))
print(*keys(Trial(**BASE, regime="sid"), data, Targets(Path(sys.argv[2]), data, make_encoder())))
"""


def test_elsewhere_in_another_process(tmp_path, data, targets):
    """Copies of data and targets, another order of sets: the same keys."""
    shutil.copytree(data.folder, tmp_path / "data" / data.folder.name)
    shutil.copytree(targets.folder, tmp_path / "targets")
    found = subprocess.run(
        [sys.executable, "-c", PRINT, tmp_path / "data", tmp_path / "targets"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.split() == keys(Trial(**BASE, regime="sid"), data, targets)


def test_the_location_of_the_folders(tmp_path, data, targets):
    shutil.copytree(data.folder, tmp_path / "a" / data.folder.name)
    shutil.copytree(targets.folder, tmp_path / "b")
    moved = open_data(tmp_path / "a" / data.folder.name)
    assert moved.folder != data.folder
    found = keys(Trial(**BASE), moved, Targets(tmp_path / "b", moved, make_encoder()))
    assert found == keys(Trial(**BASE), data, targets)
    assert keys(Trial(**BASE), replace(moved, key="other"), targets) != found
