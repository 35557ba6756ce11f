"""The notebook in `sweeps/`, and what its user sees: each cell is run by a real kernel."""

from __future__ import annotations

import json
import queue
import time
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "sweeps" / "notebook.ipynb"
MAX_LINES = 60
"""Printed lines of a cell, besides what is drawn in its place."""
IMPORT = "import ikd_ray"
SWEEP = """
space = {{"params": {{"student_layers": 2, "epochs": {{"choice": [300, 301]}}}}, "teacher": {{"epochs": 1}}}}
ikd_ray.sweep("cola", data_dir={glue!r}, teacher={teacher!r}, name="cut", trials=2, space=space)
"""
RESUME = """
sweep = ikd_ray.open_sweep("cut")
import signal
print(signal.getsignal(signal.SIGINT), len(sweep.trials))
"""


def test_the_notebook_has_no_outputs():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs_and_reads_well(tmp_path, monkeypatch):
    """Every cell, on the bundled teacher; about two minutes."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    try:
        client.execute()
    finally:
        nbformat.write(notebook, tmp_path / "executed.ipynb")
    assert len(list(tmp_path.glob("exports/reviews-*/model.safetensors"))) >= 1
    assert list(tmp_path.glob("outputs/*/report/report.html"))
    assert (tmp_path / "student" / "model.safetensors").is_file()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for output in (output for cell in outputs for output in cell):
        texts = [output.text] if output.output_type == "stream" else list(map(str, output.data.values()))
        assert not any({"\x1b", "\r"} & {*text} for text in texts)
    for cell in outputs:
        streams = [output for output in cell if output.output_type == "stream"]
        assert {output.name for output in streams} <= {"stdout"}, streams
        assert sum(len(output.text.splitlines()) for output in streams) <= MAX_LINES
    swept, front = outputs[1], outputs[2]
    assert "Pareto front" in "".join(output.get("text", "") for output in swept)
    assert "text/html" in front[0].data
    assert "macro_f1" in front[0].data["text/html"]


@pytest.mark.slow
def test_the_interrupt_of_a_kernel_leaves_a_sweep_that_goes_on(inputs, tmp_path, monkeypatch):
    """Jupyter's button sends SIGINT to the kernel's whole process group; the kernel itself must stay."""
    manager = pytest.importorskip("jupyter_client.manager")
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    kernel, client = manager.start_new_kernel(cwd=str(tmp_path))
    try:
        assert run_cell(client, IMPORT) == ("ok", "")
        code = SWEEP.format(glue=str(inputs / "glue"), teacher=str(inputs / "teacher"))
        client.execute(code)
        stages = tmp_path / "outputs" / "cache" / "stages"
        wait_until(lambda: list(stages.glob("*/2/epoch.json")))
        kernel.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)["content"]
        assert reply["status"] == "error"
        assert (reply["ename"], reply["evalue"]) == (
            "KeyboardInterrupt",
            "go on: ikd_ray.sweep(resume='cut')",
        )
        drain(client)
        status, printed = run_cell(client, RESUME)
        assert status == "ok"
        assert printed.endswith(" 0\n")
        assert "ikd_ray" not in printed, "the handler is the kernel's own"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def run_cell(client, code: str) -> tuple[str, str]:
    """Run a cell; return its status, and what it printed to stdout."""
    printed: list[str] = []

    def keep(message) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=keep, timeout=120)
    return reply["content"]["status"], "".join(printed)


def drain(client) -> None:
    """Drop what the kernel has sent so far."""
    while True:
        try:
            client.get_iopub_msg(timeout=1)
        except queue.Empty:
            return


def wait_until(condition, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
