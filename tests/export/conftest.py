from __future__ import annotations

import pytest


@pytest.fixture
def export(call, tmp_path):
    """`export(output, "--force")`: the result of `ikd export` for CoLA, writing to `tmp_path / to`."""

    def run(output, *flags, to="exports", status=0):
        arguments = ("--task", "cola", "--output", output, "--to", tmp_path / to)
        return call("export", *arguments, *flags, cwd=tmp_path, status=status)

    return run
