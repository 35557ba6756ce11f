"""Text for people: outside text made harmless, times, metrics and names made short."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

MISSING = "-"
"""Cell of a table whose value is not known."""

MAX_REASON_CHARS = 200
"""Most characters of a failure's reason that one line shows."""

GENERATED_WARNING = "GENERATED corpus, not CoLA"
"""Shown beside every result of the embedded corpus."""

_ESCAPE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")


def clean(text: object, limit: int | None = None) -> str:
    """One line of printable characters: no terminal escapes, control characters or direction marks."""
    visible = "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", str(text)))
    line = " ".join(visible.split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """Seconds in words, for sentences: `0.4 s`, `41 s`, `3 m 05 s`, `2 h 10 m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def clock(seconds: float | None) -> str:
    """Seconds as a clock, for tables: `0:41`, `1:02:03`; `?` while unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def decimal(value: float | None) -> str:
    """A metric of the order of 1."""
    return MISSING if value is None else f"{value:.3f}"


def null_nonfinite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics with None for nan and infinities, which JSON cannot write."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def short_name(metric: str) -> str:
    """A metric's name without its split, where that is not the held-out one: `mcc` for `dev/mcc`, `holdout mcc`."""
    split, _, name = clean(metric).rpartition("/")
    return f"{split} {name}" if split == "holdout" else name


def short_stage(name: str, width: int) -> str:
    """A stage's name cut in the middle: `1+2+…+12+C`."""
    if len(name) <= width:
        return name
    parts = name.split("+")
    for head in range(len(parts) - 3, 0, -1):
        short = "+".join([*parts[:head], "…", *parts[-2:]])
        if len(short) <= width:
            return short
    head = max(0, width - 1) // 2
    return name[:head] + "…" + name[len(name) - (width - 1 - head) :] if width > 1 else "…"


def metrics_line(metrics: dict[str, float]) -> str:
    """The dev and held-out metrics, the layers' own left out, the training loss and the epoch's time."""
    shown = [
        f"{short_name(name)} {decimal(value)}"
        for name, value in metrics.items()
        if name.startswith(("dev/", "holdout/")) and "layer_" not in name
    ]
    if "train/loss" in metrics:
        shown.append(f"training loss {decimal(metrics['train/loss'])}")
    if "time/epoch_s" in metrics:
        shown.append(duration(metrics["time/epoch_s"]))
    return ", ".join(shown)
