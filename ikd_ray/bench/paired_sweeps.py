"""Paired differences of two sweeps that have trained the same configurations, such as in two precisions.

`python -m ikd_ray.bench.paired_sweeps FIRST SECOND` compares the sweeps in two folders.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from ikd_ray.analysis.dataframes import epochs_frame, one_per_seed, trials_frame
from ikd_ray.analysis.intervals import paired_t_interval
from ikd_ray.analysis.objectives import main_metric
from ikd_ray.bench.results import show_rows
from ikd_ray.errors import UsageError
from ikd_ray.records import TrialRecord, read_sweep, read_trials
from ikd_ray.terminal.command_line import usage_errors

METRICS = ("dev/attention_kl", "dev/teacher_agreement", "dev/teacher_kl", "dev/nll")
TIMES = ("time/epoch_s", "time/evaluation_s", "time/reused_s")
SECONDS = "seconds"
KEY = ["configuration", "seed"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    first: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    second: Annotated[Path, typer.Argument(help="Folder of the sweep that it is compared with.")],
) -> None:
    """Print the mean of each difference by regime and metric, with its 95 % confidence interval."""
    with usage_errors():
        metric = main_metric(read_sweep(first).objectives)
        show_rows(list(compare_sweeps(read_trials(first), read_trials(second), metric)), sys.stdout)


def compare_sweeps(
    first: list[TrialRecord], second: list[TrialRecord], metric: str
) -> Iterator[dict[str, Any]]:
    """Yield a row for each regime and metric: the mean of each sweep, and the mean of `second` - `first` by pairs.

    Trials are paired by their parameters. The last row of a regime is the seconds of its epochs, evaluation included;
    a reused epoch counts as it was trained.

    Raises:
        UsageError: no trial of one sweep has the parameters of one of the other, or one lacks the metric.
    """
    frames = [_frame(trials) for trials in (first, second)]
    shared = frames[0].index.intersection(frames[1].index)
    if shared.empty:
        raise UsageError(
            "the sweeps have no finished trials with the same parameters; give two of the same space"
        )
    if any(metric not in frame for frame in frames):
        raise UsageError(f"one of the sweeps has no {metric}; give two with the same objectives")
    left, right = (frame.loc[shared] for frame in frames)
    names = [name for name in dict.fromkeys((metric, *METRICS)) if name in left and name in right]
    for regime, rows in left.groupby("regime", sort=False):
        for name in (*names, SECONDS):
            pair = pd.DataFrame({"first": rows[name], "second": right.loc[rows.index, name]}).dropna()
            found = paired_t_interval(pair["second"], pair["first"])
            yield {
                "regime": regime,
                "metric": name,
                "pairs": len(pair),
                **{column: f"{mean:.4f}" for column, mean in pair.mean().items()},
                "difference": f"{found.mean:+.4f} ± {found.half_width:.4f}",
            }


def _frame(trials: list[TrialRecord]) -> pd.DataFrame:
    finished = [trial for trial in trials if trial.status == "finished"]
    epochs = epochs_frame(finished).reindex(columns=TIMES, fill_value=0.0)
    seconds = epochs.sum(axis=1).groupby(level=0).sum()
    return one_per_seed(trials_frame(finished).assign(**{SECONDS: seconds})).set_index(KEY)


if __name__ == "__main__":
    app()
