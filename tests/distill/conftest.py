"""Tiny teachers, data and stored targets, made once."""

from __future__ import annotations

import pytest
import torch
from tiny import make_data, make_encoder, make_targets

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_task_data(tmp_path_factory):
    """`make_task_data("mnli", train=..., dev=...)`: tokenized splits of a made-up task, kept for the session."""
    root = tmp_path_factory.mktemp("tiny")
    return lambda *args, **sizes: make_data(root, *args, **sizes)


@pytest.fixture(scope="session")
def data(make_task_data):
    return make_task_data("cola")


@pytest.fixture(scope="session")
def teacher():
    """Four layers; never change it."""
    return make_encoder(layers=4)


@pytest.fixture(scope="session")
def targets(tmp_path_factory, data, teacher):
    """Everything the teacher says about `data`, stored."""
    return make_targets(tmp_path_factory.mktemp("targets"), data, teacher)
