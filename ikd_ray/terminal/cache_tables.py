"""What the cache that sweeps share holds, and how its saved epochs are cleared away."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ikd_ray.distill.epoch_cache import EPOCH_FILE
from ikd_ray.errors import UsageError
from ikd_ray.formatting import NONE, clean, short_stage
from ikd_ray.storage.eviction import State, make_room, seen_in_use, states

STAGES = "stages"
KINDS = ("tokens", "teachers", "targets", "latency", STAGES)
SHOWN = 30  # stages in the table
NAME = 16  # characters of a stage's name


@dataclass(frozen=True)
class Kind:
    """All that the cache holds of one kind."""

    folder: Path
    entries: int
    bytes: int
    used: float | None  # seconds since 1970; none: there is nothing


@dataclass(frozen=True)
class SavedStage:
    """The saved epochs of one stage."""

    about: dict[str, Any]  # what its earliest readable card says: task, regime, ...
    epochs: list[int]
    bytes: int
    used: float  # seconds since 1970
    in_use: bool | None  # none: it cannot be told


@dataclass(frozen=True)
class Cleared:
    """What became of the saved epochs."""

    gone: list[State]
    in_use: list[State]  # running trials stand on them
    stuck: list[State]  # the file system does not let them go


def open_cache(output: Path) -> Path:
    """The cache in an output folder.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    cache = output / "cache"
    try:
        os.listdir(cache)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--output {output}: no cache there; sweeps/run.py makes one") from None
    except OSError as error:
        raise UsageError(f"--output {output}: its cache cannot be read ({error.strerror})") from None
    return cache


def kinds(cache: Path) -> list[Kind]:
    """Everything in the cache, by kind. Writes nothing.

    Raises:
        UsageError: a folder cannot be read.
    """
    return [_kind(cache / name) for name in KINDS]


def _kind(folder: Path) -> Kind:
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from None
    if folder.name == STAGES:  # what is half saved or going is none of it
        there = states(folder)
        used = max((state.used for state in there), default=None)
        return Kind(folder, len({state.key for state in there}), _sum(there), used)
    found = list(_files(entries))
    used = max((max(file.st_atime, file.st_mtime) for file in found), default=None)
    return Kind(folder, len(entries), sum(file.st_size for file in found), used)


def _files(entries: Iterable[Path]) -> Iterator[os.stat_result]:
    for entry in entries:
        for path in [entry] if entry.is_file() else entry.rglob("*"):
            with suppress(OSError):  # it went meanwhile
                if path.is_file():
                    yield path.stat()


def saved_stages(cache: Path) -> list[SavedStage]:
    """The stages that epochs are saved of, the most recently used first. Writes nothing."""
    folder = cache / STAGES
    try:
        used = seen_in_use(folder)
    except OSError:
        used = None
    found = []
    for key, group in groupby(sorted(states(folder), key=_place), key=lambda state: state.key):
        there = list(group)
        about = next(filter(None, (_about(state.folder) for state in there)), {})
        epochs = [_epoch(state) for state in there if _epoch(state)]
        last = max(state.used for state in there)
        found.append(SavedStage(about, epochs, _sum(there), last, None if used is None else key in used))
    return sorted(found, key=lambda stage: stage.used, reverse=True)


def _place(state: State) -> tuple[str, int]:
    return state.key, _epoch(state)


def _epoch(state: State) -> int:
    name = state.folder.name
    return int(name) if name.isdecimal() else 0  # what is saved beside them


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / EPOCH_FILE).read_text())["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


def clear(cache: Path) -> Cleared:
    """Remove the saved epochs that no running trial stands on.

    Raises:
        UsageError: the folder cannot be written to.
    """
    folder = cache / STAGES
    if not folder.is_dir():
        return Cleared([], [], [])
    try:
        used = seen_in_use(folder)
        gone = make_room(folder, 0)
        used |= seen_in_use(folder)  # a trial may have begun
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to ({error.strerror or error})") from None
    left = states(folder)
    return Cleared(gone, [s for s in left if s.key in used], [s for s in left if s.key not in used])


def kinds_table(found: Sequence[Kind]) -> Table:
    """A row for each kind."""
    table = _table()
    table.add_column("kind")
    for name in ("entries", "size"):
        table.add_column(name, justify="right")
    table.add_column("last used")
    table.add_column("folder", overflow="fold")
    for kind in found:
        used = NONE if kind.used is None else _moment(kind.used)
        folder = Text(clean(kind.folder))
        table.add_row(kind.folder.name, str(kind.entries), size_text(kind.bytes), used, folder)
    return table


def stages_table(stages: Sequence[SavedStage]) -> Table:
    """A row for each of the first stages."""
    table = _table()
    numbers = ("layers", "rate", "seed", "size")
    for name in ("task", "regime", "stage", "layers", "init", "rate", "seed"):
        table.add_column(name, justify="right" if name in numbers else "left")
    for name in ("epochs", "size", "last used", "in use"):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for stage in stages[:SHOWN]:
        facts = [_fact(stage.about, name) for name in ("task", "regime", "stage", "student_layers")]
        facts += [_fact(stage.about, name) for name in ("student_init", "learning_rate", "seed")]
        in_use = {True: "yes", False: "no", None: "?"}[stage.in_use]
        cells = [
            *facts,
            ranges(stage.epochs) or NONE,
            size_text(stage.bytes),
            _moment(stage.used)[:10],
            in_use,
        ]
        table.add_row(*map(Text, cells))
    return table


def _table() -> Table:
    return Table(box=None, padding=(0, 1, 0, 0), header_style="bold")


def _fact(about: dict[str, Any], name: str) -> str:
    value = about.get(name, NONE)
    text = f"{value:g}" if isinstance(value, float) else clean(value)
    return short_stage(text, NAME)


def _sum(found: Iterable[State]) -> int:
    return sum(state.bytes for state in found)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers in short: `1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def size_text(count: int) -> str:
    """Bytes in words: `12 B`, `3.4 kB`, `5.6 MB`."""
    if count < 1000:
        return f"{count} B"
    size, units = count / 1000, iter(("kB", "MB", "GB"))
    unit = next(units)
    while size >= 999.95 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{size:,.1f} {unit}"


def counted(found: Sequence[State]) -> str:
    """How much it is: `3 epochs of 1 stage, 4.5 MB`."""
    epochs, stages = sum(_epoch(state) > 0 for state in found), len({state.key for state in found})
    number = f"{epochs} epoch{'' if epochs == 1 else 's'} of {stages} stage{'' if stages == 1 else 's'}"
    return f"{number}, {size_text(_sum(found))}"
