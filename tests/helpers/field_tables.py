"""Tables of all fields of a space file for `search_spaces/README.md`, made from the models in `ikd_ray.config`.

`python -m tests.helpers.field_tables` writes them into that file, below its marker.
"""

from __future__ import annotations

import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ikd_ray.config import DataConfig, PrefixConfig, SharingConfig, TargetConfig, TeacherConfig, Trial

README = Path(__file__).resolve().parents[2] / "search_spaces" / "README.md"
MARKER = "<!-- The tables below are made from ikd_ray/config.py: python -m tests.helpers.field_tables -->\n"
WIDTH = 120
SECTIONS: dict[str, tuple[str, type[BaseModel] | None]] = {
    "Fields of a trial": (
        "These are the names that `params` and `methods` take. They are also a trial's parameters in MLflow, Optuna "
        "and `trial.json`.",
        Trial,
    ),
    "Fields of `teacher`": (
        "How a teacher without a classification head is fine-tuned, once for all sweeps.",
        TeacherConfig,
    ),
    "Fields of `data`": ("How texts become tokens.", DataConfig),
    "Fields of `targets`": (
        "The teacher runs once over the data, and its outputs are stored as targets. Its logits and [CLS] vectors "
        "are always stored; its attention is large, and these fields say whether it is stored too.",
        TargetConfig,
    ),
    "Fields of `prefix`": (
        "The output of the frozen layers below the layers that train is constant, so it is computed once for each "
        "stage and kept. What exceeds both limits is computed again for each batch.",
        PrefixConfig,
    ),
    "Fields of `sharing`": ("How much room the epochs take that trials save for one another.", SharingConfig),
    "Fields of `assistant`": (
        "The [fields of a trial](#fields-of-a-trial) except `student_layers`, `assistant_layers`, `train_fraction` "
        "and `unlabelled_fraction`: how teacher assistants are distilled.",
        None,
    ),
}


def type_text(annotation: Any) -> str:
    """Return a field's type as a table shows it: `int`, `float or null`, or its words."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(
            "null" if part is types.NoneType else type_text(part) for part in get_args(annotation)
        )
    return str(annotation.__name__)


def range_text(field: FieldInfo) -> str:
    """Return a field's bounds, as in `0 < x ≤ 100`; empty for a field without bounds."""
    bounds = {
        name: getattr(item, name)
        for item in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(item, name)
    }
    lower = [f"{bounds[name]:,.15g} {sign} x" for name, sign in (("ge", "≤"), ("gt", "<")) if name in bounds]
    upper = [f"{sign} {bounds[name]:,.15g}" for name, sign in (("le", "≤"), ("lt", "<")) if name in bounds]
    return " ".join([*(lower or ["x"]), *upper]) if bounds else ""


def rows(model: type[BaseModel]) -> Iterator[str]:
    """Yield the lines of a model's table."""
    yield "| name | type | range | default | meaning |"
    yield "|---|---|---|---|---|"
    for name, field in model.model_fields.items():
        default = "null" if field.default is None else field.default
        cells = (
            f"`{field.alias or name}`",
            type_text(field.annotation),
            range_text(field),
            f"`{default}`",
            field.description,
        )
        yield f"| {' | '.join(map(str, cells))} |"


def tables() -> str:
    """Return the Markdown of all tables."""
    sections = []
    for title, (words, model) in SECTIONS.items():
        sections.append(
            "\n".join(
                [f"## {title}", "", textwrap.fill(words, WIDTH), *(["", *rows(model)] if model else [])]
            )
        )
    return "\n\n".join(sections) + "\n"


def write() -> None:
    """Replace the tables in the README."""
    before, marker, _ = README.read_text().partition(MARKER)
    assert marker, f"{README} lacks the line {MARKER!r}"
    README.write_text(f"{before}{MARKER}\n{tables()}")


if __name__ == "__main__":
    write()
