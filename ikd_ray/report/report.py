"""The report on a sweep: figures and tables as one HTML page, PNG files, and Markdown files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock

from ikd_ray.analysis.attention_maps import validate_texts
from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.sweep_analysis import SweepAnalysis, open_analysis
from ikd_ray.errors import UnavailableError, UsageError
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.report.components import Picture, Section, Table
from ikd_ray.report.page import render
from ikd_ray.report.sections.attention import attention_section
from ikd_ray.report.sections.classes import TITLE as CLASSES_TITLE
from ikd_ray.report.sections.classes import classes_section
from ikd_ray.report.sections.costs import costs_section
from ikd_ray.report.sections.errors import errors_section
from ikd_ray.report.sections.front import front_section, verdict_section
from ikd_ray.report.sections.layers import layers_section
from ikd_ray.report.sections.learning_curves import learning_curves_section
from ikd_ray.report.sections.methods import methods_section
from ikd_ray.report.sections.mistakes import TITLE as MISTAKES_TITLE
from ikd_ray.report.sections.mistakes import mistakes_section
from ikd_ray.report.sections.regimes import regimes_section
from ikd_ray.report.sections.search_results import search_section
from ikd_ray.report.sections.trials import trials_section
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage

FOLDER, PAGE = "report", "report.html"


def make_report(
    output: SharedStorage,
    folder: Path,
    texts: Sequence[str] = (),
    notify: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write a sweep's report into its folder `report/`, in place of an earlier one; return the files, the page first.

    The page has texts of the dev set in it, and says how many. It names what is missing, such as deleted students;
    everything else is drawn. `texts` is the example whose attention is drawn, one text or a pair; if empty, one of the
    dev set. `notify` is called with a line of text before something that takes a while.

    Raises:
        UsageError: there is no sweep or no finished trial, the texts are not an example of the task, or the folder
            cannot be written.
    """
    analysis = open_analysis(folder)
    validate_texts(analysis.task, texts)
    with _as_usage_error(folder / FOLDER):
        store.check_writable(folder)
    loader = ModelLoader(output, folder, analysis.sweep, notify)
    analysis = analysis.with_teacher_sizes(loader.teacher_size())
    sections = _sections(analysis, loader, texts, output.path)
    files = {PAGE: render(analysis, sections).encode()} | _part_files(analysis, sections)
    with _as_usage_error(folder / FOLDER):
        _write(folder / FOLDER, files)
    return [folder / FOLDER / name for name in files]


@contextmanager
def _as_usage_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error})") from None


def _sections(
    analysis: SweepAnalysis, loader: ModelLoader, texts: Sequence[str], output: str
) -> list[Section]:
    methods = methods_section(analysis, loader)
    return [
        verdict_section(analysis, output),
        front_section(analysis),
        *([methods] if methods else []),
        trials_section(analysis),
        _section_or_reason("curves", "Learning curves", partial(learning_curves_section, analysis)),
        _section_or_reason("classes", CLASSES_TITLE, partial(classes_section, analysis, loader)),
        _section_or_reason("mistakes", MISTAKES_TITLE, partial(mistakes_section, analysis, loader)),
        _section_or_reason("errors", "Errors, shared and own", partial(errors_section, analysis, loader)),
        layers_section(analysis),
        regimes_section(analysis),
        search_section(analysis),
        costs_section(analysis),
        _section_or_reason(
            "attention",
            "Attention, teacher beside student",
            partial(attention_section, analysis, loader, texts),
        ),
    ]


def _section_or_reason(key: str, title: str, make: Callable[[], Section]) -> Section:
    """Return the section, or one that says why it cannot be drawn."""
    try:
        return make()
    except UnavailableError as error:
        return Section(key, title, [str(error)])


def _part_files(analysis: SweepAnalysis, sections: Sequence[Section]) -> dict[str, bytes]:
    """Return the content of the PNG and Markdown files by name."""
    warning = GENERATED_WARNING if analysis.sweep.data["generated"] else ""
    parts = [part for section in sections for part in section.all_parts]
    pictures = {f"{part.name}.png": part.png for part in parts if isinstance(part, Picture)}
    tables = [part for part in parts if isinstance(part, Table) and part.name]
    return pictures | {f"{part.name}.md": part.markdown(warning).encode() for part in tables}


def _write(target: Path, files: dict[str, bytes]) -> None:
    """Replace the report as a whole, and keep the files in its folder that no report wrote."""
    with (
        FileLock(target.parent / f".{target.name}.lock"),
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as workdir,
    ):
        new = Path(workdir) / "new"
        with store.staging_dir(new) as staging:
            for name, content in files.items():
                (staging / name).write_bytes(content)
        for path in _foreign_files(target, files):
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, new / path.name)
        store.swap_dir(new, target)


def _foreign_files(target: Path, files: dict[str, bytes]) -> list[Path]:
    """Return what is in the folder and belongs neither to the report that wrote it nor to the new one."""
    try:
        own = json.loads((target / store.MANIFEST).read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError):
        own = ()
    known = {*own, *files, store.MANIFEST, store.VERIFIED}
    return [path for path in target.iterdir() if path.name not in known] if target.is_dir() else []
