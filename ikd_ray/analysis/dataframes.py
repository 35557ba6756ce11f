"""Tidy pandas frames of trial records: one row per trial, or one row per epoch.

Comparisons, figures and counts are group-bys on these frames.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ikd_ray.config import Trial, make_trial
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.records import TrialRecord

if TYPE_CHECKING:  # pandas takes half a second to import: the functions that make frames import it
    import pandas as pd

DEFAULTS = Trial().params()
"""Values of the parameters that records of earlier versions lack."""

COLUMNS = (
    "number", "status", "method", "retrained", "seeds", "regime", "depth", "seed", "train_fraction",
    "assistant_layers", "configuration", "epochs", "duration_s",
)  # fmt: skip


def trials_frame(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """Return one row per trial, indexed by trial id, in the order of the trials' numbers.

    Columns: `number`, `status`, `method`, `retrained`, `seeds` and `duration_s` of the record; `regime`, `seed`,
    `train_fraction` and `assistant_layers` of its parameters; `depth`, the encoder layers; `configuration`, equal
    for trials that differ in nothing but their seeds; `epochs`, the number of epochs; and every final metric under
    its own name, nan where a trial lacks it.
    """
    import pandas as pd

    rows = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        params = DEFAULTS | trial.params
        fixed = {name: vars(trial).get(name, params.get(name)) for name in COLUMNS}
        fixed |= {"configuration": configuration(params), "depth": len(trial.layer_map)}
        rows.append({"id": trial.id, **fixed, "epochs": len(trial.history), **trial.metrics})
    metrics = dict.fromkeys(name for trial in trials for name in trial.metrics)
    return pd.DataFrame(rows, columns=["id", *COLUMNS, *metrics]).set_index("id")


def epochs_frame(trials: Sequence[TrialRecord]) -> pd.DataFrame:
    """Return one row per epoch of each trial, indexed by trial id.

    Columns: `epoch`, counted from 1 over all stages; `stage_name`; `layers_trained`, the number of layers that the
    stage trains; `internal`, False in the classification stage; `reused`, whether another trial trained the epoch;
    `time/epoch_s` and `time/reused_s`, 0 where they were not measured; and every further metric, nan where it was not
    measured.
    """
    import pandas as pd

    rows = []
    for trial in trials:
        plan = dict(enumerate(REGIMES[trial.params["regime"]](make_trial(trial.params)), start=1))
        for epoch, metrics in enumerate(trial.history, start=1):
            number = int(metrics.get("stage", 1))
            stage = plan.get(number)
            about = {
                "id": trial.id,
                "epoch": epoch,
                "stage_name": stage.name if stage else str(number),
                "layers_trained": len(stage.trains) if stage else 0,
                "internal": stage is not None and not stage.decays,
                "time/epoch_s": 0.0,
                "time/reused_s": 0.0,
            }
            rows.append(about | metrics)
    columns = ["epoch", "stage_name", "layers_trained", "internal", "time/epoch_s", "time/reused_s"]
    frame = pd.DataFrame(rows, columns=None if rows else ["id", *columns]).set_index("id")
    return frame.assign(internal=frame["internal"].astype(bool), reused=frame["time/reused_s"] > 0)


def configuration(params: Mapping[str, Any]) -> str:
    """Return a text that is equal for parameters that differ in nothing but the seed."""
    return json.dumps({**DEFAULTS, **params, "seed": None}, sort_keys=True, default=str)


def eligible_runs(frame: pd.DataFrame, usable: pd.Series, by: Sequence[str]) -> pd.DataFrame:
    """Select the runs of those configurations that may be compared within each group.

    In a group with retrained runs, these alone are eligible: the configuration was picked because its runs in the
    search did well, so part of what those show is luck. Of the remaining configurations, those of which a seed was
    lost or is still to come are left out if any configuration is complete: the seeds that are left may be the lucky
    ones.

    Args:
        frame: a `trials_frame` of trials that have ended.
        usable: for each row, whether the trial finished with all the metrics that the comparison needs.
        by: columns that define the groups, such as `["method"]`.

    Returns:
        The eligible rows; all of them are usable.
    """
    groups = [frame[name] for name in by]
    retrained = (frame["retrained"] & usable).groupby(groups).transform("any")
    kept = frame["retrained"] == retrained
    frame, usable = frame[kept], usable[kept]
    groups = [frame[name] for name in by]
    configurations = [*groups, frame["configuration"]]
    num_seeds = frame.groupby(configurations)["seed"].transform("nunique")
    required = frame.groupby(configurations)["seeds"].transform("first")
    complete = usable.groupby(configurations).transform("all") & (num_seeds >= required)
    some_complete = complete.groupby(groups).transform("any")
    return frame[usable & (complete | ~some_complete)]


def one_per_seed(runs: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Keep the first run of each configuration and seed within each group; others repeat the same training."""
    return runs.drop_duplicates([*by, "configuration", "seed"])


def has_several_seeds(frame: pd.DataFrame) -> bool:
    """Return whether any configuration was run with two seeds or more."""
    return bool((frame.groupby("configuration")["seed"].nunique() > 1).any())
