"""Export students of a sweep as Hugging Face folders: by default those on its Pareto front."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ikd_ray.analysis.evaluation_data import load_evaluation_data
from ikd_ray.analysis.pick import Pick, parse_pick, select_students
from ikd_ray.errors import UsageError
from ikd_ray.export.students import (
    Convert,
    Exported,
    export_students,
)
from ikd_ray.extras import require
from ikd_ray.formatting import GENERATED_WARNING, MISSING, clean
from ikd_ray.records import (
    SweepRecord,
    TrialRecord,
    read_sweep,
    read_trials,
    resolve_task,
    select_sweep,
    teacher_folder,
)
from ikd_ray.redaction import refuse_secrets
from ikd_ray.storage.remote import open_storage
from ikd_ray.sweep.sync import pull_students, pull_sweeps
from ikd_ray.tasks import TASKS
from ikd_ray.terminal.command_line import print_error, run, usage_errors
from ikd_ray.terminal.summary_tables import exported_files_table, front_table
from ikd_ray.tracking import publish
from ikd_ray.tracking.tracker import Tracker

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True})  # for --pick's second word
def export(
    context: typer.Context,
    task: Annotated[
        str, typer.Option(help=f"One of: {', '.join(TASKS)}; or a task file, or its task's name.")
    ],
    name: Annotated[str | None, typer.Option(help="The sweep; default: the newest with a student.")] = None,
    output: Annotated[
        str, typer.Option(help="Where the sweeps are: a folder, or s3://BUCKET/...")
    ] = "outputs",
    to: Annotated[Path, typer.Option(help="Where the students go, a folder each.")] = Path("exports"),
    pick: Annotated[
        str | None,
        typer.Option(
            help="One student instead of the front: best (by the first dev or holdout objective), smallest-within X "
            "(the smallest whose metric is within X of the best trial's), or a trial's id.",
            metavar="[best|smallest-within X|TRIAL-ID]",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the students, and write nothing.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also model.onnx, checked against PyTorch.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also model.onnx and model.int8.onnx, all measured.")
    ] = False,
    register: Annotated[
        str | None,
        typer.Option(help="Also make each a version of this model in MLflow's registry.", metavar="NAME"),
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store, for --register. Default: the sweep's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace folders that exist.")] = False,
) -> None:
    """Export students of a sweep as Hugging Face folders: by default those on its Pareto front."""
    with usage_errors():
        refuse_secrets("--tracking-uri", tracking_uri)
        if context.args and pick is None:
            raise UsageError(f"{context.args[0]!r}: no argument is expected there; flags begin with --")
        picked = parse_pick([pick, *context.args]) if pick is not None else None
        flags = {"--int8": int8, "--onnx": onnx, "--force": force, "--register": register is not None}
        flag = next((name for name, given in flags.items() if given), None)
        if show and flag:
            raise UsageError(f"--list writes nothing; leave out {flag}")
        if onnx or int8:
            assert flag is not None
            require(flag, "onnx", ("onnx", "onnxscript", "onnxruntime"))
        place = open_storage(output)
        with place.usage_errors():
            pull_sweeps(place)
        folder = select_sweep(place.folder, resolve_task(task, place.folder), name)
        sweep = read_sweep(folder)
        students = select_students(sweep, read_trials(folder), picked)
        if show:
            _list(sweep, students, picked)
            return
        with place.usage_errors():
            pull_students(place, folder, students, tokens=onnx or int8)
        store = _store(sweep, tracking_uri, register) if register is not None else None
        made = _export(folder, sweep, students, to, force, int8 if onnx or int8 else None)
        whole = [student for student in made if student.folder is not None]
        _show(sweep, whole, picked)
        if store is not None and register is not None:
            versions = publish.register(store, folder, sweep, [student.trial for student in whole], register)
            for trial, version in versions.items():
                typer.echo(f"{trial}: version {version} of {register}")
    skipped = [student.problem for student in made if student.folder is None]
    for problem in skipped:
        print_error(problem)
    if skipped:
        raise typer.Exit(1)


def _export(
    folder: Path, sweep: SweepRecord, students: list[TrialRecord], to: Path, force: bool, int8: bool | None
) -> list[Exported]:
    """`int8`: none: no ONNX models at all."""
    if int8 is None:
        return export_students(folder, to, students, force=force)
    moving = Console(stderr=True).status("making ONNX models, and measuring them")
    with tempfile.TemporaryDirectory() as room, moving:
        converter = partial(_converter, folder, sweep, int8, Path(room))
        return export_students(folder, to, students, force=force, converter=converter)


def _store(sweep: SweepRecord, tracking_uri: str | None, name: str) -> Tracker:
    if not name.strip() or set(name) & set("/:'"):
        raise UsageError(f"--register {name!r}: give a name without '/', ':' and quotes")
    from ikd_ray.sweep.request import tracking_uri_of  # imported late: it takes seconds

    return Tracker(tracking_uri_of(sweep, tracking_uri, "--name"), sweep.task)


def _converter(folder: Path, sweep: SweepRecord, int8: bool, room: Path) -> Convert:
    from ikd_ray.export.onnx_export import OnnxExport  # imported late: it takes seconds

    return OnnxExport(load_evaluation_data(folder.parent, sweep, teacher_folder(folder, sweep), room), int8)


def _console(sweep: SweepRecord) -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if sweep.data["generated"]:
        console.print(f" {GENERATED_WARNING} ", style="bold white on red")
    return console


def _title(sweep: SweepRecord, picked: Pick | None) -> str:
    return f"{sweep.task}: {'a student' if picked else 'front'} of sweep {clean(sweep.name)}"


def _list(sweep: SweepRecord, students: list[TrialRecord], picked: Pick | None) -> None:
    console = _console(sweep)
    console.print(_title(sweep, picked), soft_wrap=True)
    console.print(front_table(students, sweep.objectives, sweep.teacher["metrics"]))


def _show(sweep: SweepRecord, students: list[Exported], picked: Pick | None) -> None:
    console = _console(sweep)
    if not students:
        return
    table = Table(title=_title(sweep, picked), title_justify="left")
    table.add_column("folder", overflow="fold")
    for metric in sweep.objectives:
        table.add_column(metric, justify="right")
    for student in students:
        metrics = student.trial.metrics
        values = (f"{metrics[metric]:,.6g}" if metric in metrics else MISSING for metric in sweep.objectives)
        table.add_row(str(student.folder), *values)
    console.print(table)
    if any(student.forms for student in students):
        console.print(exported_files_table([(made.trial.id, made.forms) for made in students if made.forms]))
    folder = str(students[-1].folder)
    typer.echo("Load one:")
    typer.echo(f"from transformers import pipeline; classify = pipeline('text-classification', {folder!r})")


if __name__ == "__main__":
    run(app)
