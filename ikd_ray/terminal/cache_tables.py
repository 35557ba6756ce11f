"""Tables of the cache that sweeps share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ikd_ray.distill.cache_contents import KindSummary, StageSummary, epoch_of, total_bytes
from ikd_ray.formatting import MISSING, clean, short_stage
from ikd_ray.storage.eviction import CacheEntry

STAGES_SHOWN = 30
STAGE_WIDTH = 16  # characters of a stage's name
RIGHT_ALIGNED = ("entries", "layers", "rate", "seed", "size")


def kinds_table(kinds: Sequence[KindSummary]) -> Table:
    """Return a table with a row for each kind."""
    table = _empty_table("kind", "entries", "size", "last used")
    table.add_column("folder", overflow="fold")
    for kind in kinds:
        used = MISSING if kind.last_used is None else _format_time(kind.last_used)
        folder = Text(clean(kind.folder))
        table.add_row(kind.folder.name, str(kind.entries), decimal(kind.bytes), used, folder)
    return table


def stages_table(stages: Sequence[StageSummary]) -> Table:
    """Return a table with a row for each of the first `STAGES_SHOWN` stages."""
    table = _empty_table("task", "regime", "stage", "layers", "init", "rate", "seed")
    for name in ("epochs", "size", "last used", "in use"):
        table.add_column(name, justify=_justify(name), no_wrap=True)
    fields = ("task", "regime", "stage", "student_layers", "student_init", "learning_rate", "seed")
    for stage in stages[:STAGES_SHOWN]:
        cells = [_field(stage.about, name) for name in fields]
        cells += [format_ranges(stage.epochs) or MISSING, decimal(stage.bytes)]
        cells += [_format_time(stage.last_used)[:10], {True: "yes", False: "no", None: "?"}[stage.in_use]]
        table.add_row(*map(Text, cells))
    return table


def _empty_table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify=_justify(name))
    return table


def _justify(column: str) -> Any:
    return "right" if column in RIGHT_ALIGNED else "left"


def _field(about: dict[str, Any], name: str) -> str:
    value = about.get(name, MISSING)
    return short_stage(f"{value:g}" if isinstance(value, float) else clean(value), STAGE_WIDTH)


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def format_ranges(numbers: Sequence[int]) -> str:
    """Abbreviate ascending whole numbers: `1-3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def format_count(saved: Sequence[CacheEntry]) -> str:
    """Describe saved epochs: `3 epochs of 1 stage, 4.5 MB`."""
    epochs, stages = sum(epoch_of(state) > 0 for state in saved), len({state.key for state in saved})
    number = f"{epochs} epoch{'' if epochs == 1 else 's'} of {stages} stage{'' if stages == 1 else 's'}"
    return f"{number}, {decimal(total_bytes(saved))}"
