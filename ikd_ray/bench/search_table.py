"""Tables of finished trials, on which searches are replayed: their configurations, and their records as one file.

`python -m ikd_ray.bench.search_table space FILE` writes the search space of a table, `ikd run --space FILE --trials N`
trains its trials, and `python -m ikd_ray.bench.search_table pack SWEEP FILE` adds their records to the table. With
`--skip` a table can be recorded by several sweeps, also on several machines.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
import yaml

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.bench.search_replay import Row, Table, read_table, to_row, write_table
from ikd_ray.records import read_sweep, read_trials
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, find_space
from ikd_ray.search.candidates import Configuration, redraw
from ikd_ray.search.planned_work import DataSize
from ikd_ray.search.sampler import SearchSettings
from ikd_ray.search.space import Space
from ikd_ray.search.space_file import load_space

STAGED = ("pid", "sid")  # regimes with internal stages
SUFFIX = ("lambda", "temperature", "top_trains")
"""Parameters of the default space that no internal stage depends on."""
SUFFIXES = 3  # trials of each internal prefix
FAMILIES = {"kd": 2, "id": 2, "pid": 1, "sid": 1}  # of each depth in a round of draws
DIGITS = 4  # of a real number
QUIET = 0.25
"""Quantile of the seconds of like epochs that a table has: other work on the machine slows single ones."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("space")
def write_space(
    file: Annotated[Path, typer.Argument(help="Space file to write.")],
    trials: Annotated[int, typer.Option(help="Configurations.")] = 200,
    fraction: Annotated[float, typer.Option(help="Share of the training set.")] = 0.5,
    layers: Annotated[int, typer.Option(help="Layers of the teacher.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of the configurations.")] = 0,
    skip: Annotated[int, typer.Option(help="Leave out so many configurations, from the first.")] = 0,
) -> None:
    """Write a space whose `start` names random configurations of the default space.

    Every internal prefix comes with several suffixes, one after the other, so that replays can share epochs.
    """
    given = yaml.safe_load(find_space(DEFAULT_SPACE).read_text(encoding="utf-8"))
    rows = draw_rows(load_space(find_space(DEFAULT_SPACE), layers), trials, seed)[skip:]
    given["params"] |= {"train_fraction": fraction}
    given |= {"selection": "holdout", "start": rows}
    file.write_text(
        yaml.safe_dump(given, sort_keys=False, default_flow_style=None, width=200), encoding="utf-8"
    )


@app.command("pack")
def pack_table(
    sweep: Annotated[Path, typer.Argument(help="Folder of the sweep that trained the configurations.")],
    file: Annotated[Path, typer.Argument(help="The table, NAME.json.gz; made if there is none.")],
) -> None:
    """Add the finished trials of a sweep to a table, but for configurations that the table has.

    Epochs of equal planned cost get equal seconds, the lower quartile of what they took.
    """
    record, trials = read_sweep(sweep), read_trials(sweep)
    metric = main_metric(record.objectives)
    rows = read_table(file).rows if file.exists() else []
    known = [row.params for row in rows]
    packed = [to_row(trial, metric) for trial in trials if trial.status == "finished"]
    rows += [row for row in packed if row.params not in known]
    size = SearchSettings.of(record).size
    write_table(file, Table(record.task, size, quiet_rows(rows, size)))
    typer.echo(f"{file}: {len(rows)} trials, {read_table(file).total_s:.0f} s on one worker")


def draw_rows(space: Space, trials: int, seed: int) -> list[Configuration]:
    """Draw configurations: as many of each depth and nearly as many of each regime, in random order.

    Those of one internal prefix follow each other.
    """
    rng = np.random.default_rng(seed)
    families: list[list[Configuration]] = []
    while sum(map(len, families)) < trials:
        for depth in space.possible_values("student_layers"):
            for regime, count in FAMILIES.items():
                given = {"regime": regime, "student_layers": depth}
                families += [_draw_family(space, given, rng) for _ in range(count)]
    shuffled = [row for index in rng.permutation(len(families)) for row in families[index]]
    return shuffled[:trials]


def quiet_rows(rows: list[Row], size: DataSize) -> list[Row]:
    """Return the rows, with seconds that are the lower quartile of epochs of the same regime, depth, stage and cost."""
    frame = pd.DataFrame(
        [
            (number, row.trial.regime, row.size, stage, epoch.cost, seconds)
            for number, row in enumerate(rows)
            for stage, epoch, seconds in row.planned_epochs(size)
        ],
        columns=["row", "regime", "size", "stage", "cost", "seconds"],
    )
    like = frame.groupby(["regime", "size", "stage", "cost"])["seconds"]
    frame["quiet"] = like.transform("quantile", QUIET).round(3)
    quiet = frame.groupby("row")["quiet"].agg(list)
    return [replace(row, seconds=quiet[number]) for number, row in enumerate(rows)]


def _draw_family(space: Space, given: Configuration, rng: np.random.Generator) -> list[Configuration]:
    first = _rounded(redraw(space, given, (), rng))
    others = SUFFIXES - 1 if first["regime"] in STAGED else 0
    return [first, *(_rounded(redraw(space, first, SUFFIX, rng)) for _ in range(others))]


def _rounded(row: Configuration) -> dict[str, Any]:
    return {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, value in row.items()
    }


if __name__ == "__main__":
    app()
