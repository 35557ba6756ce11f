"""The search space: a YAML file, validated as a whole, as Optuna's define-by-run function or as a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, Field

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
from ikd_ray.search.parameters import (
    DEFAULTS,
    Fixed,
    FloatRange,
    Methods,
    Param,
    keeps_default,
    read_methods,
    read_params,
)
from ikd_ray.tasks import METRICS, Task
from ikd_ray.yaml_file import Knob, YamlFile, knobs

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
MAX_GRID = 10_000

_SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": TeacherConfig,
    "data": DataConfig,
    "targets": TargetConfig,
    "prefix": PrefixConfig,
    "sharing": SharingConfig,
    "assistant": Trial,
}
_LEFT_OUT = {"assistant": ("student_layers", *NOT_IN_ASSISTANTS)}  # fields that a section does not take
MAX_SEEDS = 100
_DIRECTION = Knob(Direction)
_SINGLE = {  # top-level names of one value
    "sampler": Knob(Sampler, default="tpe"),
    "selection": Knob(Selection, default="dev"),
    "seeds": Knob(int, Field(ge=1, le=MAX_SEEDS), default=1),
    "best_seeds": Knob(int, Field(ge=0, le=MAX_SEEDS), default=0),
}
_DEFAULT_OBJECTIVES: dict[str, Direction] = {MAIN_METRIC: "max", "student/params": "min"}


@dataclass(frozen=True)
class Space:
    """What a sweep searches. Fields of `Trial` that `params` does not list keep their defaults.

    A `when` looks at the values a trial has, defaults included; a parameter whose `when` does not hold keeps
    its field's default.
    """

    objectives: dict[str, Direction]
    """As the file names them: `dev/metric` stands for a task's main metric, `dev/` for the split that selects."""
    params: dict[str, Param]
    """By public name, parents before the parameters that depend on them."""
    methods: Methods
    """What is compared: by name the fields that a method fixes, whatever `params` has of them. Where the file names
    none, one without a name that fixes nothing."""
    seeds: int
    """Times that each configuration is trained, each with a seed of its own."""
    best_seeds: int
    """Times that each method's best configuration is trained once more, each with a further seed."""
    sampler: Sampler
    selection: Selection
    """Which examples teachers and students are chosen by: dev's, or a tenth of the training set, on which nothing
    trains then (`ikd_ray.data.splits`), so that dev is scored and never chosen on. A teacher that has a head
    already was fine-tuned by its maker, maybe on that tenth too."""
    teacher: TeacherConfig
    data: DataConfig
    targets: TargetConfig
    prefix: PrefixConfig
    sharing: SharingConfig
    assistant: Trial
    """How assistants are distilled, but for their depth."""
    text: str
    """The file as written."""

    def for_method(self, method: str) -> Space:
        """The space of one method, which has itself none."""
        fixed = {name: Param(Fixed(value), {}) for name, value in self.methods[method].items()}
        others = {name: param for name, param in self.params.items() if name not in fixed}
        return replace(self, params=fixed | others, methods={"": {}})

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Calls `trial.suggest_*` for the parameters whose `when` holds; returns the file's fixed values.

        The caller merges the two. Of the space of one method (`for_method`).
        """
        values, constants = dict(DEFAULTS), {}
        for name, param in self.params.items():
            if isinstance(param.domain, Fixed):
                values[name] = constants[name] = param.domain.value
            elif param.active(values):
                values[name] = param.domain.suggest(trial, name)
        return constants

    def grid(self) -> list[dict[str, Any]]:
        """Of a method's space every combination of the parameters once, fixed values included; the first varies
        slowest.

        Raises:
            UsageError: a parameter is a float range, or there are more than `MAX_GRID` combinations.
        """
        rows: list[dict[str, Any]] = [{}]
        for name, param in self.params.items():
            longer = (row | more for row in rows for more in _choices(name, param, DEFAULTS | row))
            rows = list(islice(longer, MAX_GRID + 1))
        if len(rows) > MAX_GRID:
            raise UsageError(f"grid of more than {MAX_GRID:,} trials; give fewer values, or write tpe")
        return rows

    def possible_values(self, name: str) -> tuple[Any, ...]:
        """The values a field can take in some trial, its default included where its `when` may not hold.

        Raises:
            ValueError: the field is a float range, which has no list of values.
        """
        found = (value for method in self.methods for value in self.for_method(method)._possible_values(name))
        return tuple(dict.fromkeys(found))

    def _possible_values(self, name: str) -> tuple[Any, ...]:
        domain = self.params[name].domain if name in self.params else None
        if isinstance(domain, FloatRange):
            raise ValueError(f"{name} is a float range")
        values = tuple(domain.values) if domain else ()
        default = DEFAULTS[name]
        return (*values, default) if default not in values and keeps_default(self.params, name) else values

    def minimum(self, name: str) -> Any:
        """The least value that a field of numbers can take in some trial."""
        return min(self.for_method(method)._minimum(name) for method in self.methods)

    def _minimum(self, name: str) -> Any:
        domain = self.params[name].domain if name in self.params else None
        return domain.low if isinstance(domain, FloatRange) else min(self._possible_values(name))

    def selection_metric(self, task: Task) -> str:
        """What models are chosen by where no objective says it: the task's main metric on the split that selects."""
        return self._selecting(f"dev/{task.metric}")

    def _selecting(self, metric: str) -> str:
        return f"{self.selection}/{metric.removeprefix('dev/')}" if metric.startswith("dev/") else metric

    def objectives_for(self, task: Task) -> dict[str, Direction]:
        """The objectives with `dev/metric` replaced by the task's main metric, and `dev/...` by `holdout/...` where
        the held-out examples select: files are written alike for both.

        Raises:
            UsageError: an objective is a metric that the task does not have, or one is named twice.
        """
        measured = {f"dev/{metric}" for metric in task.metrics}
        resolved: dict[str, Direction] = {}
        for name, direction in self.objectives.items():
            metric = f"dev/{task.metric}" if name == MAIN_METRIC else name
            if metric in _METRICS and metric not in measured:
                known = ", ".join(sorted(measured))
                raise UsageError(f"objectives: {metric}: {task.name} has no such metric; it has {known}")
            if metric in resolved:
                raise UsageError(
                    f"objectives: {MAIN_METRIC} is {metric} for {task.name}; keep one of the two"
                )
            resolved[metric] = direction
        return {self._selecting(metric): direction for metric, direction in resolved.items()}


def load_space(path: Path) -> Space:
    """Reads and validates a space file.

    Raises:
        UsageError: `path:line: key: what is wrong; what would be right`, a line for each mistake.
    """
    file = YamlFile(path, "search space", "`params: {}` for one trial of defaults")
    entries = file.mapping(file.root, "", ("objectives", "methods", *_SINGLE, "params", *_SECTIONS))
    sections: dict[str, Any] = {
        name: _section(file, name, model, entries) for name, model in _SECTIONS.items()
    }
    methods = read_methods(file, entries["methods"]) if _has(entries, "methods") else {"": {}}
    space = Space(
        objectives=_objectives(file, entries),
        params=read_params(file, entries["params"], methods) if _has(entries, "params") else {},
        methods=methods,
        **{
            name: file.value(entries[name], name, knob, knob.default) if name in entries else knob.default
            for name, knob in _SINGLE.items()
        },
        **sections,
        text=file.text,
    )
    if space.sampler == "grid":
        _check_grid(file, space, entries)
    _check_seeds(file, space, entries)
    file.raise_mistakes()
    return space


def _has(entries: Mapping[str, yaml.Node], name: str) -> bool:
    """Whether a section is there. One whose every line is commented out is not."""
    return name in entries and entries[name].tag != "tag:yaml.org,2002:null"


def _objectives(file: YamlFile, entries: Mapping[str, yaml.Node]) -> dict[str, Direction]:
    if "objectives" not in entries:
        return dict(_DEFAULT_OBJECTIVES)
    node = entries["objectives"]
    if isinstance(node, yaml.MappingNode) and not node.value:
        file.mistake(node, "objectives", "empty; name at least one, as in {dev/metric: max}")
    directions = file.mapping(node, "objectives", OBJECTIVES)
    return {name: file.value(at, f"objectives.{name}", _DIRECTION, "max") for name, at in directions.items()}


def _section(
    file: YamlFile, name: str, model: type[BaseModel], entries: Mapping[str, yaml.Node]
) -> BaseModel:
    fields = {field: knob for field, knob in knobs(model).items() if field not in _LEFT_OUT.get(name, ())}
    given = file.mapping(entries[name], name, fields) if _has(entries, name) else {}
    return model(
        **{
            field: file.value(node, f"{name}.{field}", fields[field], fields[field].default)
            for field, node in given.items()
        }
    )


def _check_grid(file: YamlFile, space: Space, entries: Mapping[str, yaml.Node]) -> None:
    floats = [name for name, param in space.params.items() if isinstance(param.domain, FloatRange)]
    for name_node, node in entries["params"].value if floats else ():
        if name_node.value in floats:
            file.mistake(node, f"params.{name_node.value}", "a float range in a grid; write {choice: [...]}")
    if not floats:
        try:
            for method in space.methods:
                space.for_method(method).grid()
        except UsageError as error:
            file.mistake(entries["sampler"], "sampler", str(error))


def _check_seeds(file: YamlFile, space: Space, entries: Mapping[str, yaml.Node]) -> None:
    named = "seed" in space.params or any("seed" in fixed for fixed in space.methods.values())
    for name in ("seeds", "best_seeds"):
        if named and getattr(space, name) != _SINGLE[name].default:
            file.mistake(entries[name], name, "the space names seed itself; keep one of the two")


def _choices(name: str, param: Param, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a parameter adds to a row of the grid: each of its values, or nothing where it is not active."""
    if isinstance(param.domain, FloatRange):
        raise UsageError(f"params.{name}: a float range in a grid; write {{choice: [...]}}")
    if not param.active(values):
        yield {}
    else:
        yield from ({name: value} for value in param.domain.values)
