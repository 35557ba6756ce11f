"""Text for people: outside text without control characters, durations and abbreviated names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikd_ray.formatting import clean, clock, duration, model_name, plural, portable_command, short_stage
from tests.helpers.terminal import CONTROL_CHARACTERS, DEEP_STAGE


def test_control_sequences_are_removed():
    assert clean(CONTROL_CHARACTERS) == "[bold red]out of memory[/] :smile:"
    assert clean("a\tb\n\nc") == "a b c"
    assert clean("abcdef", 4) == "abc…"


def test_one_is_singular():
    assert [plural(count, "trial") for count in (0, 1, 2, 1043)] == [
        "0 trials",
        "1 trial",
        "2 trials",
        "1,043 trials",
    ]


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [
        (0.04, "0.0 s", "0:00"),
        (9.96, "10 s", "0:10"),
        (59.6, "1 m 00 s", "1:00"),
        (185, "3 m 05 s", "3:05"),
        (7805, "2 h 10 m", "2:10:05"),
    ],
)
def test_durations(seconds, words, digits):
    assert (duration(seconds), clock(seconds)) == (words, digits)


@pytest.mark.parametrize(
    ("width", "short"),
    [(40, DEEP_STAGE), (16, "1+2+3+4+5+…+12+C"), (11, "1+2+…+12+C"), (7, "1+2…2+C"), (1, "…")],
)
def test_long_stage_names_are_shortened_in_the_middle(width, short):
    assert short_stage(DEEP_STAGE, width) == short


@given(st.text("0123456789+C", max_size=80), st.integers(1, 50))
def test_shortened_stage_names_fit(name, width):
    assert len(short_stage(name, width)) <= width


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bert-base-uncased", "bert-base-uncased"),
        ("org/model", "org/model"),
        ("/home/ann/my teacher", "my teacher"),
        ("/teacher/", "teacher"),
        ("4L of /home/ann/4L of x/teacher", "4L of teacher"),
        ("4L of org/model", "4L of org/model"),
    ],
)
def test_a_model_in_a_folder_is_named_by_the_folder_alone(name, shown):
    assert model_name(name) == shown


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("", ""),
        ("python sweeps/run.py --task cola --data-dir data/glue", None),
        (
            "python run.py --teacher '/home/ann/a b' --space=/x/s.yaml",
            "python run.py --teacher 'a b' --space=s.yaml",
        ),
        ("python run.py --data-dir ~/glue --space ../../ann/s", "python run.py --data-dir glue --space s"),
        (
            "python run.py --output s3://bucket/x --tracking-uri http://host --trials 3",
            "python run.py --trials 3",
        ),
        ("python run.py --output=/x --tracking-uri=sqlite:////x/y.db --resume n", "python run.py --resume n"),
        ("python run.py 'half a quote", ""),
        ("python run.py --output", "python run.py"),
        (
            "ikd_ray.distill(teacher='/home/ann/a b', data_dir='glue', output='s3://bucket/x', temperature=2.0)",
            "ikd_ray.distill(teacher='a b', data_dir='glue', temperature=2.0)",
        ),
        (
            "ikd_ray.sweep(task=\"/home/o'brien/t.yaml\", tracking_uri='http://host', space={'params': {'epochs': 1}})",
            "ikd_ray.sweep(task='t.yaml', space={'params': {'epochs': 1}})",
        ),
        ("ikd_ray.sweep(task=", ""),
    ],
)
def test_a_command_is_shown_without_the_places_of_its_machine(command, shown):
    assert portable_command(command) == (command if shown is None else shown)
