"""The depths of the assistants that a space asks for."""

from __future__ import annotations

import re

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.search.assistant_depths import assistant_depths


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ("student_layers: {int: [1, 5]}", {}),
        ("student_layers: {int: [1, 5]}, assistant_layers: 0", {}),
        (
            "student_layers: {int: [1, 3]}, assistant_layers: {choice: [5, 0, 4]}",
            {4: (1, 2, 3), 5: (1, 2, 3)},
        ),
        ("student_layers: {choice: [3, 1]}, assistant_layers: {int: [4, 5]}", {4: (1, 3), 5: (1, 3)}),
        # The default depth of a student is 3.
        ("assistant_layers: 5", {5: (3,)}),
        (
            "student_layers: {int: [1, 5]}, assistant_layers: {choice: [0, 3], when: {student_layers: [1, 2]}}",
            {3: (1, 2)},
        ),
        (
            "assistant_layers: {choice: [0, 2, 4]}, student_layers: {choice: [1], when: {assistant_layers: 2}}",
            {2: (1,), 4: (3,)},
        ),
        # Where the regime is hard, the depth is 3 and there is no assistant.
        (
            "regime: {choice: [hard, kd, id]}, student_layers: {int: [1, 2], when: {regime: [kd, id]}}, "
            "assistant_layers: {choice: [3], when: {regime: kd}}",
            {3: (1, 2)},
        ),
        # Values that no condition names count too, however many there are.
        (
            "seed: {int: [0, 2147483647]}, student_layers: {int: [1, 2], when: {seed: [7]}}, "
            "assistant_layers: {choice: [4], when: {seed: [8]}}",
            {4: (3,)},
        ),
        # Conditions of other fields play no part.
        (
            "epochs: {int: [1, 900]}, lambda: {float: [0.1, 1], when: {epochs: 3}}, "
            "student_layers: 2, assistant_layers: 4",
            {4: (2,)},
        ),
    ],
)
def test_assistant_depths_are_those_that_trials_can_have(load, params, found):
    space = load(f"params: {{{params}}}")
    assert assistant_depths("space.yaml", [space], 6) == found


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            "student_layers: {int: [1, 4]}, assistant_layers: {choice: [0, 4]}",
            r"4 for a student of 4 .* give 5, or 0 ",
        ),
        (
            "student_layers: 2, assistant_layers: 6",
            r"6 for a student of 2 .* has 6 layers; give 3 to 5, or 0 ",
        ),
        (
            "student_layers: 6, assistant_layers: {int: [0, 3]}",
            r"1 for a student of 6 .*none fits between; leave it 0",
        ),
        ("assistant_layers: {choice: [4, 2]}", r"2 for a student of 3 .*; give 4 to 5, or 0 "),
        (
            "student_layers: {int: [1, 3], when: {regime: id}}, regime: {choice: [id, kd]}, "
            "assistant_layers: {choice: [0, 3], when: {student_layers: [1, 3]}}",
            r"3 for a student of 3 ",
        ),
    ],
)
def test_an_impossible_assistant_is_refused(load, params, message):
    space = load(f"params: {{{params}}}")
    with pytest.raises(UsageError, match=r"space.yaml: assistant_layers: ") as error:
        assistant_depths("space.yaml", [space], 6)
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_the_assistant_section_is_read_like_a_trial(load):
    recipe = load("assistant: {regime: pid, epochs: 7, lambda: 1, learning_rate: 1e-3, seed: 5}").assistant
    expected = {"regime": "pid", "epochs": 7, "lambda": 1.0, "learning_rate": 1e-3, "seed": 5}
    assert recipe.params().items() >= expected.items()
    assert load("params: {}").assistant.seed == 0
