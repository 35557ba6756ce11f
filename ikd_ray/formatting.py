"""Text for terminals, pages and reports: safe outside text, and short times, metrics and names."""

from __future__ import annotations

import ast
import math
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

MISSING = "-"
"""Cell of a table whose value is not known."""

MAX_REASON_CHARS = 200
"""Most characters of a failure's reason that one line shows."""

GENERATED_WARNING = "GENERATED corpus, not CoLA"
"""Shown beside every result of the embedded corpus."""

METRIC_TITLES = {"mcc": "MCC", "f1": "F1", "macro_f1": "macro-F1", "nll": "NLL"}
"""Names of metrics in a sentence, where they differ from their keys."""

PLACES = ("--output", "--tracking-uri")
"""Flags that say where results go on one machine, and change no result."""

_PATH_OF_MODEL = re.compile(r"^(\d+L of )?/(?:.*/)?")
_ESCAPE = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?")


def clean(text: object, limit: int | None = None) -> str:
    """Return outside text as one line without terminal escapes, control characters or direction marks.

    Args:
        text: any object; its `str` is taken.
        limit: most characters; a longer line ends with an ellipsis.
    """
    visible = "".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", str(text)))
    line = " ".join(visible.split())
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """Return seconds as text of a sentence: `0.4 s`, `41 s`, `3 m 05 s`, `2 h 10 m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} m"


def clock(seconds: float | None) -> str:
    """Return seconds as a cell of a table: `0:41`, `1:02:03`; `?` if they are not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def decimal(value: float | None) -> str:
    """Return a metric with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def metric_title(metric: str) -> str:
    """Return a metric's name as a sentence has it, without its split: `MCC`, `macro-F1`, `teacher kl`."""
    name = clean(metric).rpartition("/")[2]
    return METRIC_TITLES.get(name, name.replace("_", " "))


def number(value: float) -> str:
    """Return a number with four digits, and a large one whole: `0.1235`, `10,652,928`."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < math.inf else f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 trial`, `2 trials`, `1,043 examples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def describe_truncated(truncation: Mapping[str, Mapping[str, int]]) -> str:
    """Return text such as `3 of 1,043 dev`; empty where nothing was truncated.

    Args:
        truncation: the numbers of `truncated` examples and of all `examples`, by split.
    """
    counts = {split: count for split, count in truncation.items() if count["truncated"]}
    return " and ".join(
        f"{count['truncated']:,} of {count['examples']:,} {split}" for split, count in counts.items()
    )


def null_nonfinite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics with None for nan and infinities, which JSON cannot write."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def short_name(metric: str) -> str:
    """Return a metric's name without its split, unless that is not dev: `mcc`, `holdout mcc`, `test mcc`."""
    split, _, name = clean(metric).rpartition("/")
    return f"{split} {name}" if split in ("holdout", "test") else name


def short_stage(name: str, width: int) -> str:
    """Return a stage's name, cut in the middle to at most `width` characters: `1+2+…+12+C`."""
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
    """Return the dev and held-out metrics, those of layers left out, the training loss and the epoch's time."""
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


def model_name(name: str) -> str:
    """Return the name of a model, or of an assistant; where it is the path of a folder, the folder's own name."""
    return _PATH_OF_MODEL.sub(lambda match: match[1] or "", name.rstrip("/"))


def portable_command(command: str) -> str:
    """Return a recorded command line, or call in Python, as it can be shown elsewhere: without the machine's paths.

    Files and folders outside the working folder are named by their last part, and `PLACES` are left out.
    """
    if re.match(r"[\w.]+\(", command):
        return _portable_call(command)
    try:
        words = iter(shlex.split(command))
    except ValueError:  # no command line that a shell has passed on
        return ""
    kept = []
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if flag in PLACES:
            if not equals:
                next(words, None)
        elif flag:
            kept.append(f"{flag}{equals}{_last_part(value)}")
        else:
            kept.append(_last_part(value))
    return shlex.join(kept)


def _portable_call(command: str) -> str:
    """Return a call in Python as `portable_command` does; empty where it cannot be parsed."""
    try:
        call = ast.parse(command, mode="eval").body
    except (SyntaxError, ValueError):
        return ""
    if not isinstance(call, ast.Call):
        return ""
    places = {flag.removeprefix("--").replace("-", "_") for flag in PLACES}
    call.keywords = [keyword for keyword in call.keywords if keyword.arg not in places]
    for node in ast.walk(call):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = _last_part(node.value)
    return ast.unparse(call)


def shorten_paths(text: str) -> str:
    """Return a message with paths below the working and the home folder given as seen from there."""
    for folder, short in ((os.getcwd(), "."), (os.path.expanduser("~"), "~")):
        if len(folder) > 1:
            text = text.replace(f"{folder}/", f"{short}/")
    return text


def _last_part(path: str) -> str:
    return Path(path).name if os.path.isabs(path) or path.startswith(("~", "../")) else path
