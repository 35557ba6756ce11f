"""What became of a sweep: check that its records, its study, MLflow and its tables tell one story."""

from __future__ import annotations

from typing import Annotated

import typer

from ikd_ray.data.remote import open_output
from ikd_ray.report.cli import print_error, run, script, usage_errors
from ikd_ray.report.mirror import Mirror
from ikd_ray.report.passwords import given_in_full, hide_command_line

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def report(
    check: Annotated[str, typer.Option(help="Name of the sweep to check; what can be derived is mended.")],
    output: Annotated[
        str, typer.Option(help="Where the sweeps are: a folder, or s3://BUCKET/...")
    ] = "outputs",
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow store. Default: the one that the sweep was given.")
    ] = None,
) -> None:
    with usage_errors():
        from ikd_ray.sweep.check import check as check_sweep  # imported late: it takes seconds
        from ikd_ray.sweep.request import find_sweep

        place = open_output(output)
        folder = find_sweep(check, "--check", place)
        sweep, trials, found = check_sweep(place, folder, given_in_full(tracking_uri))
        Mirror(place, folder, print_error).push()
    for finding in found:
        state = "mended" if finding.mended else "NOT mended"
        typer.echo(f"{finding.where}: {finding.what}: {state}")
    finished = sum(trial.status == "finished" for trial in trials)
    typer.echo(
        f"{sweep.name}: {len(trials)} of {sweep.trials} trials have ended, {finished} of them finished; "
        f"{len(found)} differences"
    )
    left = [finding for finding in found if not finding.mended]
    if left or len(trials) < sweep.trials:
        typer.echo(f"go on: {script('run', f'--resume {sweep.name}', output)}")
    raise typer.Exit(1 if left else 0)


if __name__ == "__main__":
    hide_command_line("--tracking-uri")
    run(app)
