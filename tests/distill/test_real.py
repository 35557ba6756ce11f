"""The real teacher on a part of CoLA: internal distillation lowers the attention KL, as the paper reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ikd_ray.config import TeacherConfig, Trial
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill.loop import distill
from ikd_ray.distill.student import layer_map
from ikd_ray.distill.targets import Targets, build_targets
from ikd_ray.distill.teacher import find_teacher, load_teacher, load_tokenizer, make_teacher
from ikd_ray.tasks import get_task

pytestmark = pytest.mark.slow
ROWS = {"train": 800, "dev": 200}


def first_rows(dataset: Dataset) -> Dataset:
    """Return a random part of each split, always the same."""
    splits = {}
    for name, split in dataset.splits.items():
        rows = np.random.default_rng(0).permutation(len(split))[: ROWS[name]]
        splits[name] = Split([split.text[row] for row in rows], None, split.labels[rows])
    return Dataset(dataset.task, splits, "folder", "part of CoLA")


@pytest.fixture(scope="module")
def prepared(glue_dir, tmp_path_factory):
    root, task = tmp_path_factory.mktemp("real"), get_task("cola")
    source = find_teacher(None, task)
    dataset = first_rows(load_dataset(task, glue_dir))
    data = tokenize(dataset, load_tokenizer(source), source.key, 128, root / "tokens")
    list(make_teacher(source, data, TeacherConfig(epochs=1), root / "teacher", torch.device("cpu")))
    teacher = load_teacher(root / "teacher")
    list(build_targets(root / "targets", data, teacher, layer_map(3, 6), attention=True))
    return data, Targets(root / "targets", data, teacher)


def test_internal_distillation_lowers_the_attention_kl(prepared):
    kd = distill(Trial(regime="kd", student_init="first", epochs=2), *prepared).metrics
    internal = distill(Trial(regime="id", student_init="first", epochs=2), *prepared).metrics
    assert internal["dev/attention_kl"] < 0.6 * kd["dev/attention_kl"]
    assert internal["dev/layer_3/cos"] < kd["dev/layer_3/cos"]
