"""The `params` of a search space: what each field of `Trial` may be, and when it is searched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import yaml
from pydantic import Field

from ikd_ray.config import Trial
from ikd_ray.yaml_file import Knob, YamlFile, knobs, one_line, shown

FIELDS = knobs(Trial)
DEFAULTS: dict[str, Any] = {name: knob.default for name, knob in FIELDS.items()}

_KINDS = ("choice", "int", "float")
_PARTS = (*_KINDS, "when", "log", "step")
_LOG = Knob(bool)
_STEP = Knob(int, Field(ge=1))


@dataclass(frozen=True)
class Fixed:
    """A value that every trial has."""

    value: Any

    @property
    def values(self) -> tuple[Any, ...]:
        return (self.value,)


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, name: str) -> Any:
        return trial.suggest_categorical(name, self.values)


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from `low` to `high`, both included where the step meets them."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    @property
    def values(self) -> range:
        return range(self.low, self.high + 1, self.step)

    def suggest(self, trial: Any, name: str) -> int:
        # Optuna warns where the step does not meet `high`: give it the last value that it meets.
        return trial.suggest_int(name, self.low, self.values[-1], step=self.step, log=self.log)


@dataclass(frozen=True)
class FloatRange:
    """Real numbers from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Any, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)


Domain = Fixed | Choice | IntRange | FloatRange
Methods = dict[str, dict[str, Any]]  # name -> the fields that it fixes

MAX_METHODS = 50
METHOD_NAME = re.compile(r"\S(?:.{0,58}\S)?")


@dataclass(frozen=True)
class Param:
    """One entry of `params`: its values, and the values other fields must have for it to be searched."""

    domain: Domain
    when: Mapping[str, tuple[Any, ...]]

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether `when` holds for a trial with these values (defaults included)."""
        return all(values[parent] in allowed for parent, allowed in self.when.items())


def _values(param: Param) -> Sequence[Any]:
    assert not isinstance(param.domain, FloatRange)
    return param.domain.values


def keeps_default(params: Mapping[str, Param], name: str) -> bool:
    """Whether some trial has the default: the field is not listed, or its `when` may not hold."""
    if name not in params:
        return True
    return any(
        (keeps_default(params, parent) and DEFAULTS[parent] not in allowed)
        or (parent in params and any(value not in allowed for value in _values(params[parent])))
        for parent, allowed in params[name].when.items()
    )


def can_be(params: Mapping[str, Param], name: str, value: Any) -> bool:
    """Whether some trial may have this value of the field. The field is not a float range."""
    if name in params and value in _values(params[name]):
        return True
    return value == DEFAULTS[name] and keeps_default(params, name)


def read_methods(file: YamlFile, node: yaml.Node) -> Methods:
    """The methods that a space compares, in the file's order. Mistakes are noted in `file`."""
    found: Methods = {}
    if isinstance(node, yaml.MappingNode) and not 1 <= len(node.value) <= MAX_METHODS:
        file.mistake(node, "methods", f"{len(node.value)} of them; write 1 to {MAX_METHODS}, or leave it out")
    for name, entry in file.mapping(node, "methods").items():
        key = f"methods.{one_line(name)}"
        if not (METHOD_NAME.fullmatch(name) and name.isprintable()):
            file.mistake(entry, key, "no name; write at most 60 printable characters")
        fixed = {
            field: value
            for field, at in file.mapping(entry, key, FIELDS).items()
            for value, _ in file.values([at], f"{key}.{field}", FIELDS[field])
        }
        same = next((other for other, fields in found.items() if fields == fixed), None)
        if same is not None:
            file.mistake(entry, key, f"fixes what {same} does; keep one")
        found[name] = fixed
    return found or {"": {}}


def read_params(file: YamlFile, node: yaml.Node, methods: Methods) -> dict[str, Param]:
    """The params in an order where parents come before the fields whose `when` names them.

    Mistakes are noted in `file`; the result is of use only if there are none.
    """
    entries = file.mapping(node, "params", FIELDS)
    parts = {
        name: file.mapping(entry, f"params.{name}", _PARTS)
        for name, entry in entries.items()
        if isinstance(entry, yaml.MappingNode)
    }
    domains = {name: _domain(file, name, entry, parts.get(name, {})) for name, entry in entries.items()}
    conditions = [
        condition
        for name in parts
        if "when" in parts[name]
        for condition in _conditions(file, name, parts[name]["when"], domains)
    ]
    when: dict[str, dict[str, tuple[Any, ...]]] = {name: {} for name in domains}
    for condition in conditions:
        when[condition.name][condition.parent] = tuple(value for value, _ in condition.values)
    order = _parents_first(file, entries, when, domains)
    # An entry with a mistake stands in as a value that equals no other, so it causes no further mistakes.
    params = {name: Param(domains[name] or Fixed(object()), when[name]) for name in order if name in domains}
    for condition in conditions:
        if domains.get(condition.parent, True):
            _check_possible(file, condition, params, methods)
    return params


def _domain(file: YamlFile, name: str, node: yaml.Node, parts: dict[str, yaml.Node]) -> Domain | None:
    key, knob = f"params.{name}", FIELDS[name]
    if isinstance(node, yaml.SequenceNode):
        file.mistake(node, key, "got a list; write {choice: [...]} to search it")
        return None
    if isinstance(node, yaml.ScalarNode):
        return next((Fixed(value) for value, _ in file.values([node], key, knob)), None)

    kinds = [kind for kind in _KINDS if kind in parts]
    if len(kinds) != 1:
        # One mistake is enough for {uniform: [1, 10]}: the unknown name is noted.
        if kinds or len(parts) == len(node.value):
            found = " and ".join(kinds) or "none"
            file.mistake(node, key, f"got {found} of the kinds choice, int, float; write one")
        return None
    if kinds == ["choice"]:
        return _choice(file, key, parts, knob)
    return _range(file, key, kinds[0], parts, knob)


def _choice(file: YamlFile, key: str, parts: dict[str, yaml.Node], knob: Knob) -> Choice | None:
    for extra in ("log", "step"):
        if extra in parts:
            file.mistake(parts[extra], f"{key}.{extra}", "does not go with choice; leave it out")
    node = parts["choice"]
    if not isinstance(node, yaml.SequenceNode):
        file.mistake(node, f"{key}.choice", f"got {shown(node)}; write a list, [...]")
        return None
    values = _distinct(file, f"{key}.choice", node.value, node, knob)
    return Choice(tuple(value for value, _ in values)) if values else None


def _range(
    file: YamlFile, key: str, kind: str, parts: dict[str, yaml.Node], knob: Knob
) -> IntRange | FloatRange | None:
    log, step = False, 1
    if "log" in parts:
        log = file.value(parts["log"], f"{key}.log", _LOG, otherwise=False)
    if "step" in parts and kind == "float":
        file.mistake(parts["step"], f"{key}.step", "goes with int; leave it out")
    elif "step" in parts:
        step = file.value(parts["step"], f"{key}.step", _STEP, otherwise=1)
        if log:
            file.mistake(parts["step"], f"{key}.step", "does not go with log; keep one of the two")

    node, key = parts[kind], f"{key}.{kind}"
    if knob.type not in (int, float):
        file.mistake(node, key, "the field takes words, not numbers; write {choice: [...]}")
    elif knob.type.__name__ != kind:
        file.mistake(node, key, f"the field is of type {knob.type.__name__}; write {knob.type.__name__}")
    elif not isinstance(node, yaml.SequenceNode) or len(node.value) != 2:
        file.mistake(node, key, f"got {_amount(node)}; write the two bounds, [low, high]")
    elif len(bounds := [value for value, _ in file.values(node.value, key, knob)]) == 2:
        low, high = bounds
        if low > high:
            file.mistake(node, key, f"low {low} is over high {high}; write [{high}, {low}]")
        elif log and low <= 0:
            file.mistake(node, key, f"low {low} with log; write a low above 0")
        else:
            return IntRange(low, high, step, log) if kind == "int" else FloatRange(low, high, log)
    return None


def _amount(node: yaml.Node) -> str:
    return f"{len(node.value)} values" if isinstance(node, yaml.SequenceNode) else shown(node)


def _distinct(
    file: YamlFile, key: str, nodes: list[yaml.Node], whole: yaml.Node, knob: Knob
) -> list[tuple[Any, yaml.Node]]:
    if not nodes:
        file.mistake(whole, key, "empty; write at least one value")
    distinct: dict[Any, yaml.Node] = {}
    for value, node in file.values(nodes, key, knob):
        if value in distinct:
            file.mistake(node, key, f"{shown(node)} is given twice; keep one")
        else:
            distinct[value] = node
    return list(distinct.items())


@dataclass(frozen=True)
class _Condition:
    """`when: {parent: values}` of the field `name`, with the nodes the values stand in."""

    name: str
    parent: str
    values: list[tuple[Any, yaml.Node]]


def _conditions(
    file: YamlFile, name: str, node: yaml.Node, domains: Mapping[str, Domain | None]
) -> Iterator[_Condition]:
    if isinstance(node, yaml.MappingNode) and not node.value:
        file.mistake(node, f"params.{name}.when", "empty; name a field, or leave it out")
    for parent, allowed in file.mapping(node, f"params.{name}.when", FIELDS).items():
        key = f"params.{name}.when.{parent}"
        if parent == name:
            file.mistake(allowed, key, "depends on itself; name another field")
        elif isinstance(domains.get(parent), FloatRange):
            file.mistake(allowed, key, f"{parent} is a float range; name a field with separate values")
        else:
            nodes = allowed.value if isinstance(allowed, yaml.SequenceNode) else [allowed]
            yield _Condition(name, parent, _distinct(file, key, nodes, allowed, FIELDS[parent]))


def _parents_first(
    file: YamlFile,
    entries: Mapping[str, yaml.Node],
    when: dict[str, dict[str, tuple[Any, ...]]],
    domains: dict[str, Domain | None],
) -> list[str]:
    """Every name after its parents. A circle is noted; its conditions and domains are taken out."""
    while True:
        try:
            return list(TopologicalSorter(when).static_order())
        except CycleError as error:
            circle = error.args[1][:-1]
            first = min(circle, key=list(entries).index)
            turn = circle.index(first)
            path = " -> ".join((*circle[turn:], *circle[:turn], first))
            file.mistake(entries[first], f"params.{first}.when", f"a circle, {path}; drop one condition")
            for name in circle:
                domains[name] = None
                for parent in circle:
                    when[name].pop(parent, None)


def _check_possible(
    file: YamlFile, condition: _Condition, params: Mapping[str, Param], methods: Methods
) -> None:
    parent = condition.parent
    key = f"params.{condition.name}.when.{parent}"
    for value, node in condition.values:
        possible = (
            fixed[parent] == value if parent in fixed else can_be(params, parent, value)
            for fixed in methods.values()
        )
        if not any(possible):
            file.mistake(node, key, f"{parent} is never {value!r} in this space; drop it or add it")
