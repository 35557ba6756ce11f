"""The log of a soak: a JSON line for each round, and a table of its faults by kind."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class RoundResult:
    """Setting, faults and outcome of a round.

    Attributes:
        seed: its seed.
        setting: fields of its setting.
        struck: kind, victim and moment of each fault that was struck.
        statuses: exit statuses of each sweep's processes, by the sweep's name.
        seconds: how long it took.
        lost: trials that are missing in a place, and saved epochs that were trained again.
        doubled: trials and metrics that are there more than once.
        problems: what was wrong; empty after a round that went well.
    """

    seed: int
    setting: dict[str, Any]
    struck: list[tuple[str, str, str]]
    statuses: dict[str, list[int]]
    seconds: float
    lost: int
    doubled: int
    problems: list[str]


class SoakLog:
    """The results of a soak's rounds so far.

    Attributes:
        path: the file with a JSON line for each of them.
        rounds: the results.
        notes: what else the table says.
    """

    def __init__(self, path: Path, kinds: Sequence[str]) -> None:
        """Start a log; `kinds` are the names of all faults."""
        self.path, self.rounds, self.notes = path, list[RoundResult](), list[str]()
        self._kinds, self._start = kinds, time.monotonic()

    def add(self, result: RoundResult) -> None:
        """Append a round."""
        self.rounds.append(result)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def table(self) -> list[str]:
        """Return lines for the terminal."""
        lines = [f"{'fault':34} {'struck':>6} {'rounds':>6} {'lost':>6} {'doubled':>7}"]
        for kind in self._kinds:
            among = [result for result in self.rounds if kind in [name for name, *_ in result.struck]]
            struck = sum(name == kind for result in among for name, *_ in result.struck)
            lines.append(_row(kind, struck, among))
        lines.append(_row("all", sum(len(result.struck) for result in self.rounds), self.rounds))
        minutes = (time.monotonic() - self._start) / 60
        failed = [result.seed for result in self.rounds if result.problems]
        lines.append(
            f"{minutes:.0f} minutes, {len(self.rounds)} rounds, {len(failed)} with problems: {failed}"
        )
        return [*lines, *self.notes, f"log: {self.path}"]


SOAK = pytest.StashKey[SoakLog]()


def _row(kind: str, struck: int, among: list[RoundResult]) -> str:
    lost, doubled = sum(result.lost for result in among), sum(result.doubled for result in among)
    return f"{kind:34} {struck:6} {len(among):6} {lost:6} {doubled:7}"
