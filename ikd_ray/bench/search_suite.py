"""The yardstick of searches: replays on recorded tables and on models of them, and what early signals predict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
import pandas as pd

from ikd_ray.analysis.intervals import paired_t_interval, t_interval
from ikd_ray.bench.results import show_rows
from ikd_ray.bench.search_arms import make_arms
from ikd_ray.bench.search_replay import Hypervolume, Progress, Row, Table, read_table, replay, replay_asha
from ikd_ray.bench.search_simulation import simulate_searches
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, find_space
from ikd_ray.search.space_file import load_space
from ikd_ray.terminal.console import Console

TABLES = Path(__file__).parent / "tables"
WORKERS = (2, 8, 64, 256)
SIMULATED_WORKERS = (2, 8)
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the table's whole cost at which regrets are measured."""
TARGET = 0.99
"""Share of the table's hypervolume that a search has to reach."""
BEFORE = "TPE with a lag (before)"
SIGNALS = {"score": 1, "nll": -1, "teacher_kl": -1, "train_loss": -1}
"""Numbers of an epoch that might predict the last score, and the sign with which more is better."""
SIGNAL_SHARES = (0.25, 0.5, 0.75)


def measure_search(orders: int, console: Console) -> dict[str, Any]:
    """Replay every arm on every table in so many orders; return the JSON document."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[dict[str, Any]] = []
    simulated: list[dict[str, Any]] = []
    signals: list[dict[str, Any]] = []
    for path in sorted(TABLES.glob("*.json.gz")):
        table = read_table(path)
        space = load_space(find_space(DEFAULT_SPACE), max(table.sizes) + 1)
        for workers in WORKERS:
            with console.step(f"{table.name}: {workers} workers"):
                rows += _replay_arms(table, make_arms(table, space, workers), workers, orders)
        for workers in SIMULATED_WORKERS:
            with console.step(f"{table.name}: {workers} workers on a model of it"):
                simulated += simulate_searches(table, space, workers, orders)
        signals += [{"table": table.name, **row} for row in measure_signals(table)]
    return {"orders": orders, "search": rows, "simulation": simulated, "signals": signals}


def show_search(document: dict[str, Any], file: IO[str]) -> None:
    """Print the tables.

    A column `at 0.25` is the regret of the hypervolume at a quarter of the table's cost. In the simulation, `at 2
    starts` is the mean score over sizes when twice the work of the space's `start` is done.
    """
    show_rows(document["search"], file)
    show_rows(document["simulation"], file)
    show_rows(document["signals"], file)


def _replay_arms(table: Table, arms: dict[str, Any], workers: int, orders: int) -> list[dict[str, Any]]:
    results = {
        name: _score(table, [replay(table, make(order), workers) for order in range(orders)], workers)
        for name, make in arms.items()
    }
    asha = [replay_asha(table, order, workers) for order in range(orders)]
    results["ASHA (Ray's), random"] = _score(table, asha, workers)
    return [
        {
            "table": table.name,
            "workers": workers,
            "search": name,
            **{column: t_interval(values).mean for column, values in frame.items()},
            "cost - before's": _interval(frame["cost"], results[BEFORE]["cost"]),
        }
        for name, frame in results.items()
    ]


def _score(table: Table, replays: Sequence[Progress], workers: int) -> pd.DataFrame:
    """Return regrets and cost of each replay; where the target is never met, the cost is that of the whole table."""
    whole = table.total_s / workers
    rows = []
    for progress in replays:
        regrets = {f"at {share:g}": 1 - progress.volume_at(share * whole) for share in SHARES}
        rows.append(regrets | {"cost": min(progress.time_to(TARGET), max(progress.times[-1], whole)) / whole})
    return pd.DataFrame(rows)


def _interval(first: pd.Series, second: pd.Series) -> str:
    found = paired_t_interval(first, second)
    return f"{found.mean:+.3f} ± {found.half_width:.3f}"


def measure_signals(table: Table) -> Iterator[dict[str, Any]]:
    """Yield how well each signal, at a share of a trial's own cost, predicts its last score among those of its size.

    Spearman's rank correlation, averaged over sizes, and the share of the table's hypervolume that is left when the
    worse half of each size is given up at that moment.
    """
    for signal, sign in SIGNALS.items():
        for share in SIGNAL_SHARES:
            early = [sign * _value_at(row, signal, share) for row in table.rows]
            frame = pd.DataFrame(
                {
                    "size": [row.size for row in table.rows],
                    "score": [row.score for row in table.rows],
                    "early": early,
                }
            ).dropna()
            correlations = [
                group["early"].corr(group["score"], method="spearman")
                for _, group in frame.groupby("size")
                if group["early"].nunique() > 1 and group["score"].nunique() > 1
            ]
            medians = frame.groupby("size")["early"].transform("median")
            volume, kept = Hypervolume(table), 0.0
            for index in frame.index[frame["early"] >= medians]:
                kept = volume.add(table.rows[index].size, table.rows[index].score)
            yield {
                "signal": signal,
                "at share of cost": share,
                "trials": len(frame),
                "rank correlation": float(np.nanmean(correlations)) if correlations else math.nan,
                "hypervolume kept": kept,
            }


def _value_at(row: Row, signal: str, share: float) -> float:
    """Return the last value of a signal that is known when so much of a trial's cost is spent; NaN without one."""
    spent = np.cumsum(row.seconds) / sum(row.seconds)
    known = row.curves[signal][: int(np.searchsorted(spent, share, side="right"))]
    values = [value for value in known if value is not None]
    return values[-1] if values else math.nan
