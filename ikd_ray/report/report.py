"""The report on a sweep: why a student is good, in figures, as one page and as PNGs."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, open_analysis
from ikd_ray.errors import UnavailableError, UsageError
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.figures import attention, costs, errors, front, layers, methods, regimes, search
from ikd_ray.report.markdown import table_text
from ikd_ray.report.page import render
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage

FOLDER, PAGE = "report", "report.html"


def make_report(
    output: SharedStorage,
    folder: Path,
    texts: Sequence[str] = (),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Draw everything there is to see of a sweep into its `report/`, in place of an earlier report.

    What is not there any more, such as students that were deleted, is said in the page; the rest still comes.

    Args:
        folder: the sweep's.
        texts: the example whose attention is drawn, one text or a pair; none: one of the dev set.
        tell: called with a line before something that takes its time.

    Returns:
        The files; the page is the first.

    Raises:
        UsageError: no sweep there, no finished trial, texts that are no example of the task, or the folder
            cannot be written.
    """
    subject = open_analysis(folder)
    attention.check_texts(subject.task, texts)
    sections = _sections(subject, ModelLoader(output, folder, subject.sweep, tell), texts)
    files = {PAGE: render(subject, sections).encode()} | _files(subject, sections)
    try:
        _write(folder / FOLDER, files)
    except OSError as error:
        raise UsageError(f"{folder / FOLDER}: cannot be written ({error.strerror or error})") from None
    return [folder / FOLDER / name for name in files]


def _files(subject: SweepAnalysis, sections: Sequence[Section]) -> dict[str, bytes]:
    """What else than the page there is: pictures, and tables for a README."""
    parts = [part for section in sections for part in section.parts]
    warning = GENERATED_WARNING if subject.sweep.data["generated"] else ""
    pictures = {f"{part.name}.png": part.png for part in parts if isinstance(part, Picture)}
    tables = [part for part in parts if isinstance(part, Table) and part.name]
    return pictures | {f"{part.name}.md": table_text(part, warning).encode() for part in tables}


def _sections(subject: SweepAnalysis, weights: ModelLoader, texts: Sequence[str]) -> list[Section]:
    compared = methods.section(subject, weights)
    made = [
        front.section(subject, weights.teacher_size()),
        *([compared] if compared else []),
        regimes.section(subject),
        layers.section(subject),
    ]
    for key, title, draw in (
        (
            "attention",
            "Attention, teacher beside student",
            lambda: attention.section(subject, weights, texts),
        ),
        ("search", "The search", lambda: search.section(subject)),
        ("errors", "Errors, shared and own", lambda: errors.section(subject, weights)),
        ("costs", "What it cost, and what sharing saved", lambda: costs.section(subject)),
    ):
        try:
            made.append(draw())
        except UnavailableError as error:
            made.append(Section(key, title, [str(error)]))
    return made


def _write(target: Path, files: dict[str, bytes]) -> None:
    """Leave the report whole or not at all; what else somebody put into its folder stays."""
    with (
        FileLock(target.parent / f".{target.name}.lock"),
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as room,
    ):
        new = Path(room) / "new"
        with store.staging_dir(new) as aside:
            for name, content in files.items():
                (aside / name).write_bytes(content)
        for path in _others(target, files):
            keep = shutil.copytree if path.is_dir() else shutil.copy2
            keep(path, new / path.name)
        store.swap_dir(new, target)


def _others(target: Path, files: dict[str, bytes]) -> list[Path]:
    """What is in the folder and no part of the report that made it, nor of the new one."""
    try:
        own = json.loads((target / store.MANIFEST).read_text()).keys()
    except (OSError, ValueError, AttributeError):
        own = ()
    known = {*own, *files, store.MANIFEST, store.VERIFIED}
    return [path for path in target.iterdir() if path.name not in known] if target.is_dir() else []
