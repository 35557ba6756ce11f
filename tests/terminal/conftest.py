"""Fixtures of a notebook's output."""

from __future__ import annotations

import pytest

from ikd_ray.terminal import console


@pytest.fixture
def notebook_outputs(monkeypatch):
    """Return what a notebook is sent, with IPython's own publisher, while this process counts as its kernel."""
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
    displaypub = pytest.importorskip("IPython.core.displaypub")
    shell = interactiveshell.InteractiveShell.instance()
    monkeypatch.setattr(shell, "display_pub", displaypub.CapturingDisplayPublisher(shell=shell))
    monkeypatch.setattr(console, "is_notebook", lambda: True)
    yield shell.display_pub.outputs
    interactiveshell.InteractiveShell.clear_instance()
