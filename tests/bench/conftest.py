"""A tiny teacher and data as the benchmark prepares them."""

from __future__ import annotations

import pytest

from ikd_ray.bench.inputs import Request, prepare_inputs
from ikd_ray.distill.teacher import find_teacher
from ikd_ray.tasks import get_task
from tests.helpers.tiny_models import make_dataset, write_teacher


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("headless") / "teacher")


@pytest.fixture
def inputs(teacher_folder, tmp_path):
    source = find_teacher(str(teacher_folder), get_task("cola"))
    request = Request("cola", student_layers=2, batch_size=8)
    return prepare_inputs(request, source, make_dataset(), tmp_path, threads=1)
