"""What sweeps share in their output folder's cache: see what it holds, and clear its saved epochs away."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from ikd_ray.storage.remote import open_output
from ikd_ray.terminal.command_line import print_error, run, usage_errors

Output = Annotated[str, typer.Option(help="Where the sweeps are, and the cache with them.")]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command("list")
def show(output: Output = "outputs") -> None:
    """Show what the cache holds: how much of each kind, and of which stages epochs are saved."""
    from ikd_ray.terminal import cache_tables  # imported late: it takes seconds

    console = Console(markup=False, highlight=False, emoji=False)
    with usage_errors():
        folder = cache_tables.open_cache(open_output(output).folder)
        kinds, stages = cache_tables.kinds(folder), cache_tables.saved_stages(folder)
    console.print(cache_tables.kinds_table(kinds))
    typer.echo()
    if not stages:
        typer.echo("No saved epochs of stages.")
    else:
        console.print(cache_tables.stages_table(stages))
        if hidden := stages[cache_tables.SHOWN :]:
            size = cache_tables.size_text(sum(stage.bytes for stage in hidden))
            typer.echo(f"… and {len(hidden)} more, {size}")
    typer.echo()
    typer.echo("Nothing here is lost for good: what is deleted is made again when a sweep needs it.")
    typer.echo(
        "Saved epochs go with `sweeps/cache.py clear`; other folders may be deleted while no sweep runs."
    )


@app.command()
def clear(output: Output = "outputs") -> None:
    """Remove the saved epochs of stages, except what running trials stand on."""
    from ikd_ray.terminal import cache_tables  # imported late: it takes seconds

    with usage_errors():
        place = open_output(output)
        if place.uri:
            with place.reachable():
                place.clear(place.folder / "cache" / cache_tables.STAGES)
            (place.folder / "cache").mkdir(parents=True, exist_ok=True)
        folder = cache_tables.open_cache(place.folder)
        found = cache_tables.clear(folder)
    if not (found.gone or found.in_use or found.stuck):
        typer.echo("Nothing to remove: no saved epochs of stages.")
    if found.gone:
        typer.echo(
            f"Removed: {cache_tables.counted(found.gone)}. They are trained again when a trial needs them."
        )
    if found.in_use:
        typer.echo(f"Kept: {cache_tables.counted(found.in_use)}. Running trials stand on them.")
    if found.stuck:
        print_error(
            f"{folder / cache_tables.STAGES}: no permission to remove {cache_tables.counted(found.stuck)}"
        )
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
