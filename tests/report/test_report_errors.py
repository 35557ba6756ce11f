"""Errors that students share with their teacher, and what is said where their weights are gone."""

from __future__ import annotations

import numpy as np
import pytest

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import open_analysis
from ikd_ray.errors import UnavailableError
from ikd_ray.records import trial_folder
from ikd_ray.report.figures import attention, errors
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage
from tests.helpers.sample_sweep import make_sweep


def test_overlap_of_errors():
    student, teacher = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert errors.overlap(student, teacher) == errors.Overlap(shared=2, own=1, mended=1)
    assert errors.overlap(student, teacher).inherited == pytest.approx(2 / 3)
    assert errors.jaccard(student, teacher) == 0.5
    none = np.zeros(5, bool)
    assert errors.jaccard(none, none) == 1.0
    assert errors.overlap(none, none).inherited == 0.0


def test_predictions_are_computed_once_and_anew_for_other_weights(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=3)
    subject, told = open_analysis(sweep), []
    weights = ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep, told.append)
    student = weights.student(subject.best)
    first = weights.logits(student)
    assert np.array_equal(weights.logits(student), first)
    assert told == [f"predictions of the student of {subject.best.id} on 20 dev examples"]
    assert not np.array_equal(weights.logits(weights.teacher), first)
    assert len(told) == 2


def test_what_is_gone_is_said(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=3)
    subject = open_analysis(sweep)
    weights = ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep)
    (trial_folder(sweep, subject.best.id) / "student" / "model.safetensors").write_bytes(b"other")
    section = errors.section(subject, weights)
    assert f"The student of {subject.best.id} is damaged" in section.words[1]
    with pytest.raises(UnavailableError, match="is damaged"):
        attention.section(subject, weights, ())
    store.discard(sweep.parent / "cache" / "tokens" / weights.data.key)
    with pytest.raises(UnavailableError, match="tokenized dev set is not there any more"):
        errors.section(subject, ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep))


def test_regression_has_no_errors(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=3, task="stsb")
    subject = open_analysis(sweep)
    weights = ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep)
    with pytest.raises(UnavailableError, match="regression"):
        errors.section(subject, weights)
    assert "The teacher says" in attention.section(subject, weights, ()).words[0]
