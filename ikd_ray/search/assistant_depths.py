"""The depths of the teacher assistants that a space asks for."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from ikd_ray.errors import UsageError
from ikd_ray.search.space import DEFAULTS, Choice, Params, Space, combinations

DEPTHS = ("student_layers", "assistant_layers")


def assistant_depths(where: str, spaces: Iterable[Space], teacher_layers: int) -> dict[int, tuple[int, ...]]:
    """Return the depths of the assistants that trials may have, each with those of its students; both ascend.

    Messages begin with `where`.

    Raises:
        UsageError: an assistant is not deeper than its student, or not less deep than the teacher.
    """
    depths: dict[int, tuple[int, ...]] = {}
    for student, assistant in sorted({pair for space in spaces for pair in _pairs(space.params)}):
        if not assistant:
            continue
        if not student < assistant < teacher_layers:
            raise UsageError(f"{where}: {_explain(student, assistant, teacher_layers)}")
        depths[assistant] = (*depths.get(assistant, ()), student)
    return dict(sorted(depths.items()))


def _explain(student: int, assistant: int, teacher: int) -> str:
    least, most = student + 1, teacher - 1
    advice = f"give {least}{f' to {most}' if most > least else ''}, or 0"
    if least > most:
        advice = "none fits between; leave it 0 there"
    return (
        f"assistant_layers: {assistant} for a student of {student} layers, but an assistant is deeper than its "
        f"student and less deep than the teacher, which has {teacher} layers; {advice} (`when` tells which students "
        "have which)"
    )


def _pairs(params: Params) -> set[tuple[int, int]]:
    """Return every (student, assistant) depth of some trial, 0 where it has no assistant."""
    needed = list(DEPTHS)
    for name in needed:  # grows by the fields that conditions depend on
        needed += [parent for parent in (params[name].when if name in params else ()) if parent not in needed]
    reduced: Params = {
        name: Choice(values=_representatives(params, name), when=param.when)
        for name, param in params.items()
        if name in needed
    }
    rows = (DEFAULTS | row for row in combinations(reduced))
    return {(row["student_layers"], row["assistant_layers"]) for row in rows}


def _representatives(params: Params, name: str) -> list[Any]:
    """Return all values of a depth; of another field those that a `when` names, and one that stands for all others."""
    values = params[name].values
    if name in DEPTHS:
        return list(values)
    named = {value for param in params.values() for value in param.when.get(name, ()) if value in values}
    return [*named, *islice((value for value in values if value not in named), 1)]
