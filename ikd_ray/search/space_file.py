"""Read a search space from a YAML file, which is checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, reduce
from graphlib import CycleError, TopologicalSorter
from operator import or_
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag

from ikd_ray.config import (
    NOT_IN_ASSISTANTS,
    DataConfig,
    PrefixConfig,
    SharingConfig,
    TargetConfig,
    TeacherConfig,
    Trial,
)
from ikd_ray.errors import UsageError
from ikd_ray.records import Direction
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
    keeps_default,
)
from ikd_ray.yaml_file import (
    AS_LIST,
    YamlFile,
    distinct,
    field_types,
    mapping,
    mistakes_at,
    not_empty,
    section,
)

FIELDS = field_types(Trial)
MAX_METHODS = 50
MAX_SEEDS = 100


def load_space(path: Path) -> Space:
    """Read and check a space file.

    Raises:
        UsageError: `path:line: key: what is wrong; what would be right`, a line for each mistake.
    """
    file = YamlFile(path, "search space", "`params: {}` for one trial of defaults")
    for name in ("params", "methods", *_SECTIONS):
        if file.data.get(name, "") is None:  # every line of it is commented out
            del file.data[name]
    values = file.validate(_schema())
    values["params"] = _sort_parents_first(file, values.get("params", {}))
    space = Space(**values, text=file.text)
    _check_kinds(file)
    _check_methods(file, values.get("methods", {}))
    _check_conditions(file, space)
    if space.sampler == "grid":
        _check_grid(file, space)
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
    objectives = mapping(dict.fromkeys(OBJECTIVES, Direction))
    methods = dict[str, mapping(FIELDS)]  # type: ignore[misc,valid-type]
    return mapping(
        {
            "objectives": Annotated[objectives, not_empty("name one or more, as in {dev/metric: max}")],
            "methods": Annotated[methods, not_empty("name some, or leave it out")],
            "sampler": Sampler,
            "selection": Selection,
            "seeds": Annotated[int, Field(ge=1, le=MAX_SEEDS)],
            "best_seeds": Annotated[int, Field(ge=0, le=MAX_SEEDS)],
            "params": mapping({name: _entry(type_, when) for name, type_ in FIELDS.items()}),
            **_SECTIONS,
        }
    )


def _entry(type_: Any, when: Any) -> Any:
    """Return the type of one entry of `params`: a value, or a mapping of a kind that suits the field's type."""
    kinds = _suitable_kinds(type_)

    def tag(entry: Any) -> str:
        given = [kind for kind in _KINDS if isinstance(entry, dict) and kind in entry]
        if len(given) == 1 and given[0] in kinds:
            return f"<{given[0]}>"
        if isinstance(entry, list):
            return "<list>"
        return "<unclear>" if isinstance(entry, dict) else "<value>"

    condition = {"when": Annotated[when, not_empty("name a field, or leave it out")]}
    scale = {"log": bool} | condition
    step = {"step": Annotated[int, Field(ge=1)]}
    bounds = Annotated[list[type_], AfterValidator(_check_bounds)]
    options = {
        "value": Annotated[type_, AfterValidator(lambda value: Fixed(values=(value,)))],
        "choice": Annotated[mapping({"choice": distinct(type_)} | condition), AfterValidator(_to_choice)],
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
    """Note entries of `params` that are not of one kind that suits the field."""
    written = file.data.get("params")
    for name, entry in written.items() if isinstance(written, dict) else ():
        if isinstance(entry, list) and name in FIELDS:
            file.mistake(("params", name), "got a list; write {choice: [...]} to search it")
        if name not in FIELDS or not isinstance(entry, dict):
            continue
        given, kinds = [kind for kind in _KINDS if kind in entry], _suitable_kinds(FIELDS[name])
        if not given and entry.keys() - {"when", "log", "step"}:
            continue  # an unknown name, which is a mistake of its own
        advice = f"write {' or '.join(kinds)}"
        if len(given) != 1:
            found = " and ".join(given) or "none"
            file.mistake(("params", name), f"got {found} of the kinds {', '.join(_KINDS)}; {advice}")
        elif given[0] not in kinds:
            file.mistake(("params", name, given[0]), f"the field takes no {given[0]}; {advice}")


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
