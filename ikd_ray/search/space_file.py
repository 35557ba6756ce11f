"""Read a search space from a YAML file, which is checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from operator import or_
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo

from ikd_ray.config import (
    MAX_LAYERS,
    NOT_IN_ASSISTANTS,
    DataConfig,
    Precision,
    PrefixConfig,
    SharingConfig,
    TargetConfig,
    TeacherConfig,
    Trial,
)
from ikd_ray.errors import UsageError
from ikd_ray.records import Direction
from ikd_ray.search.assistant_depths import DEPTHS
from ikd_ray.search.space import (
    DEFAULTS,
    OBJECTIVES,
    Choice,
    Fixed,
    FloatRange,
    IntRange,
    Params,
    Sampler,
    Selection,
    Space,
    combinations,
    keeps_default,
)
from ikd_ray.yaml_file import (
    AS_LIST,
    Location,
    YamlFile,
    distinct,
    field_types,
    mapping,
    mistakes_at,
    not_empty,
    section,
)

RELATIVE_DEPTHS: dict[str, Callable[[int], int]] = {
    "most": lambda teacher_layers: max(teacher_layers - 1, 1),
    "three_quarters": lambda teacher_layers: max(3 * teacher_layers // 4, 1),
    "half": lambda teacher_layers: max(teacher_layers // 2, 1),
}
"""Words for a number of layers that depends on the teacher's."""
MAX_METHODS = 50
MAX_SEEDS = 100
MAX_START = 1000


@dataclass
class _TeacherDepth:
    """Layers of the teacher, and whether a word of the file depends on them."""

    layers: int
    is_used: bool = False


def _to_depth(value: Any, info: ValidationInfo) -> Any:
    if not (isinstance(value, str) and value in RELATIVE_DEPTHS):
        return value
    depth: Any = info.context
    depth.is_used = True
    return RELATIVE_DEPTHS[value](depth.layers)


FIELDS = {
    name: Annotated[type_, BeforeValidator(_to_depth)] if name in DEPTHS else type_
    for name, type_ in field_types(Trial).items()
}
"""The type of each field of a trial in a space file."""


def load_space(path: Path, teacher_layers: int | None = None) -> Space:
    """Read and check a space file.

    Args:
        path: the file.
        teacher_layers: the teacher's depth, which makes `most` and `half` numbers. None: it is not known yet; where the
            file has such a word, numbers of layers in the result mean nothing.

    Raises:
        UsageError: `path:line: key: what is wrong; what would be right`, a line for each mistake.
    """
    file = YamlFile(path, "search space", "`params: {}` for one trial of defaults")
    for name in ("params", "start", "methods", *_SECTIONS):
        if file.data.get(name, "") is None:  # every line of it is commented out
            del file.data[name]
    depth = _TeacherDepth(teacher_layers or MAX_LAYERS)
    values = file.validate(_schema(), depth)
    values["params"] = _sort_parents_first(file, values.get("params", {}))
    start = values.pop("start", [])
    space = Space(**values, text=file.text)
    _check_kinds(file)
    _check_methods(file, values.get("methods", {}))
    _check_conditions(file, space)
    if space.sampler == "grid" and (teacher_layers or not depth.is_used):
        _check_grid(file, space)
    space = replace(space, start=_expand_start(file, space, start))
    if "seed" in space.params or any("seed" in fixed for fixed in space.methods.values()):
        for name in ("seeds", "best_seeds"):
            if getattr(space, name) != getattr(Space, name):
                file.mistake((name,), "the space names seed itself; keep one of the two")
    file.raise_mistakes()
    return space


_SECTIONS = {
    "teacher": section(TeacherConfig),
    "data": section(DataConfig),
    "targets": section(TargetConfig),
    "prefix": section(PrefixConfig),
    "sharing": section(SharingConfig),
    "assistant": section(Trial, without=("student_layers", *NOT_IN_ASSISTANTS)),
}


@cache
def _schema() -> Any:
    """Return the type of a space file, for `YamlFile.validate`."""
    when = mapping({name: Annotated[distinct(type_), AS_LIST] for name, type_ in FIELDS.items()})
    condition = {"when": Annotated[when, not_empty("name a field, or leave it out")]}
    start = mapping({name: _entry(type_, {}) for name, type_ in FIELDS.items()})
    objectives = mapping(dict.fromkeys(OBJECTIVES, Direction))
    methods = dict[str, mapping(FIELDS)]  # type: ignore[misc,valid-type]
    return mapping(
        {
            "objectives": Annotated[objectives, not_empty("name one or more, as in {dev/metric: max}")],
            "methods": Annotated[methods, not_empty("name some, or leave it out")],
            "sampler": Sampler,
            "selection": Selection,
            "precision": Precision,
            "seeds": Annotated[int, Field(ge=1, le=MAX_SEEDS)],
            "best_seeds": Annotated[int, Field(ge=0, le=MAX_SEEDS)],
            "params": mapping({name: _entry(type_, condition) for name, type_ in FIELDS.items()}),
            "start": list[start],  # type: ignore[valid-type]
            **_SECTIONS,
        }
    )


def _entry(type_: Any, condition: Mapping[str, Any]) -> Any:
    """Return the type of an entry of `params` or `start`: a value, or a mapping of a kind that suits the field's type.

    The mapping may also have the names of `condition`.
    """
    kinds = _suitable_kinds(type_)

    def tag(entry: Any) -> str:
        given = [kind for kind in _KINDS if isinstance(entry, dict) and kind in entry]
        if len(given) == 1 and given[0] in kinds:
            return f"<{given[0]}>"
        if isinstance(entry, list):
            return "<list>"
        return "<unclear>" if isinstance(entry, dict) else "<value>"

    scale = {"log": bool, **condition}
    step = {"step": Annotated[int, Field(ge=1)]}
    bounds = Annotated[list[type_], AfterValidator(_check_bounds)]
    options = {
        "value": Annotated[type_, AfterValidator(lambda value: Fixed(values=(value,)))],
        "choice": Annotated[mapping({"choice": distinct(type_), **condition}), AfterValidator(_to_choice)],
        "int": Annotated[mapping({"int": bounds} | scale | step), AfterValidator(_to_range)],
        "float": Annotated[mapping({"float": bounds} | scale), AfterValidator(_to_range)],
        "unclear": Annotated[
            mapping(dict.fromkeys((*_KINDS, "step"), Any) | scale), AfterValidator(_to_unknown)
        ],
    }
    options["list"] = Annotated[list[Any], AfterValidator(_to_unknown)]
    union = reduce(or_, (Annotated[option, Tag(f"<{kind}>")] for kind, option in options.items()))
    return Annotated[union, Discriminator(tag)]


_KINDS = ("choice", "int", "float")


def _suitable_kinds(type_: Any) -> list[str]:
    return ["choice", *(kind.__name__ for kind in (int, float) if get_args(type_)[0] is kind)]


def _check_bounds(bounds: list[Any]) -> list[Any]:
    if len(bounds) != 2:
        raise ValueError(f"got {len(bounds)} values; write the two bounds, [low, high]")
    low, high = bounds
    if low > high:
        raise ValueError(f"low {low} is over high {high}; write [{high}, {low}]")
    return bounds


def _to_unknown(entry: Any) -> Fixed:
    return _UNKNOWN


def _to_choice(entry: dict[str, Any]) -> Choice:
    return Choice(values=entry["choice"], when=entry.get("when", {}))


def _to_range(entry: dict[str, Any]) -> IntRange | FloatRange:
    kind = "int" if "int" in entry else "float"
    low, high = entry[kind]
    log, when = entry.get("log", False), entry.get("when", {})
    if log and "step" in entry:
        raise mistakes_at({"step": "does not go with log; keep one of the two"})
    if log and low <= 0:
        raise mistakes_at({kind: f"low {low} with log; write a low above 0"})
    if kind == "float":
        return FloatRange(values=(low, high), low=low, high=high, log=log, when=when)
    step = entry.get("step", 1)
    return IntRange(values=range(low, high + 1, step), low=low, high=high, step=step, log=log, when=when)


_UNKNOWN = Fixed(values=(object(),))
"""Stands for a parameter with a mistake of its own, which causes no further mistakes."""


def _check_kinds(file: YamlFile) -> None:
    """Note entries of `params` and `start` that are not of one kind that suits the field."""
    params, start = file.data.get("params"), file.data.get("start")
    _check_kinds_of(file, ("params",), params)
    for index, written in enumerate(start if isinstance(start, list) else ()):
        _check_kinds_of(file, ("start", index), written)


def _check_kinds_of(file: YamlFile, location: Location, written: Any) -> None:
    for name, entry in written.items() if isinstance(written, dict) else ():
        if isinstance(entry, list) and name in FIELDS:
            file.mistake((*location, name), "got a list; write {choice: [...]}")
        if name not in FIELDS or not isinstance(entry, dict):
            continue
        given, kinds = [kind for kind in _KINDS if kind in entry], _suitable_kinds(FIELDS[name])
        if not given and entry.keys() - {"when", "log", "step"}:
            continue  # an unknown name, which is a mistake of its own
        advice = f"write {' or '.join(kinds)}"
        if len(given) != 1:
            found = " and ".join(given) or "none"
            file.mistake((*location, name), f"got {found} of the kinds {', '.join(_KINDS)}; {advice}")
        elif given[0] not in kinds:
            file.mistake((*location, name, given[0]), f"the field takes no {given[0]}; {advice}")


def _sort_parents_first(file: YamlFile, valid: Params) -> Params:
    """Return the parameters with each after its parents; note circles."""
    written = file.data.get("params")
    names = [name for name in written if name in FIELDS] if isinstance(written, dict) else []
    params = {name: valid.get(name, _UNKNOWN) for name in names}
    while True:
        try:
            order = TopologicalSorter({name: param.when for name, param in params.items()}).static_order()
            return {name: params[name] for name in order if name in params}
        except CycleError as error:
            circle = error.args[1][:-1]
            start = circle.index(min(circle, key=names.index))
            circle = circle[start:] + circle[:start]
            path = " -> ".join((*circle, circle[0]))
            file.mistake(("params", circle[0], "when"), f"a circle, {path}; drop one condition")
            params |= dict.fromkeys(circle, _UNKNOWN)


def _check_conditions(file: YamlFile, space: Space) -> None:
    """Note conditions on float ranges, and on values that no trial can have."""
    for name, param in space.params.items():
        for parent, allowed in param.when.items():
            location, domain = ("params", name, "when", parent), space.params.get(parent)
            if isinstance(domain, FloatRange):
                file.mistake(location, f"{parent} is a float range; name a field with separate values")
            elif domain is not _UNKNOWN:
                for index, value in enumerate(allowed):
                    if not any(_can_be(space, fixed, parent, value) for fixed in space.methods.values()):
                        advice = f"{parent} is never {value!r} in this space; drop it or add it"
                        file.mistake((*location, index), advice)


def _can_be(space: Space, fixed: Mapping[str, Any], name: str, value: Any) -> bool:
    if name in fixed:
        return fixed[name] == value
    if name in space.params and value in space.params[name].values:
        return True
    return value == DEFAULTS[name] and keeps_default(space.params, name)


def _check_methods(file: YamlFile, methods: Mapping[str, Mapping[str, Any]]) -> None:
    for index, (name, fixed) in enumerate(methods.items()):
        if index == MAX_METHODS:
            file.mistake(("methods", name), f"one of {len(methods)} methods; name at most {MAX_METHODS}")
        if not re.fullmatch(r"\S(?:.{0,58}\S)?", name):
            file.mistake(("methods", name), "no name; write at most 60 characters, no space first or last")
        same = next(other for other, fields in methods.items() if fields == fixed)
        if same != name:
            file.mistake(("methods", name), f"fixes what {same} does; keep one")


def _check_grid(file: YamlFile, space: Space) -> None:
    floats = [name for name, param in space.params.items() if isinstance(param, FloatRange)]
    for name in floats:
        file.mistake(("params", name), "a float range in a grid; write {choice: [...]}")
    try:
        for method in space.methods if not floats else ():
            space.for_method(method).grid()
    except UsageError as error:
        file.mistake(("sampler",), str(error))


def _expand_start(file: YamlFile, space: Space, start: Sequence[Params]) -> tuple[dict[str, Any], ...]:
    """Return every configuration that `start` names, once; note what is not in the space."""
    if start and space.sampler == "grid":
        file.mistake(("start",), "a grid tries every combination; leave it out")
        return ()
    if file.has_mistakes:  # they may have consequences here
        return ()
    spaces, rows = [space.for_method(method) for method in space.methods], list[dict[str, Any]]()
    for index, entry in enumerate(start):
        for name, param in entry.items():
            if isinstance(param, FloatRange):
                file.mistake(("start", index, name), "a float range has no end; write {choice: [...]}")
                return ()
        named = list(islice(combinations(entry), MAX_START + 1 - len(rows)))
        for message in dict.fromkeys(message for row in named if (message := _explain_misfit(spaces, row))):
            file.mistake(("start", index), message)
        rows += [row for row in named if row not in rows]
    if len(rows) > MAX_START:
        file.mistake(("start",), f"more than {MAX_START:,} configurations; name fewer")
    return tuple(rows)


def _explain_misfit(spaces: Sequence[Space], row: Mapping[str, Any]) -> str | None:
    """Return why a configuration is in none of the methods' spaces; None if it is in one."""
    reasons = [space.explain_misfit(row) for space in spaces]
    return reasons[0] if all(reasons) else None
