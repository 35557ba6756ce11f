"""Training on a fraction of the training set equals training on a data set of just these examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.data.batches import training_batches
from ikd_ray.data.splits import nested_subset
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill import frozen_activations
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.frozen_activations import ACTIVATIONS_FILE, FrozenActivations
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.stage_training import StageDataLoader
from ikd_ray.errors import UsageError
from tests.helpers.shared_trials import distillation_result
from tests.helpers.tiny_models import (
    HIDDEN,
    changed_tensors,
    make_dataset,
    make_encoder,
    make_targets,
    write_tokenizer,
)

SMALL = {"student_layers": 2, "batch_size": 7, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 2}
SEED = 3


def trial_of(**fields) -> Trial:
    return Trial(**(SMALL | {"seed": SEED} | fields))


@pytest.fixture
def plans(monkeypatch):
    """Return a list that gets the batches of every epoch that is trained."""
    found, call = [], StageDataLoader.load

    def spy(self, plan):
        found.append([rows for (rows,) in plan])  # each step is one micro-batch
        return call(self, plan)

    monkeypatch.setattr(StageDataLoader, "load", spy)
    return found


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_a_fraction_of_one_gives_the_batches_of_the_whole_set(data, targets, plans):
    list(Distillation(trial_of(regime="hard", train_fraction=1.0), data, targets))
    lengths = data.train.lengths
    expected = [training_batches(lengths, SMALL["batch_size"], SEED, "C", epoch) for epoch in (1, 2)]
    assert len(plans) == 2
    assert all(map(same, plans, expected))


@pytest.mark.parametrize("regime", ["hard", "pid"])
def test_every_epoch_has_each_row_of_the_subset_once(data, targets, plans, regime):
    list(Distillation(trial_of(regime=regime, train_fraction=0.3), data, targets))
    chosen = nested_subset(data.train.labels, 0.3, SEED)
    assert len(chosen) < 0.4 * len(data.train)
    assert plans
    for plan in plans:
        assert np.sort(np.concatenate(plan)).tolist() == chosen.tolist()


@pytest.fixture(scope="module")
def cut(data, teacher, tmp_path_factory):
    """Return half of `data`'s training set as a data set of its own, and the teacher's targets for it."""
    root, whole = tmp_path_factory.mktemp("cut"), make_dataset()
    train = whole.splits["train"]
    rows = nested_subset(train.labels, 0.5, SEED)
    fewer = replace(whole, splits=whole.splits | {"train": train.select(rows)})
    tokens = tokenize(fewer, write_tokenizer(root / "tokenizer"), "tiny", 32, root / "data")
    return tokens, make_targets(root / "targets", tokens, teacher)


FIELDS = [
    {"regime": "hard", "embeddings": "train"},
    {"regime": "id", "embeddings": "train"},
    {"regime": "pid"},
    {"regime": "pid", "top_trains": "head"},
    {"regime": "sid", "soft_labels": "always"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(fields.values()))
def test_a_subset_trains_as_a_data_set_of_just_these_examples(data, targets, cut, fields):
    """The teacher's targets were computed in other batches, which changes their last digits."""
    trial = trial_of(train_fraction=0.5, **fields)
    part, alone = map(
        distillation_result, (Distillation(trial, data, targets), Distillation(trial_of(**fields), *cut))
    )
    exact = fields["regime"] == "hard"
    for mine, theirs in zip(part.metrics, alone.metrics, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3, abs=2e-4)
        if exact:
            assert [mine["train/loss"], mine["dev/mcc"]] == [theirs["train/loss"], theirs["dev/mcc"]]
    if exact:
        assert not changed_tensors(part.state, alone.state)
    for name, tensor in part.state.items():
        torch.testing.assert_close(tensor, alone.state[name], rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize("config", [PrefixConfig(), PrefixConfig(memory_gb=0)], ids=["memory", "disk"])
@pytest.mark.parametrize("depths", [[1, 2, 3], [2], [3]], ids=str)
def test_frozen_activations_are_stored_for_the_subset_only(data, config, depths):
    rows = nested_subset(data.train.labels, 0.25, 0)
    student = make_encoder(layers=3)
    whole, part = FrozenActivations(student, data, config), FrozenActivations(student, data, config, rows)
    for depth in depths:
        whole.advance(depth)
        part.advance(depth)
    for split, wanted in (("train", np.random.default_rng(0).permutation(rows)), ("dev", np.arange(9))):
        torch.testing.assert_close(part.read(split, wanted), whole.read(split, wanted), rtol=1e-5, atol=1e-5)
    vectors = len(rows) if depths[-1] == 3 else data.train.lengths[rows].sum()
    assert part._arrays["train"].size == HIDDEN * vectors
    with pytest.raises((IndexError, KeyError)):
        part.read("train", np.setdiff1d(np.arange(len(data.train)), rows)[:1])


def test_no_layer_runs_for_an_example_outside_the_subset(data, targets, monkeypatch):
    seen, collate = [], frozen_activations.collate

    def spy(split, rows, pad_id):
        if split is data.train:
            seen.extend(rows.tolist())
        return collate(split, rows, pad_id)

    monkeypatch.setattr(frozen_activations, "collate", spy)
    list(Distillation(trial_of(regime="pid", top_trains="head", train_fraction=0.2), data, targets))
    chosen = nested_subset(data.train.labels, 0.2, SEED).tolist()
    assert sorted(seen) == sorted(chosen * 2)  # below layer 2, and below the head


def test_the_encoders_cached_output_is_that_of_the_subset(data, targets, tmp_path):
    for fraction in (0.25, 0.5, 1.0):
        trial = trial_of(regime="pid", top_trains="head", train_fraction=fraction)
        list(Distillation(trial, data, targets, checkpoints=EpochCache(tmp_path, 20, "t", "t")))
    sizes = [load_file(file)["train"].size for file in tmp_path.glob(f"[!.]*/*/{ACTIVATIONS_FILE}")]
    expected = [len(nested_subset(data.train.labels, fraction, SEED)) for fraction in (0.25, 0.5, 1.0)]
    assert sorted(sizes) == [HIDDEN * count for count in expected]


def test_only_equal_subsets_share_epochs(data, targets, tmp_path):
    def run(fraction: float, name: str) -> dict[str, float]:
        trial, shared = trial_of(regime="kd", train_fraction=fraction), EpochCache(tmp_path, 20, name, name)
        return distill(trial, data, targets, checkpoints=shared).metrics

    first = run(0.5, "a")
    assert run(1.0, "b")["reused_epochs"] == run(0.25, "c")["reused_epochs"] == 0
    again = run(0.5, "d")
    assert again["reused_epochs"] == 2
    assert again["train/loss"] == first["train/loss"]


def test_a_subset_too_small_to_split_is_refused(data, targets):
    trial = trial_of(regime="kd", train_fraction=0.01, epochs=1)
    count = len(np.unique(data.train.labels))
    with pytest.raises(UsageError, match=f"batch_size {count}: too few examples for 2 workers"):
        Distillation(trial, data, targets, DistributedContext(0, 2))
    assert len(list(Distillation(trial, data, targets))) == 1
