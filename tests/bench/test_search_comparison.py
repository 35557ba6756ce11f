"""Curves of searches and students made by hand."""

from __future__ import annotations

import json

import pytest

from ikd_ray.bench.search_comparison import BY_HAND, RESULT, app, score_at
from ikd_ray.search.space_file import load_space
from tests.helpers.terminal import invoke

TRIALS = [
    {"layers": 3, "score": 0.3, "minutes": 2.0},
    {"layers": 1, "score": 0.1, "minutes": 1.0},
    {"layers": 5, "score": 0.2, "minutes": 3.0},
]


@pytest.mark.parametrize(
    ("minute", "expected"),
    [(0.5, 0.0), (1.0, 0.1), (2.0, (0.1 + 0.1 + 3 * 0.3) / 5), (9.0, (0.1 + 0.1 + 3 * 0.3) / 5)],
)
def test_a_depth_has_the_best_student_with_at_most_so_many_layers(minute, expected):
    assert score_at(TRIALS, minute) == pytest.approx(expected)


@pytest.mark.parametrize("params", BY_HAND.values())
def test_spaces_of_students_made_by_hand_are_valid(params, tmp_path):
    (tmp_path / "space.yaml").write_text(f"sampler: grid\nparams: {{regime: kd, {params}}}\n")
    assert load_space(tmp_path / "space.yaml").possible_values("student_layers")[0] == 1


def test_results_are_compared(tmp_path):
    for seed in range(3):
        for arm, shift in (("default", 0.05), ("by hand: 5 of KD", 0.0)):
            trials = [trial | {"score": trial["score"] + shift + 0.01 * seed} for trial in TRIALS]
            folder = tmp_path / f"{arm}-{seed}"
            folder.mkdir()
            result = {"task": "cola", "seed": seed, "arm": arm, "trials": trials}
            (folder / RESULT).write_text(json.dumps(result))
    done = invoke(app, "show", tmp_path, "--picture", tmp_path / "curves.png")
    assert done.exit_code == 0, done.output
    assert "+0.050 ± 0.000" in done.stdout
    assert (tmp_path / "curves.png").stat().st_size > 1000
