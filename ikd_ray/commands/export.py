"""Export students of a sweep as Hugging Face folders: by default those on its Pareto front."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ikd_ray.analysis.student_selection import parse_pick, select_students
from ikd_ray.errors import UsageError
from ikd_ray.export.hf_export import ExportedStudent
from ikd_ray.formatting import GENERATED_WARNING, MISSING, clean, number
from ikd_ray.records import SweepRecord, read_sweep, read_trials, resolve_task, select_sweep
from ikd_ray.redaction import refuse_secrets
from ikd_ray.storage.remote import open_storage
from ikd_ray.sweep.deliverables import export_trials, require_onnx
from ikd_ray.sweep.sync import pull_sweeps
from ikd_ray.tasks import TASKS
from ikd_ray.terminal.command_line import expand_home, print_error, usage_errors
from ikd_ray.terminal.console import rich_console
from ikd_ray.terminal.summary_tables import comparison_lines, exported_files_table, front_table
from ikd_ray.tracking.champion import choose_champion
from ikd_ray.tracking.models import register_students
from ikd_ray.tracking.tracker import Tracker

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(context_settings={"allow_extra_args": True})  # the second word of --pick
def export(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Option(
            help=f"One of: {', '.join(TASKS)}; or a task file, or its task's name.", callback=expand_home
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The sweep; default: the newest with a student.")] = None,
    output: Annotated[
        str, typer.Option(help="Where the sweeps are: a folder, or s3://BUCKET/...", callback=expand_home)
    ] = "outputs",
    to: Annotated[
        Path, typer.Option(help="Where the students go, a folder each.", callback=expand_home)
    ] = Path("exports"),
    pick: Annotated[
        str | None,
        typer.Option(
            help="One student instead of the front: best (by the first dev or holdout objective), recommended (the "
            "smallest within a standard error of the best), smallest-within X or fastest-within X (the smallest or "
            "fastest whose metric is within X of the best trial's), or a trial's id.",
            metavar="[best|recommended|smallest-within X|fastest-within X|TRIAL-ID]",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show the students, and write nothing.")] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also onnx/model.onnx, checked against PyTorch.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Also onnx/model.onnx and onnx/model_quantized.onnx, all measured."),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(help="Also upload the one student to this repository of the hub.", metavar="REPO"),
    ] = None,
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
        writing = {"--int8": int8, "--onnx": onnx, "--force": force, "--register": register is not None}
        writing["--push-to-hub"] = push_to_hub is not None
        flag = next((name for name, given in writing.items() if given), None)
        if show and flag:
            raise UsageError(f"--list writes nothing; leave out {flag}")
        require_onnx(onnx, int8)
        if push_to_hub is not None:
            from ikd_ray.export.hub_upload import require_hub  # imported late: it takes a second

            push_to_hub = require_hub(push_to_hub)
        storage = open_storage(output)
        with storage.usage_errors():
            pull_sweeps(storage)
        folder = select_sweep(storage.folder, resolve_task(task, storage.folder), name)
        sweep = read_sweep(folder)
        trials = select_students(sweep, read_trials(folder), picked)
        title = f"{sweep.task}: {'a student' if picked else 'front'} of sweep {clean(sweep.name)}"
        if show:
            console = _console(sweep)
            console.print(title, soft_wrap=True)
            console.print(front_table(trials, sweep))
            for line in comparison_lines(trials, sweep):
                console.print(line, soft_wrap=True)
            return
        if push_to_hub is not None and len(trials) > 1:
            raise UsageError(
                f"--push-to-hub {push_to_hub}: a repository holds one student, the front has {len(trials)}; choose "
                "one with --pick"
            )
        tracker = _tracker(sweep, tracking_uri, register) if register is not None else None
        busy = Console(stderr=True).status("making ONNX models, and measuring them")
        with busy if onnx or int8 else nullcontext():
            students, problems = export_trials(
                storage, folder, trials, to, onnx=onnx, int8=int8, force=force, repository=push_to_hub
            )
        _print_students(sweep, students, title)
        for problem in problems:
            print_error(problem)
        if tracker is not None and register is not None:
            exported = [student.trial for student in students]
            champion = choose_champion(sweep, read_trials(folder))
            if picked and len(exported) == 1:
                champion = exported[0]  # the user's own choice
            registered = register_students(tracker, folder, sweep, exported, register, champion)
            for trial, version in registered.versions.items():
                typer.echo(f"{trial}: version {version} of {register}, models:/{register}/{version}")
            if registered.champion:
                typer.echo(f"champion: version {registered.champion}, models:/{register}@champion")
        if push_to_hub is not None:
            not_pushed = _push(students, push_to_hub)
            for problem in not_pushed:
                print_error(problem)
            problems += not_pushed
    if problems:
        raise typer.Exit(1)


def _tracker(sweep: SweepRecord, tracking_uri: str | None, name: str) -> Tracker:
    """Open the MLflow store that has the registry of model `name`."""
    if not name.strip() or set(name) & set("/:'"):
        raise UsageError(f"--register {name!r}: give a name without '/', ':' and quotes")
    from ikd_ray.sweep.request import tracking_uri_of  # imported late: it takes seconds

    return Tracker(tracking_uri_of(sweep, tracking_uri, "--name"), sweep.task)


def _push(students: list[ExportedStudent], repository: str) -> list[str]:
    """Upload the exported student to the hub; return the problem, if there is one."""
    from ikd_ray.export.hub_upload import PushError, push_student  # imported late: it takes a second

    try:
        for student in students:
            typer.echo(f"pushed to {push_student(student.folder, repository)}")
    except PushError as error:
        return [str(error)]
    return []


def _console(sweep: SweepRecord) -> Console:
    """Return a console on which the warning about generated data stands, if there is one."""
    console = rich_console()
    if sweep.data["generated"]:
        console.print(f" {GENERATED_WARNING} ", style="bold white on red")
    return console


def _print_students(sweep: SweepRecord, students: list[ExportedStudent], title: str) -> None:
    """Print the exported folders, their objectives and files, and how to load one."""
    console = _console(sweep)
    if not students:
        return
    table = Table(title=title, title_justify="left")
    table.add_column("folder", overflow="fold")
    for metric in sweep.objectives:
        table.add_column(metric, justify="right")
    for student in students:
        metrics = student.trial.metrics
        values = (number(metrics[metric]) if metric in metrics else MISSING for metric in sweep.objectives)
        table.add_row(str(student.folder), *values)
    console.print(table)
    files = [(student.trial.id, student.files) for student in students if student.files]
    if files:
        console.print(exported_files_table(files))
    typer.echo(f"Load one:\n\n{students[-1].usage}")
