"""Cache keys: what must change the key of a stage's epochs, and what must not."""

from __future__ import annotations

import ast
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import ikd_ray
from ikd_ray.config import Trial
from ikd_ray.data.dataset import add_unlabelled
from ikd_ray.data.tokens import open_data, tokenize
from ikd_ray.distill import cache_keys
from ikd_ray.distill.cache_keys import COMPUTING_MODULES, code_digest, environment, stage_key, start_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.processor import supports_bfloat16
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.targets import Targets
from tests.helpers.tiny_models import (
    NON_DEFAULT_FIELDS,
    make_data,
    make_dataset,
    make_encoder,
    make_targets,
    write_tokenizer,
)

PACKAGE = Path(ikd_ray.__file__).parent
BASE = {"student_layers": 2, "epochs": 2, "epochs_per_layer": 2}
TRIAL = Trial(**BASE)
OTHER_VALUES = NON_DEFAULT_FIELDS | {
    "regime": {"pid": "sid", "sid": "pid", "hard": "kd", "kd": "id", "id": "hard"},
    "student_layers": 3,
    "assistant_layers": 3,
    "soft_labels": {"top": "always", "always": "top"},
    "internal_losses": "cos",
    "batch_size": 16,
}
NEVER = 3
KINDS = ("pid-top", "pid-always", "sid-top", "sid-always", "hard-top", "kd-top", "id-top")
# For each of KINDS the first of its stages (1, 2 and C, or C alone) whose key the field changes; all later ones
# depend on it.
FIRST_CHANGED = {
    "regime": (1, 1, 1, 1, 0, 0, 0),
    "student_layers": (0, 0, 0, 0, 0, 0, 0),
    "assistant_layers": (NEVER,) * 7,  # the targets tell who teaches
    "student_init": (0, 0, 0, 0, 0, 0, 0),
    "temperature": (2, 0, 2, 0, NEVER, 0, 0),
    "lambda_": (2, 2, 2, 2, NEVER, 0, 0),
    "soft_labels": (0, 0, 0, 0, NEVER, NEVER, NEVER),
    "internal_losses": (0, 0, 0, 0, NEVER, NEVER, 0),
    "internal_weight": (0, 0, 0, 0, NEVER, NEVER, 0),
    "epochs": (2, 2, 2, 2, 0, 0, 0),
    "epochs_per_layer": (NEVER,) * 7,
    "cosine_threshold": (NEVER,) * 7,
    "train": (1, 1, NEVER, NEVER, NEVER, NEVER, NEVER),
    "top_trains": (2, 2, 2, 2, NEVER, NEVER, NEVER),
    "embeddings": (0, 0, 0, 0, 0, 0, 0),
    "learning_rate": (0, 0, 0, 0, 0, 0, 0),
    "batch_size": (0, 0, 0, 0, 0, 0, 0),
    "train_fraction": (0, 0, 0, 0, 0, 0, 0),
    "unlabelled_fraction": (NEVER,) * 7,  # where there are no texts without a label
    "seed": (0, 0, 0, 0, 0, 0, 0),
}


def keys(trial: Trial, data, targets, workers: int = 1, epochs: int = 2, stored: bool = False) -> list[str]:
    """Return the key of each stage, where `epochs` epochs were taken of every stage before it."""
    matched = layer_map(trial.student_layers, len(targets.teacher.layers))
    found = [start_key(trial, data, targets, matched, [environment(DistributedContext())] * workers)]
    for number, stage in enumerate(REGIMES[trial.regime](trial)):
        found.append(stage_key(found[-1], epochs if number else 0, stage, stored))
    return found[1:]


def with_other_value(trial: Trial, field: str) -> Trial:
    other = OTHER_VALUES[field]
    value = other[getattr(trial, field)] if isinstance(other, dict) else other
    assert value != getattr(trial, field)
    return trial.model_copy(update={field: value})


def first_difference(a: list[str], b: list[str]) -> int:
    """Return the first stage with different keys; all later keys must differ too."""
    same = [x == y for x, y in zip(a, b, strict=False)]
    first = same.index(False) if False in same else NEVER
    assert not any(same[first:])
    return first


def test_every_field_is_listed():
    assert set(FIRST_CHANGED) == set(OTHER_VALUES) == set(Trial.model_fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_changes_the_keys_of_the_stages_it_affects(data, targets, kind):
    regime, soft_labels = kind.split("-")
    trial = Trial(**BASE, regime=regime, soft_labels=soft_labels)
    before = keys(trial, data, targets)
    for field in Trial.model_fields:
        found = first_difference(before, keys(with_other_value(trial, field), data, targets))
        assert found == FIRST_CHANGED[field][KINDS.index(kind)], field


def test_the_share_of_texts_without_a_label_changes_the_keys_of_those_that_use_them(tmp_path):
    dataset = add_unlabelled(make_dataset("cola"), ["w1 w2", "w3"], None)
    data = tokenize(dataset, write_tokenizer(tmp_path / "tokenizer"), "tiny", 32, tmp_path / "data")
    targets = make_targets(tmp_path / "targets", data, make_encoder())
    for regime in REGIMES:
        trial = Trial(**BASE, regime=regime)
        before, found = (
            keys(changed, data, targets)
            for changed in (trial, with_other_value(trial, "unlabelled_fraction"))
        )
        assert first_difference(before, found) == (NEVER if regime == "hard" else 0)


def test_pid_and_sid_share_the_first_stage(data, targets):
    pid, upto, sid = (
        keys(Trial(**BASE, **fields), data, targets)
        for fields in ({"regime": "pid"}, {"regime": "pid", "train": "upto"}, {"regime": "sid"})
    )
    assert pid[0] == upto[0] == sid[0]
    assert len({pid[1], upto[1], sid[1]}) == len({pid[2], upto[2], sid[2]}) == 3


@pytest.mark.parametrize("regime", ["pid", "sid"])
def test_a_stage_depends_on_the_number_of_epochs_before_it(data, targets, regime):
    trial = Trial(**BASE, regime=regime)
    assert first_difference(keys(trial, data, targets), keys(trial, data, targets, epochs=3)) == 1


def test_stored_and_recomputed_outputs_of_frozen_layers_have_different_keys(data, targets):
    trial = Trial(**BASE, regime="pid")
    assert first_difference(keys(trial, data, targets), keys(trial, data, targets, stored=True)) == 0


def test_all_stages_of_all_regimes_have_different_keys(data, targets):
    found = [
        key for regime in ("hard", "kd", "id", "pid") for key in keys(Trial(regime=regime), data, targets)
    ]
    assert len(set(found)) == len(found)
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in found)


@pytest.mark.parametrize(
    ("setting", "value"), [("get_num_threads", 99), ("get_float32_matmul_precision", "medium")]
)
def test_threads_and_matrix_precision_change_the_keys(data, targets, monkeypatch, setting, value):
    before = keys(TRIAL, data, targets)
    monkeypatch.setattr(torch, setting, lambda: value)
    assert keys(TRIAL, data, targets) != before


def test_the_number_of_workers_changes_the_keys(data, targets):
    assert keys(TRIAL, data, targets, workers=1) != keys(TRIAL, data, targets, workers=2)
    assert environment(DistributedContext(0, 2)) == environment(DistributedContext(1, 2))


def test_the_precision_changes_the_keys():
    auto, wide, narrow = (
        environment(DistributedContext(precision=name)) for name in ("auto", "float32", "bfloat16")
    )
    assert wide != narrow
    assert auto == (narrow if supports_bfloat16() else wide)


@pytest.mark.parametrize("sizes", [{"seed": 1}, {"train": 47}, {"dev": 19}], ids=str)
def test_other_data_changes_the_keys(tmp_path, data, teacher, targets, sizes):
    other = make_data(tmp_path, **sizes)
    assert keys(TRIAL, other, make_targets(tmp_path / "t", other, teacher)) != keys(TRIAL, data, targets)


@pytest.mark.parametrize("number", [0, 1, -1])
def test_the_last_bit_of_a_teachers_weight_changes_the_keys(data, targets, number):
    teacher = make_encoder()
    assert keys(TRIAL, data, Targets(targets.folder, data, teacher)) == keys(TRIAL, data, targets)
    other = make_encoder()
    weight = list(other.parameters())[number].data.view(-1)
    weight[-1] = float(np.nextafter(np.float32(weight[-1]), np.float32(9)))
    assert keys(TRIAL, data, Targets(targets.folder, data, other)) != keys(TRIAL, data, targets)


def test_a_teachers_dropout_changes_the_keys(data, targets):
    """The student has the same dropout, which no weight shows."""
    dropping = Targets(targets.folder, data, make_encoder(dropout=0.1))
    assert keys(TRIAL, data, dropping) != keys(TRIAL, data, targets)


def test_the_reference_changes_the_keys(data, targets):
    arguments = TRIAL, data, targets, layer_map(2, 4), [environment(DistributedContext())]
    references = ("", targets.fingerprint((1, 3)), targets.fingerprint((1, 2)))
    assert len({start_key(*arguments, reference) for reference in references}) == 3


def test_attention_that_is_not_stored_changes_the_keys(data, teacher, targets):
    online = Targets(targets.folder, data, teacher, attention_stored=False)
    assert keys(TRIAL, data, online) != keys(TRIAL, data, targets)


@pytest.mark.parametrize(("layer", "differs"), [(4, True), (2, True), (1, False), (3, False)])
def test_targets_of_matched_layers_change_the_keys(tmp_path, data, targets, layer, differs):
    shutil.copytree(targets.folder, tmp_path / "targets")
    parts = list((tmp_path / "targets").glob(f"*-{layer}"))
    assert len(parts) == 2
    for part in parts:
        manifest = part / "manifest.json"
        manifest.write_text(manifest.read_text().replace("a", "b"))
    found = keys(TRIAL, data, Targets(tmp_path / "targets", data, targets.teacher))
    assert (found != keys(TRIAL, data, targets)) == differs


def test_the_location_of_the_folders_does_not_change_the_keys(tmp_path, data, targets):
    shutil.copytree(data.folder, tmp_path / "a" / data.folder.name)
    shutil.copytree(targets.folder, tmp_path / "b")
    moved = open_data(tmp_path / "a" / data.folder.name)
    assert moved.folder != data.folder
    found = keys(TRIAL, moved, Targets(tmp_path / "b", moved, make_encoder()))
    assert found == keys(TRIAL, data, targets)
    assert keys(TRIAL, replace(moved, key="other"), targets) != found


# The code.

OTHER_MODULES = {
    "the values of settings are in the keys": ["config"],
    "the key of the data has the fingerprint of its content": [
        *("data.dataset", "data.readers", "data.lines", "data.separated", "data.sources", "data.task_file"),
        "data.dev_split",
        *("data.corpus.sentence_frames", "data.corpus.lexicon"),
    ],
    "the weights of stored teachers are in the targets' fingerprint": [
        *(
            "distill.assistant",
            "distill.teacher",
            "distill.teacher_files",
            "distill.teacher_head",
            "distill.teacher_origin",
        )
    ],
    "epochs are saved and loaded bit for bit": ["distill.epoch_cache", "distill.shared_epochs"],
    "lists, removes or copies files": ["distill.cache_contents", "storage.eviction", "storage.remote"],
    "makes the keys themselves": ["distill.cache_keys", "storage.store"],
    "refuses teachers": ["distill.families", "distill.encoder_check"],
    "measures time": ["distill.latency"],
    "reports of epochs": ["distill.epoch"],
    "messages": ["errors", "formatting", "data.checks"],
}
"""Modules of the rooms below a trial, and modules at the top that these import, that compute no epoch, by reason."""


def path_of(package: Path, module: str) -> Path:
    return package.joinpath(*module.split(".")).with_suffix(".py")


def imported(module: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(path_of(PACKAGE, module).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ikd_ray"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    modules = {name.removeprefix("ikd_ray.") for name in names}
    return {name for name in modules if path_of(PACKAGE, name).is_file()}


def test_every_module_below_a_trial_is_listed():
    rooms = [path for room in ("storage", "data", "distill") for path in (PACKAGE / room).rglob("*.py")]
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in rooms}
    modules = {name for name in modules if not name.endswith("__init__")}
    modules |= {name for module in COMPUTING_MODULES for name in imported(module)}
    listed = [*COMPUTING_MODULES, *chain.from_iterable(OTHER_MODULES.values())]
    assert sorted(modules | {"config", "errors"}) == sorted(listed)


@pytest.fixture
def package(tmp_path) -> Path:
    """Return a copy of the package that may be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "ikd_ray", ignore=ignored))


HARMLESS_EDITS = {
    "comment": ("distill.losses", "import torch\n", "import torch  # tensors\n"),
    "docstring of a module": ("distill.losses", '"""The four losses', '"""Four losses'),
    "docstring of a function": ("distill.losses", "It does not depend on", "It is independent of"),
    "docstring of a constant": ("distill.stage_training", '"""Share of the', '"""Fraction of the'),
    "formatting": ("distill.losses", "(1 - cosine.square()).mean()", "(1 - (cosine.square())).mean()"),
    "message of an exception": ("distill.stage_training", "became {value} in stage", "was {value} in stage"),
    "import within the package": ("distill.loop", "import training_rows", "import training_rows as rows"),
    "message of a reader": ("data.readers", "cannot be read", "is unreadable"),
    "code of a reader": ("data.sources", "import annotations\n", "import annotations\n\nx = 1\n"),
}
ARITHMETIC_EDITS = {
    "an operator": ("distill.losses", "1 - cosine.square()", "1 + cosine.square()"),
    "a method": ("distill.losses", "cosine.square()", "cosine.abs()"),
    "a constant": ("data.batches", "POOL = 50", "POOL = 51"),
    "a library's function": ("distill.fast_layers", "functional.dropout", "functional.alpha_dropout"),
    "an argument's default": ("distill.fast_layers", "onednn: bool = ONEDNN", "onednn: bool = True"),
}


@pytest.mark.parametrize("name", HARMLESS_EDITS | ARITHMETIC_EDITS)
def test_only_an_edit_of_arithmetic_changes_the_code_digest(package, name):
    module, old, new = (HARMLESS_EDITS | ARITHMETIC_EDITS)[name]
    source = path_of(package, module).read_text()
    assert old in source
    path_of(package, module).write_text(source.replace(old, new))
    assert (code_digest(package) == code_digest()) == (name in HARMLESS_EDITS)


def test_a_renamed_module_keeps_the_code_digest(package, monkeypatch):
    before = code_digest()
    (package / "distill" / "losses.py").rename(package / "distill" / "objectives.py")
    renamed = [name.replace("losses", "objectives") for name in COMPUTING_MODULES]
    monkeypatch.setattr(cache_keys, "COMPUTING_MODULES", renamed)
    assert code_digest(package) == before


@pytest.mark.parametrize("module", COMPUTING_MODULES)
def test_every_computing_module_is_in_the_code_digest(package, module):
    with path_of(package, module).open("a") as file:
        file.write("\nx = 1\n")
    assert code_digest(package) != code_digest()


def test_the_code_changes_the_keys(data, targets, monkeypatch):
    before = keys(Trial(**BASE, regime="sid"), data, targets)
    monkeypatch.setattr(cache_keys, "code_digest", lambda: "other")
    assert not {*before} & {*keys(Trial(**BASE, regime="sid"), data, targets)}
