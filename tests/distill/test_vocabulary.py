"""The compact vocabulary is exact: rows that the data does not use stay, the others train as in a dense step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.data.tokens import RaggedArray, row_offsets
from ikd_ray.distill import loop, training
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.fast_layers import CompactVocabulary
from ikd_ray.distill.regimes import Stage
from tests.helpers.tiny_models import copy_state, make_encoder, make_targets

STAGE = Stage("C", epochs=2, hard=1.0, trains=(1, 2), head=True, embeddings=True)


class Dense(CompactVocabulary):
    """The reference: every row of the vocabulary is in the embedding that trains."""

    def __init__(self, embedding, split, pad_id, used):
        everything = torch.arange(embedding.num_embeddings).numpy().astype(split.input_ids.values.dtype)
        ids = RaggedArray(everything, row_offsets(np.array([len(everything)])))
        super().__init__(embedding, replace(split, input_ids=ids), pad_id, np.array([0]))


def train(data, family, monkeypatch, kind):
    monkeypatch.setattr(training, "CompactVocabulary", kind)
    model = make_encoder(family, layers=2, dropout=0.1)
    settings = Trial(learning_rate=1e-3, batch_size=8)
    course = training.StageTrainer(model, STAGE, settings, data, None, (), DistributedContext())
    losses = [metrics["train/loss"] for metrics in training.train_stage(course)]
    return losses, copy_state(model.model)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_exact(make_task_data, family, monkeypatch):
    data = make_task_data("cola", train=9, dev=3)
    pad = 1 if family == "roberta" else 0
    data = replace(data, pad_id=pad)
    dense_losses, dense = train(data, family, monkeypatch, Dense)
    losses, compact = train(data, family, monkeypatch, CompactVocabulary)
    assert losses == pytest.approx(dense_losses, rel=1e-5)
    start = make_encoder(family, layers=2, dropout=0.1).model
    words = next(name for name in compact if name.endswith("word_embeddings.weight"))
    used = torch.zeros(len(compact[words]), dtype=torch.bool)
    used[data.train.input_ids.values.astype("int64")] = True
    assert 5 < used.sum() < len(used) - 5
    assert torch.equal(compact[words][~used], start.state_dict()[words][~used])
    assert (compact[words][used] != start.state_dict()[words][used]).any(1).all()
    for name, value in dense.items():
        if not name.endswith("key.bias"):  # softmax is blind to it: its gradient is rounding error
            assert torch.allclose(compact[name], value, atol=1e-5), name


def test_the_model_is_whole_again_after_each_epoch(make_task_data):
    data = make_task_data("cola", train=9, dev=3)
    model = make_encoder(layers=2)
    embedding = model.model.get_input_embeddings()
    weight = embedding.weight
    course = training.StageTrainer(model, STAGE, Trial(batch_size=8), data, None, (), DistributedContext())
    for _ in training.train_stage(course):
        assert embedding.weight is weight


def test_the_teacher_reads_the_whole_vocabulary(data, teacher, tmp_path):
    """Attention that is not stored is the teacher's of the same words, though the student's ids are others."""
    trial = Trial(regime="id", student_layers=4, embeddings="train", epochs=1, learning_rate=1e-9)
    for stored in (True, False):
        targets = make_targets(tmp_path / str(stored), data, teacher, attention=stored)
        metrics = loop.distill(trial, data, targets).metrics
        assert all(metrics[f"train/layer_{layer}/kl"] < 1e-3 for layer in (1, 2, 3, 4))
