"""How errors and records name the arguments of the Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from ikd_ray.api.arguments import (
    changed_arguments,
    describe_call,
    name_arguments,
    named_arguments,
    space_file,
)
from ikd_ray.errors import UsageError
from ikd_ray.search.space_file import load_space


@pytest.mark.parametrize(
    ("message", "given", "shown"),
    [
        ("--trials 0: must be at least 1", {"trials": 0}, "trials=0: must be at least 1"),
        (
            "--trials 4 and --minutes 2.5: give one of the two",
            {"trials": 4, "minutes": 2.5},
            "trials=4 and minutes=2.5: give one of the two",
        ),
        (
            "--name a: outputs/a exists already; choose another name, or go on with --resume a",
            {"name": "a"},
            "name='a': outputs/a exists already; choose another name, or go on with resume='a'",
        ),
        ("--name 'x y': use letters", {"name": "x y"}, "name='x y': use letters"),
        ("--concurrent 12: too many", {"concurrent": 1}, "concurrent='12': too many"),
        (
            "--data-dir /home/ann/glue: task cola needs a folder",
            {"data_dir": "glue"},
            "data_dir='/home/ann/glue': task cola needs a folder",
        ),
        ("--data-dir is missing; give it", {}, "data_dir is missing; give it"),
        ("give at most --workers-per-trial", {}, "give at most workers_per_trial"),
        ("--output a b: no", {"output": Path("a b")}, "output='a b': no"),
        ("t1 exists already; --force replaces it", {}, "t1 exists already; force=True replaces it"),
        ("--onnx needs onnx", {"onnx": True}, "onnx=True needs onnx"),
        ("--teacher C:\\x\\1: no", {"teacher": "C:\\x\\1"}, "teacher='C:\\\\x\\\\1': no"),
        ("first\n--trials 0: second", {"trials": 0}, "first\ntrials=0: second"),
    ],
)
def test_messages_name_arguments_where_a_command_names_flags(message, given, shown):
    assert name_arguments(message, given) == shown
    with pytest.raises(UsageError) as error, named_arguments(given):
        raise UsageError(message)
    assert str(error.value) == shown


def function(task: str, *, trials: int | None = None, share: bool = True) -> None: ...


def test_only_arguments_that_differ_from_the_defaults_are_recorded():
    given = changed_arguments(function, {"task": "cola", "trials": 4, "share": True})
    assert given == {"task": "cola", "trials": 4}
    assert describe_call("sweep", given) == "ikd_ray.sweep(task='cola', trials=4)"
    assert describe_call("sweep", {"output": Path("a b")}) == "ikd_ray.sweep(output='a b')"


def test_a_space_as_a_dict_is_the_same_as_its_file():
    layers = [1, 2]
    space = {
        "objectives": {"dev/metric": "max", "student/size_mb": "min"},
        "params": {
            "student_layers": {"choice": layers},
            "assistant_layers": {"choice": layers},  # YAML would write an alias
            "learning_rate": {"float": (1e-5, 1e-4), "log": True},
        },
    }
    with space_file(space) as path:
        loaded = load_space(Path(path))
    assert list(loaded.objectives) == ["dev/metric", "student/size_mb"]
    assert loaded.params["assistant_layers"].values == tuple(layers)
    assert (loaded.params["learning_rate"].low, loaded.params["learning_rate"].high) == (1e-5, 1e-4)
    assert not Path(path).exists()


def test_a_mistake_in_a_dict_is_named_by_its_place():
    with pytest.raises(UsageError) as error, space_file({"params": {"temprature": 2}}) as path:
        load_space(Path(path))
    assert str(error.value) == "space: params.temprature: unknown name; did you mean temperature?"
    with (
        pytest.raises(UsageError, match=r"^space: cannot represent an object: .*; give numbers"),
        space_file({"params": {"temperature": object()}}),
    ):
        pass


def test_names_and_paths_of_spaces_stay():
    with space_file("paper") as path:
        assert path == "paper"
    with space_file(Path("a/b.yaml")) as path:
        assert path == "a/b.yaml"
