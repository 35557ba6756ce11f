"""Export of a sweep's students, and its report, as the commands and the Python interface share them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ikd_ray.analysis.evaluation_data import load_evaluation_data
from ikd_ray.export.hf_export import Convert, ExportedStudent, export_students
from ikd_ray.records import SweepRecord, TrialRecord, read_sweep, teacher_folder
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.sync import pull_students
from ikd_ray.terminal.command_line import requires_backends
from ikd_ray.tracking.tracker import log_report


def require_onnx(onnx: bool, int8: bool) -> None:
    """Check that the packages are there that ONNX models need, if any are asked for.

    Raises:
        UsageError: A package is missing.
    """
    if onnx or int8:
        requires_backends("--int8" if int8 else "--onnx", "onnx", ("onnx", "onnxscript", "onnxruntime"))


def export_trials(
    storage: SharedStorage,
    folder: Path,
    trials: Sequence[TrialRecord],
    to: Path,
    *,
    onnx: bool = False,
    int8: bool = False,
    force: bool = False,
    repository: str | None = None,
) -> tuple[list[ExportedStudent], list[str]]:
    """Export students of the sweep in a folder, fetching first what this machine lacks; see `export_students`.

    With `onnx` or `int8` each folder has ONNX models, too; `repository` is that of the hub that the card is for.
    """
    with storage.usage_errors():
        pull_students(storage, folder, trials, tokens=onnx or int8)
    export_to = partial(export_students, folder, to, trials, force=force, repository=repository)
    if not (onnx or int8):
        return export_to()
    with tempfile.TemporaryDirectory() as temporary:
        make_convert = partial(_onnx_converter, folder, read_sweep(folder), int8, Path(temporary))
        return export_to(make_convert=make_convert)


def _onnx_converter(folder: Path, sweep: SweepRecord, int8: bool, temporary: Path) -> Convert:
    """Return the conversion to ONNX, after loading the data that its models are measured on."""
    from ikd_ray.export.onnx_export import export_onnx  # imported late: it takes seconds

    data = load_evaluation_data(folder.parent, sweep, teacher_folder(folder, sweep), temporary)
    return partial(export_onnx, data=data, int8=int8, max_length=sweep.data["max_length"])


def draw_report(
    storage: SharedStorage,
    folder: Path,
    texts: Sequence[str],
    tracking_uri: str | None,
    notify: Callable[[str], None],
) -> tuple[list[Path], str]:
    """Draw the report of the sweep in a folder, and log it to MLflow where that is possible; see `make_report`.

    Returns:
        The report's files, the page first, and the reason why it is not in MLflow, which is empty if it is.
    """
    from ikd_ray.report.report import make_report  # imported late: it takes seconds

    with storage.usage_errors():
        files = make_report(storage, folder, texts, notify)
        for file in files:
            storage.upload_file(file)
    return files, log_report(read_sweep(folder), files, tracking_uri)
