"""Which assistants a space asks for, and of which students; whether there can be such ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ikd_ray.errors import UsageError
from ikd_ray.search.parameters import DEFAULTS, FloatRange, Param
from ikd_ray.search.space import Space

DEPTHS = ("student_layers", "assistant_layers")


def assistant_depths(where: str, spaces: Iterable[Space], teacher_layers: int) -> dict[int, tuple[int, ...]]:
    """The depths of the assistants that trials may have, each with those of its students; both ascend.

    Args:
        where: what is at fault, as messages name it.
        spaces: of each method.

    Raises:
        UsageError: an assistant would not be deeper than its student, and less deep than the teacher.
    """
    found: dict[int, tuple[int, ...]] = {}
    for student, assistant in sorted({pair for space in spaces for pair in _pairs(space.params)}):
        if not assistant:
            continue
        if not student < assistant < teacher_layers:
            _refuse(where, student, assistant, teacher_layers)
        found[assistant] = (*found.get(assistant, ()), student)
    return dict(sorted(found.items()))


def _refuse(where: str, student: int, assistant: int, teacher: int) -> None:
    least, most = student + 1, teacher - 1
    if least > most:
        right = "none fits between; leave it 0 there"
    else:
        right = f"give {least}{f' to {most}' if most > least else ''}, or 0"
    raise UsageError(
        f"{where}: assistant_layers: {assistant} for a student of {student} layers, but an assistant is deeper than "
        f"its student and less deep than the teacher, which has {teacher} layers; {right} (`when` tells which "
        "students have which)"
    )


def _pairs(params: Mapping[str, Param]) -> set[tuple[int, int]]:
    """Every (student, assistant) depth of some trial, 0 where it has no assistant."""
    needed = _ancestors(params)
    rows = [dict(DEFAULTS)]
    for name, param in params.items():
        if name in needed:
            values = list(_values(name, param, params))
            rows = [
                row | {name: value}
                for row in rows
                for value in (values if param.active(row) else [DEFAULTS[name]])
            ]
    return {(row["student_layers"], row["assistant_layers"]) for row in rows}


def _ancestors(params: Mapping[str, Param]) -> set[str]:
    """Both depths, and all fields that whether they are searched depends on."""
    found: set[str] = set()
    waiting = list(DEPTHS)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += params[name].when if name in params else ()
    return found


def _values(name: str, param: Param, params: Mapping[str, Param]) -> Iterator[Any]:
    """All values of a depth; of another field those that a `when` names, and one that stands for all others."""
    assert not isinstance(param.domain, FloatRange)  # no `when` names one
    values = param.domain.values
    if name in DEPTHS:
        yield from values
        return
    named = {value for other in params.values() for value in other.when.get(name, ())}
    yield from (value for value in named if value in values)
    yield from islice((value for value in values if value not in named), 1)
