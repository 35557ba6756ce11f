"""The package itself: light to import, with two subpackages that are called like the functions of their names."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import get_type_hints

import cloudpickle
import pytest

import ikd_ray
from ikd_ray.api.distillation import TrialFields
from ikd_ray.config import Trial

LIGHT = """
import sys
import ikd_ray
heavy = {"torch", "transformers", "ray", "mlflow", "optuna", "pandas", "numpy", "pydantic", "typer", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("ikd_ray.") and name.count(".") > 1], sys.modules
"""
IN_EITHER_ORDER = """
import sys
{first}
import ikd_ray.distill.loop
import ikd_ray.sweep.request
{then}
assert ikd_ray.distill is sys.modules["ikd_ray.distill"]
assert ikd_ray.distill.loop.distill.__module__ == "ikd_ray.distill.loop"
from ikd_ray import distill, sweep
assert callable(distill) and callable(sweep)
"""
FAILED_CALLS = """
import ikd_ray
for call in (lambda: ikd_ray.sweep("no task"), lambda: ikd_ray.distill(task="no task")):
    try:
        call()
    except ikd_ray.UsageError as error:
        assert "is not known" in str(error), error
    else:
        raise AssertionError
"""


def run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_library():
    run(LIGHT)


@pytest.mark.parametrize(("first", "then"), [("", FAILED_CALLS), (FAILED_CALLS, "")])
def test_subpackages_stay_what_they_are_before_and_after_a_call(first, then):
    run(IN_EITHER_ORDER.format(first=first, then=then))


def test_all_public_names_are_there():
    for name in ikd_ray.__all__:
        assert getattr(ikd_ray, name).__doc__
        assert name in dir(ikd_ray)
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        ikd_ray.sweeps  # noqa: B018 - a name that does not exist


@pytest.mark.parametrize("name", ["distill", "sweep"])
def test_a_callable_subpackage_has_the_signature_of_its_function(name):
    signature = inspect.signature(getattr(ikd_ray, name))
    assert "task" in signature.parameters
    assert signature.return_annotation in ("Student", "Sweep")


def call_both() -> tuple[object, object]:
    return ikd_ray.distill, ikd_ray.sweep


def test_subpackages_and_what_is_in_them_can_be_pickled():
    """Ray sends functions by value, with the modules that they name."""
    from ikd_ray.distill.epoch import Epoch
    from ikd_ray.distill.loop import distill

    for module in (ikd_ray.distill, ikd_ray.sweep):
        assert pickle.loads(pickle.dumps(module)) is module
        assert pickle.loads(cloudpickle.dumps(module)) is module
        assert copy.deepcopy(module) is module
    assert pickle.loads(pickle.dumps(distill)) is distill
    epoch = Epoch(1, 0, 1, 1, "C", {})
    assert pickle.loads(pickle.dumps(epoch)) == epoch
    assert pickle.loads(cloudpickle.dumps(call_both))() == (ikd_ray.distill, ikd_ray.sweep)


def test_the_keywords_of_a_student_are_the_fields_of_a_trial():
    fields = {name: str(field.annotation) for name, field in Trial.model_fields.items()}
    assert list(TrialFields.__annotations__) == list(fields)
    for name, annotation in get_type_hints(TrialFields).items():
        assert str(annotation) == fields[name]


@pytest.mark.slow
def test_type_checkers_see_arguments_and_results(tmp_path):
    """As an editor does it: mypy on a script of a user, with the annotations of the installed package."""
    script = tmp_path / "script.py"
    script.write_text(
        "import ikd_ray\n"
        "from ikd_ray.distill.loop import distill\n"
        "sweep: ikd_ray.Sweep = ikd_ray.sweep('cola', trials=4, space={'params': {}})\n"
        "student: ikd_ray.Student = ikd_ray.distill(task='cola', regime='kd', student_layers=2)\n"
        "reveal_type(sweep.best.metrics)\n"
        "ikd_ray.sweep('cola', trails=4)\n"
        "ikd_ray.distill(task='cola', temprature=2.0)\n"
        "ikd_ray.sweeps\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    lines = [line.partition("script.py:")[2] for line in done.stdout.splitlines() if "script.py:" in line]
    assert [int(line.partition(":")[0]) for line in lines if "error:" in line] == [6, 7, 8], done.stdout
    assert 'Revealed type is "dict[str, float]"' in done.stdout.replace("builtins.", "")
