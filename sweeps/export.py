"""Export the Pareto-optimal students of a sweep as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ikd_ray.data.remote import open_output
from ikd_ray.report.cli import print_error, run, usage_errors
from ikd_ray.report.export import Exported, choose_sweep, export_front
from ikd_ray.report.mirror import pull_all, pull_front
from ikd_ray.report.pareto import GENERATED
from ikd_ray.report.records import SweepRecord, asked_task, read_sweep
from ikd_ray.tasks import TASKS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    task: Annotated[
        str, typer.Option(help=f"One of: {', '.join(TASKS)}; or a task file, or its task's name.")
    ],
    name: Annotated[str | None, typer.Option(help="The sweep; default: the newest with a student.")] = None,
    output: Annotated[
        str, typer.Option(help="Where the sweeps are: a folder, or s3://BUCKET/...")
    ] = "outputs",
    to: Annotated[Path, typer.Option(help="Where the students go, a folder each.")] = Path("exports"),
    force: Annotated[bool, typer.Option("--force", help="Replace folders that exist.")] = False,
) -> None:
    """Export the students on a sweep's Pareto front as Hugging Face folders."""
    with usage_errors():
        place = open_output(output)
        with place.reachable():
            pull_all(place)
        folder = choose_sweep(place.folder, asked_task(task, place.folder), name)
        with place.reachable():
            pull_front(place, folder)
        made = export_front(folder, to, force=force)
        _show(read_sweep(folder), [student for student in made if student.folder is not None])
    skipped = [student.problem for student in made if student.folder is None]
    for problem in skipped:
        print_error(problem)
    if skipped:
        raise typer.Exit(1)


def _show(sweep: SweepRecord, students: list[Exported]) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    if sweep.data["generated"]:
        console.print(f" {GENERATED} ", style="bold white on red")
    if not students:
        return
    table = Table(title=f"{sweep.task}: front of sweep {sweep.name}", title_justify="left")
    table.add_column("folder", overflow="fold")
    for metric in sweep.objectives:
        table.add_column(metric, justify="right")
    for student in students:
        values = (f"{student.trial.metrics[metric]:,.6g}" for metric in sweep.objectives)
        table.add_row(str(student.folder), *values)
    console.print(table)
    folder = str(students[-1].folder)
    typer.echo("Load one:")
    typer.echo(f"from transformers import pipeline; classify = pipeline('text-classification', {folder!r})")


if __name__ == "__main__":
    run(app)
