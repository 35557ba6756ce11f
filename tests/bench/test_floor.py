"""The floor's arithmetic, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ikd_ray.bench.epochs import Timing, passed_layers
from ikd_ray.bench.floor import Work, layer_weights
from ikd_ray.bench.inputs import padding_share
from ikd_ray.bench.results import mean_of_stages, rows
from ikd_ray.distill.regimes import plan
from tests.helpers.tiny_models import make_encoder


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_weights_of_a_layer(family):
    # Hidden 32, feed-forward 48: query, key, value; the attention's output, up and down.
    assert layer_weights(make_encoder(family).layers[0]) == (3 * 32 * 32, 32 * 32 + 2 * 32 * 48)


def test_operations():
    work = Work(projections=30, rest=90, tokens=1000, examples=100)
    assert work.flops(3) == 6 * 3 * 120 * 1000
    assert work.exact_flops(1, False) == 6 * (30 * 1000 + 90 * 100)
    assert work.exact_flops(1, True) == 4 * 30 * 1000 + 6 * 90 * 100
    assert work.exact_flops(3, False) == 6 * (2 * 120 * 1000 + 30 * 1000 + 90 * 100)
    assert work.exact_flops(3, True) == 6 * (2 * 120 * 1000 + 30 * 1000 + 90 * 100) - 2 * 30 * 1000


@pytest.mark.parametrize(
    ("regime", "options", "layers"),
    [
        ("kd", {}, [3]),
        ("id", {}, [3]),
        ("hard", {}, [3]),
        ("pid", {}, [1, 1, 1, 3]),
        ("pid", {"train": "upto"}, [1, 2, 3, 3]),
        ("pid", {"soft_labels": "always"}, [3, 2, 1, 3]),
        ("pid", {"top_trains": "head"}, [1, 1, 1, 0]),
        ("sid", {}, [1, 2, 3, 3]),
    ],
)
def test_layers_that_a_stage_passes(regime, options, layers):
    assert [passed_layers(stage, 3) for stage in plan(regime, 3, **options)] == layers


def test_rows_compare():
    work = Work(projections=1_000_000, rest=3_000_000, tokens=1000, examples=100)
    stages = [Timing("1", 1.0, 1, 0.5), Timing("2", 2.0, 2, 0.7), Timing("head", 0.3, 0, 0.6)]
    one, two, head, mean, other = rows(
        [*stages, mean_of_stages("mean", stages[:2])],
        [Timing("reference", 6.0, 3)],
        work,
        gflops=(48.0, 96.0),
        constant_input=True,
    )
    assert (one.seconds_per_layer, two.seconds_per_layer, mean.seconds_per_layer) == (1.0, 1.0, 1.0)
    assert (one.over_floor, two.over_floor, mean.over_floor) == pytest.approx((2.0, 2.0, 2.0))
    assert one.over_exact_floor == pytest.approx(96e9 / (6 * (1e9 + 3e8) - 2e9))
    assert one.faster_than == {"reference": 6.0}
    assert (mean.seconds, mean.evaluation_s) == pytest.approx((1.5, 0.6))
    assert (head.seconds_per_layer, head.over_floor, head.over_exact_floor) == (None, None, None)
    assert other.faster_than == {}


def test_padding_share():
    lengths = np.array([4, 2, 3, 3])
    assert padding_share(lengths, [np.array([0, 1]), np.array([2, 3])]) == pytest.approx(2 / 14)
    assert padding_share(lengths, [np.array([2, 3])]) == 0
