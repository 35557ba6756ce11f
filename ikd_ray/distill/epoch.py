"""Report of one epoch, in a module that imports no transformers: processes that only forward it unpickle it too."""

from __future__ import annotations

from dataclasses import dataclass

TIME_METRICS = ("time/epoch_s", "time/evaluation_s")
"""Seconds of an epoch's training and of its evaluation."""


@dataclass(frozen=True)
class Epoch:
    """Report of one epoch. `epoch` and `stage` count from 1."""

    epoch: int
    remaining: int
    """Epochs that may follow at most."""
    stage: int
    stages: int
    stage_name: str
    metrics: dict[str, float]
    reused_from: str = ""
    """The trial that trained the epoch, where it is another one."""
    resumed: bool = False
    """True if this trial trained the epoch itself, before it was interrupted."""
    warnings: tuple[str, ...] = ()
    """Problems with saved epochs since the epoch before."""
