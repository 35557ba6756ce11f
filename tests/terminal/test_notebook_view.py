"""Views in a notebook: they are drawn again in their place, without control characters."""

from __future__ import annotations

import time

from rich.text import Text

from ikd_ray.terminal import notebook
from ikd_ray.terminal.notebook import NotebookView, mime_bundle
from ikd_ray.terminal.progress_table import StepView
from tests.helpers.terminal import CONTROL_CHARACTERS


def test_a_process_of_a_test_is_no_notebook():
    assert not notebook.is_notebook()


def test_text_of_others_is_shown_as_text():
    step = StepView(f"<b>bold</b> {CONTROL_CHARACTERS}", time.monotonic)
    bundle = mime_bundle(step)
    assert "&lt;b&gt;bold&lt;/b&gt;" in bundle["text/html"]
    for text in bundle.values():
        assert not {"\x1b", "\r", "\x07"} & {*text}


def test_a_view_is_drawn_again_in_its_place(notebook_outputs, monkeypatch):
    outputs = notebook_outputs
    monkeypatch.setattr(notebook, "REFRESH_S", 0.01)
    step = StepView("tokenizing", time.monotonic)
    with NotebookView(step):
        while len(outputs) < 4:
            time.sleep(0.01)
        step.end("done")
    first, *others = outputs
    assert not first.get("update")
    assert all(output["update"] for output in others)
    assert {output["transient"]["display_id"] for output in outputs} == {first["transient"]["display_id"]}
    assert others[-1]["data"]["text/plain"].startswith("✓  tokenizing")


def test_a_transient_view_leaves_nothing(notebook_outputs):
    with NotebookView(Text("trials"), transient=True):
        pass
    assert notebook_outputs[-1]["data"] == {"text/plain": ""}
