"""Peers train for one epoch and leave nothing behind; missing ones are named."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from ikd_ray.bench.peers import check_peers, textbrewer_epoch, trainer_epoch
from ikd_ray.errors import UsageError


@pytest.fixture
def steps(monkeypatch):
    """How many steps optimizers took."""
    taken = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **kw: taken.append(1) or step(*args, **kw))
    return taken


def test_textbrewer(laid_out, steps, tmp_path, monkeypatch, capfd):
    pytest.importorskip("textbrewer")
    monkeypatch.chdir(tmp_path)
    assert textbrewer_epoch(laid_out) > 0
    assert len(steps) == 6  # 48 examples
    assert not [path for path in laid_out.scratch.rglob("*") if path.is_file()]
    assert not {"runs", "saved_models"} & {path.name for path in tmp_path.iterdir()}
    assert capfd.readouterr().out == ""


def test_trainer(laid_out, monkeypatch, tmp_path, capfd):
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    seconds = trainer_epoch(laid_out)
    assert seconds > 0
    assert not [path for path in laid_out.scratch.rglob("*") if path.is_file()]
    assert capfd.readouterr().out == ""


def test_unknown_and_missing(monkeypatch):
    with pytest.raises(UsageError, match="'apex' is not known; one of: textbrewer, trainer"):
        check_peers(("apex",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'textbrewer is not installed; pip install -e "\.\[bench\]"'):
        check_peers(("textbrewer",))
    with pytest.raises(UsageError, match="accelerate is not installed"):
        check_peers(("trainer",))
