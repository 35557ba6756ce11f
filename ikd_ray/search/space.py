"""The search space: Optuna's define-by-run function, or a grid. `space_file` reads it from a YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from ikd_ray.config import (
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
from ikd_ray.tasks import ERROR_METRICS, METRICS, PROBABILITY_METRICS, Task

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Sampler = Literal["cost_aware", "tpe", "grid"]
Selection = Literal["dev", "holdout"]

MAIN_METRIC = "dev/metric"
_METRICS = tuple(
    f"dev/{metric}" for metric in (*METRICS, *PROBABILITY_METRICS, *ERROR_METRICS)
)  # depend on the task
OBJECTIVES = (
    MAIN_METRIC,
    *(f"dev/{metric}" for metric in METRICS),
    *(f"student/{size}" for size in ("params", "encoder_params", "size_mb", "latency_ms")),
    "dev/attention_kl",
    "dev/teacher_agreement",
    *(f"dev/{metric}" for metric in (*PROBABILITY_METRICS, *ERROR_METRICS)),
)
DEFAULTS: dict[str, Any] = Trial().params()
MAX_GRID = 10_000


@dataclass(frozen=True, kw_only=True)
class Param:
    """One entry of `params`: the values of a field, and the condition under which it is searched."""

    values: Sequence[Any]
    """All values; of a range of floats its bounds."""
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Other fields and the values that they must have."""

    def contains(self, value: Any) -> bool:
        """Return whether a value is one of the entry's."""
        return value in self.values

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

    def contains(self, value: Any) -> bool:
        """Return whether a value is in the range."""
        return self.low <= value <= self.high


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
    start: tuple[dict[str, Any], ...] = ()
    """Configurations that are tried first; parameters that they leave out have their defaults."""
    methods: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    """The fields that each compared method fixes. A file that names no methods has one, without a name."""
    seeds: int = 1
    """Times that each configuration is trained, each with its own seed."""
    best_seeds: int = 0
    """Times that the best configuration of each method is retrained, each with a further seed."""
    sampler: Sampler = "cost_aware"
    precision: Precision = "auto"
    """Precision of the matrix products of training, the teacher's too; `auto` is bfloat16 on devices that have
    it, else float32. Models are evaluated in float32, as they are exported."""
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
        own = replace(self, params=fixed | others, methods={"": {}})
        return replace(own, start=tuple(row for row in self.start if not own.explain_misfit(row)))

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

    def explain_misfit(self, row: Mapping[str, Any]) -> str | None:
        """Return why the configuration that has these values, and else defaults, is none of the space's; None if it is.

        For the space of one method (`for_method`).
        """
        values, not_given = DEFAULTS | dict(row), ""
        for name, value in row.items():
            if name not in self.params and value != DEFAULTS[name]:
                return f"{name}: params does not search it; leave it out, or add it there"
        for name, param in self.params.items():
            if isinstance(param, Fixed):
                values[name] = param.values[0]
                if row.get(name, values[name]) != values[name]:
                    return f"{name}: {row[name]!r}, but every trial has {values[name]!r}; leave it out"
            elif not param.is_active(values):
                if name in row:
                    return f"{name}: its `when` does not hold for this configuration; leave it out"
            elif not param.contains(values[name]):
                among = "is not among its values in params; write one of them"
                if name in row:
                    return f"{name}: {row[name]!r} {among}"
                not_given = not_given or f"{name}: not given, and its default {values[name]!r} {among}"
        return not_given or None

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
            if keeps_default(params, name):
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
        further = ERROR_METRICS if task.is_regression else PROBABILITY_METRICS
        measured = {f"dev/{metric}" for metric in (*task.metrics, *further)}
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


def keeps_default(params: Params, name: str) -> bool:
    """Return whether some trial has the default of a field: it is not listed, or its `when` may not hold."""
    if name not in params:
        return True
    return any(
        (keeps_default(params, parent) and DEFAULTS[parent] not in allowed)
        or (parent in params and any(value not in allowed for value in params[parent].values))
        for parent, allowed in params[name].when.items()
    )
