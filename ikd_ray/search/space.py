"""The search space: a YAML file, checked as a whole, that becomes Optuna's define-by-run function or a grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

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
from ikd_ray.tasks import METRICS, Task
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

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Sampler = Literal["tpe", "grid"]
Selection = Literal["dev", "holdout"]

MAIN_METRIC = "dev/metric"
_METRICS = tuple(f"dev/{metric}" for metric in METRICS)
OBJECTIVES = (
    MAIN_METRIC,
    *_METRICS,
    *(f"student/{size}" for size in ("params", "encoder_params", "size_mb", "latency_ms")),
    "dev/attention_kl",
    "dev/teacher_agreement",
)
FIELDS = field_types(Trial)
DEFAULTS: dict[str, Any] = Trial().params()
MAX_GRID = 10_000
MAX_METHODS = 50
MAX_SEEDS = 100


@dataclass(frozen=True, kw_only=True)
class Param:
    """One entry of `params`: the values of a field, and the condition under which it is searched."""

    values: Sequence[Any]
    """All values; of a range of floats its bounds."""
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Other fields and the values that they must have."""

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Return whether `when` holds for a trial with these values (defaults included)."""
        return all(values[parent] in allowed for parent, allowed in self.when.items())


class Fixed(Param):
    """A value that every trial has."""


class Choice(Param):
    """One of several values."""


@dataclass(frozen=True, kw_only=True)
class IntRange(Param):
    """Integers from `low` to `high`, both included where the step meets them."""

    low: int
    high: int
    step: int = 1
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class FloatRange(Param):
    """Real numbers from `low` to `high`."""

    low: float
    high: float
    log: bool = False


Params = dict[str, Param]


@dataclass(frozen=True)
class Space:
    """A search space. Fields of `Trial` that `params` does not list keep their defaults.

    A `when` applies to the values that a trial has, defaults included; a parameter whose `when` does not hold keeps
    its field's default.
    """

    objectives: dict[str, Direction] = field(
        default_factory=lambda: {MAIN_METRIC: "max", "student/params": "min"}
    )
    """As in the file: `dev/metric` stands for the task's main metric, `dev/` for the split that selects."""
    params: Params = field(default_factory=dict)
    """By public name, parents before the parameters that depend on them."""
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    """The fields that each compared method fixes. A file that names no methods has one, without a name."""
    seeds: int = 1
    """Times that each configuration is trained, each with its own seed."""
    best_seeds: int = 0
    """Times that the best configuration of each method is retrained, each with a further seed."""
    sampler: Sampler = "tpe"
    selection: Selection = "dev"
    """Examples that teachers and students are chosen by: the dev set, or a tenth of the training set that nothing
    trains on (`ikd_ray.data.splits`), so that nothing is chosen by its dev score. A teacher that already has a
    classification head may have seen that tenth when its author fine-tuned it."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    prefix: PrefixConfig = field(default_factory=PrefixConfig)
    sharing: SharingConfig = field(default_factory=SharingConfig)
    assistant: Trial = field(default_factory=Trial)
    """Settings that assistants are distilled with, except for their depth."""
    text: str = ""
    """The file as written."""

    def for_method(self, method: str) -> Space:
        """Return the space of one method, which compares no methods itself."""
        fixed: Params = {name: Fixed(values=(value,)) for name, value in self.methods[method].items()}
        others = {name: param for name, param in self.params.items() if name not in fixed}
        return replace(self, params=fixed | others, methods={"": {}})

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Let an Optuna trial choose every active parameter, and return the fixed values.

        The caller merges them with `trial.params`. For the space of one method (`for_method`).
        """
        values, constants = dict(DEFAULTS), {}
        for name, param in self.params.items():
            if isinstance(param, Fixed):
                values[name] = constants[name] = param.values[0]
            elif param.is_active(values):
                values[name] = _suggest(trial, name, param)
        return constants

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination of the parameters once, fixed values included; the first varies slowest.

        For the space of one method (`for_method`).

        Raises:
            UsageError: a parameter is a float range, or there are more than `MAX_GRID` combinations.
        """
        for name, param in self.params.items():
            if isinstance(param, FloatRange):
                raise UsageError(f"params.{name}: a float range in a grid; write {{choice: [...]}}")
        rows = list(islice(combinations(self.params), MAX_GRID + 1))
        if len(rows) > MAX_GRID:
            raise UsageError(f"grid of more than {MAX_GRID:,} trials; give fewer values, or write tpe")
        return rows

    def possible_values(self, name: str) -> tuple[Any, ...]:
        """Return the values that a field has in some trial, defaults included; of a float range its bounds."""
        possible: dict[Any, None] = {}
        for method in self.methods:
            params = self.for_method(method).params
            possible |= dict.fromkeys(params[name].values if name in params else ())
            if _keeps_default(params, name):
                possible[DEFAULTS[name]] = None
        return tuple(possible)

    def selection_metric(self, task: Task) -> str:
        """Return the metric that models are chosen by where no objective applies.

        It is the task's main metric on the split that selects.
        """
        return self._on_selecting_split(f"dev/{task.metric}")

    def _on_selecting_split(self, metric: str) -> str:
        return f"{self.selection}/{metric.removeprefix('dev/')}" if metric.startswith("dev/") else metric

    def objectives_for(self, task: Task) -> dict[str, Direction]:
        """Return the objectives as metrics of a task on the split that selects.

        `dev/metric` becomes the task's main metric, and `dev/...` becomes `holdout/...` where the held-out examples
        select, so that a file reads the same for both.

        Raises:
            UsageError: an objective is a metric that the task does not have, or one is named twice.
        """
        measured = {f"dev/{metric}" for metric in task.metrics}
        resolved: dict[str, Direction] = {}
        for name, direction in self.objectives.items():
            metric = f"dev/{task.metric}" if name == MAIN_METRIC else name
            if metric in _METRICS and metric not in measured:
                available = ", ".join(sorted(measured))
                raise UsageError(f"objectives: {metric}: {task.name} has no such metric; it has {available}")
            if metric in resolved:
                raise UsageError(
                    f"objectives: {MAIN_METRIC} is {metric} for {task.name}; keep one of the two"
                )
            resolved[metric] = direction
        return {self._on_selecting_split(metric): direction for metric, direction in resolved.items()}


def _suggest(trial: BaseTrial, name: str, param: Param) -> Any:
    if isinstance(param, IntRange):
        # Optuna warns where the step does not meet `high`: give it the last value that it meets.
        return trial.suggest_int(name, param.low, param.values[-1], step=param.step, log=param.log)
    if isinstance(param, FloatRange):
        return trial.suggest_float(name, param.low, param.high, log=param.log)
    return trial.suggest_categorical(name, param.values)


def combinations(params: Params) -> Iterator[dict[str, Any]]:
    """Yield every combination of the parameters' values; parameters that are not active are left out."""
    rows: Iterable[dict[str, Any]] = [{}]
    for name, param in params.items():
        rows = _extended(rows, name, param)
    yield from rows


def _extended(rows: Iterable[dict[str, Any]], name: str, param: Param) -> Iterator[dict[str, Any]]:
    for row in rows:
        if param.is_active(DEFAULTS | row):
            yield from (row | {name: value} for value in param.values)
        else:
            yield row


def _keeps_default(params: Params, name: str) -> bool:
    """Return whether some trial has the default of a field: it is not listed, or its `when` may not hold."""
    if name not in params:
        return True
    return any(
        (_keeps_default(params, parent) and DEFAULTS[parent] not in allowed)
        or (parent in params and any(value not in allowed for value in params[parent].values))
        for parent, allowed in params[name].when.items()
    )


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
    return value == DEFAULTS[name] and _keeps_default(space.params, name)


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
