from __future__ import annotations

from dataclasses import replace

import pytest

from ikd_ray.distill.regimes import REGIMES, plan
from ikd_ray.errors import UsageError

ALL = (1, 2, 3)


# For each stage its name, its layers with an internal loss, whether it has soft and hard labels, the layers that it
# trains, whether it trains the head, and how many layers run.
C = ("C", (), True, True, ALL, True, 3)
TABLE = {
    "hard": [("C", (), False, True, ALL, True, 3)],
    "kd": [C],
    "id": [("1+2+3+C", ALL, True, True, ALL, True, 3)],
    "pid": [
        ("1", (1,), False, False, (1,), False, 1),
        ("2", (2,), False, False, (2,), False, 2),
        ("3", (3,), False, False, (3,), False, 3),
        C,
    ],
    "sid": [
        ("1", (1,), False, False, (1,), False, 1),
        ("1+2", (1, 2), False, False, (1, 2), False, 2),
        ("1+2+3", ALL, False, False, ALL, False, 3),
        C,
    ],
}


@pytest.mark.parametrize("regime", REGIMES)
def test_plan_equals_the_table(regime):
    assert TABLE[regime] == [
        (s.name, s.layers, s.soft > 0, s.hard > 0, s.trains, s.head, s.depth(3)) for s in plan(regime, 3)
    ]


@pytest.mark.parametrize("regime", ["kd", "id", "pid", "sid"])
def test_classification_weighs_soft_by_one_and_hard_by_lambda(regime):
    *internal, top = plan(regime, 3, lambda_=0.3, temperature=4.0, epochs=7)
    assert (top.soft, top.hard, top.temperature, top.epochs) == (1.0, 0.3, 4.0, 7)
    assert all(stage.hard == 0 for stage in internal)


def test_hard_regime_has_no_teacher_and_no_lambda():
    (stage,) = plan("hard", 3, lambda_=0.3)
    assert (stage.soft, stage.hard, stage.layers, stage.kl, stage.cos) == (0.0, 1.0, (), 0.0, 0.0)


@pytest.mark.parametrize("regime", ["pid", "sid"])
def test_soft_labels_always(regime):
    """Every stage has the soft loss, without the hard one, runs all layers, and trains the head."""
    usual, always = plan(regime, 3), plan(regime, 3, soft_labels="always", temperature=3.0)
    for before, after in zip(usual[:-1], always[:-1], strict=True):
        assert after == replace(before, soft=1.0, head=True, temperature=3.0)
        assert after.hard == 0
    assert {stage.depth(3) for stage in always} == {3}
    assert always[-1] == replace(usual[-1], temperature=3.0)


@pytest.mark.parametrize(
    ("on", "kl", "cos"), [("kl", 2.5, 0.0), ("cos", 0.0, 2.5), ("both", 2.5, 2.5)], ids=str
)
@pytest.mark.parametrize("regime", ["id", "pid", "sid"])
def test_internal_losses_and_their_weight(regime, on, kl, cos):
    for stage in plan(regime, 3, internal_losses=on, internal_weight=2.5):
        assert (stage.kl, stage.cos) == ((kl, cos) if stage.layers else (0.0, 0.0))


def test_pid_train_upto_moves_the_layers_below():
    upto = [((1,), (1,)), ((2,), (1, 2)), ((3,), ALL), ((), ALL)]
    assert [(s.layers, s.trains) for s in plan("pid", 3, train="upto")] == upto


@pytest.mark.parametrize("regime", ["pid", "sid"])
def test_top_trains_head_alone(regime):
    top = plan(regime, 3, top_trains="head", embeddings="train")[-1]
    assert (top.trains, top.head, top.embeddings) == ((), True, False)
    assert plan(regime, 3, top_trains="all", embeddings="train")[-1].embeddings


@pytest.mark.parametrize(
    ("regime", "options", "trained"),
    [
        ("hard", {}, [True]),
        ("kd", {}, [True]),
        ("id", {}, [True]),
        ("sid", {}, [True] * 4),
        ("pid", {"train": "upto"}, [True] * 4),
        ("pid", {"train": "layer"}, [True, False, False, True]),
    ],
)
def test_embeddings_train_with_the_first_layer_if_at_all(regime, options, trained):
    assert not any(stage.embeddings for stage in plan(regime, 3, **options))
    assert [s.embeddings for s in plan(regime, 3, embeddings="train", **options)] == trained


@pytest.mark.parametrize("regime", ["pid", "sid"])
def test_internal_stages_end_by_epochs_or_cosine_and_top_by_epochs(regime):
    *internal, top = plan(regime, 3, epochs_per_layer=5, epochs=2, cosine_threshold=0.1)
    assert [(s.epochs, s.cosine_threshold, s.decays) for s in internal] == [(5, 0.1, False)] * 3
    assert (top.epochs, top.cosine_threshold, top.decays) == (2, 0.0, True)


def test_stages_of_a_student_of_one_layer():
    assert [stage.name for stage in plan("pid", 1)] == ["1", "C"]
    assert [stage.name for stage in plan("id", 1)] == ["1+C"]


@pytest.mark.parametrize(
    "options", [{"lamda": 1}, {"train": "all"}, {"temperature": 0}, {"internal_weight": 0}], ids=str
)
def test_unknown_or_invalid_options_are_refused(options):
    with pytest.raises(UsageError):
        plan("pid", 3, **options)


def test_an_unknown_regime_is_refused():
    with pytest.raises(UsageError):
        plan("nope", 3)
