"""Contents of the cache that sweeps share below their output folder, and removal of its saved epochs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ikd_ray.distill.epoch_cache import EPOCH_FILE, STAGES
from ikd_ray.errors import UsageError
from ikd_ray.storage.eviction import CacheEntry, cache_entries, evict, leased_keys

KINDS = ("tokens", "teachers", "targets", "latency", STAGES)


@dataclass(frozen=True)
class KindSummary:
    """Everything of one kind in the cache."""

    folder: Path
    entries: int
    bytes: int
    last_used: float | None  # seconds since 1970; None without entries


@dataclass(frozen=True)
class StageSummary:
    """The saved epochs of one stage."""

    about: dict[str, Any]  # task, regime and so on, from the stage's first readable card
    epochs: list[int]
    bytes: int
    last_used: float  # seconds since 1970
    in_use: bool | None  # None where the leases cannot be read


@dataclass(frozen=True)
class ClearResult:
    """Outcome of `clear_stages`."""

    removed: list[CacheEntry]
    in_use: list[CacheEntry]  # used by running trials
    failed: list[CacheEntry]  # refused by the file system


def open_cache(output: Path) -> Path:
    """Return the cache in an output folder; `UsageError` where there is none, or it cannot be read."""
    cache = output / "cache"
    try:
        os.listdir(cache)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--output {output}: no cache there; a sweep makes one") from None
    except OSError as error:
        raise UsageError(f"--output {output}: its cache cannot be read ({error.strerror})") from None
    return cache


def summarize_kinds(cache: Path) -> list[KindSummary]:
    """Summarize everything in the cache by kind, without writing to it; `UsageError` where it cannot be read."""
    return [_summarize_kind(cache / name) for name in KINDS]


def _summarize_kind(folder: Path) -> KindSummary:
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from None
    if folder.name == STAGES:  # without epochs that are being saved or removed
        saved = cache_entries(folder)
        used = max((state.used for state in saved), default=None)
        return KindSummary(folder, len({state.key for state in saved}), total_bytes(saved), used)
    files = list(_file_stats(entries))
    used = max((max(file.st_atime, file.st_mtime) for file in files), default=None)
    return KindSummary(folder, len(entries), sum(file.st_size for file in files), used)


def _file_stats(entries: Iterable[Path]) -> Iterator[os.stat_result]:
    for entry in entries:
        for path in [entry] if entry.is_file() else entry.rglob("*"):
            with suppress(OSError):  # another process removed it meanwhile
                if path.is_file():
                    yield path.stat()


def summarize_stages(cache: Path) -> list[StageSummary]:
    """Summarize the stages with saved epochs, the most recently used first, without writing to the cache."""
    folder = cache / STAGES
    try:
        in_use = leased_keys(folder)
    except OSError:
        in_use = None
    stages = []
    saved = sorted(cache_entries(folder), key=lambda state: (state.key, epoch_of(state)))
    for key, group in groupby(saved, key=lambda state: state.key):
        members = list(group)
        stages.append(
            StageSummary(
                about=next(filter(None, (_read_about(state.folder) for state in members)), {}),
                epochs=[epoch_of(state) for state in members if epoch_of(state)],
                bytes=total_bytes(members),
                last_used=max(state.used for state in members),
                in_use=None if in_use is None else key in in_use,
            )
        )
    return sorted(stages, key=lambda stage: stage.last_used, reverse=True)


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / EPOCH_FILE).read_text(encoding="utf-8"))["about"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return about if isinstance(about, dict) else {}


def clear_stages(cache: Path) -> ClearResult:
    """Remove the saved epochs that no running trial uses; `UsageError` where the folder cannot be written to."""
    folder = cache / STAGES
    if not folder.is_dir():
        return ClearResult([], [], [])
    try:
        in_use = leased_keys(folder)
        removed = evict(folder, 0)
        in_use |= leased_keys(folder)  # a trial may have started meanwhile
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to ({error.strerror or error})") from None
    left = cache_entries(folder)
    return ClearResult(
        removed,
        [state for state in left if state.key in in_use],
        [state for state in left if state.key not in in_use],
    )


def epoch_of(state: CacheEntry) -> int:
    """Return a saved epoch's number; 0 for what is saved beside a stage's epochs."""
    name = state.folder.name
    return int(name) if name.isdecimal() else 0


def total_bytes(saved: Iterable[CacheEntry]) -> int:
    """Return the disk space of saved epochs in bytes."""
    return sum(state.bytes for state in saved)
