"""Configurations that a search chooses among: drawn at random, or from known ones with a few parameters changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ikd_ray.search.space import DEFAULTS, FloatRange, IntRange, Param, Space

Configuration = dict[str, Any]
"""Values of a space's active parameters; other fields keep their defaults."""
MAX_CHANGES = 2  # parameters that differ between a configuration and one made from it


def draw(space: Space, rng: np.random.Generator) -> Configuration:
    """Draw a configuration of one method's space, each parameter independently."""
    return redraw(space, {}, space.params, rng)


def mutate(space: Space, known: Mapping[str, Any], rng: np.random.Generator) -> Configuration:
    """Return a configuration of searched parameters with up to `MAX_CHANGES` of them drawn anew."""
    searched = list(known)
    changes = min(1 + int(rng.integers(MAX_CHANGES)), len(searched))
    changed = rng.choice(len(searched), changes, replace=False) if searched else ()
    return redraw(space, known, [searched[index] for index in changed], rng)


def redraw(
    space: Space, known: Mapping[str, Any], names: Collection[str], rng: np.random.Generator
) -> Configuration:
    """Draw some of a configuration's parameters anew, and those that it lacks.

    Args:
        space: the space of one method.
        known: the configuration.
        names: the parameters to draw; the others keep their values where they are still searched.
        rng: the source of randomness.
    """
    values, drawn = dict(DEFAULTS), {}
    for name, param in space.params.items():
        if param.is_active(values):
            keeps = name in known and name not in names
            drawn[name] = values[name] = known[name] if keeps else _draw_value(param, rng)
    return drawn


def _draw_value(param: Param, rng: np.random.Generator) -> Any:
    if isinstance(param, FloatRange):
        if param.log:
            value = math.exp(rng.uniform(math.log(param.low), math.log(param.high)))
            return min(max(value, param.low), param.high)
        return float(rng.uniform(param.low, param.high))
    if isinstance(param, IntRange) and param.log:
        # Each integer stands for the interval of half a step to both sides, as in Optuna.
        low, high = math.log(param.low - 0.5), math.log(param.high + 0.5)
        return min(max(round(math.exp(rng.uniform(low, high))), param.low), param.high)
    return param.values[int(rng.integers(len(param.values)))]


class Features:
    """Numbers between 0 and 1 that stand for a configuration, for a regression model.

    A range becomes its position on its scale, separate numbers their rank, and other values an indicator each. An
    inactive parameter has the value of its field's default.
    """

    def __init__(self, space: Space) -> None:
        """Describe the searched parameters of one method's space."""
        self._params = {name: param for name, param in space.params.items() if len(set(param.values)) > 1}

    def column(self, name: str) -> int | None:
        """Return the index of the number that stands for a numerical parameter; None where that is not searched."""
        if name not in self._params:
            return None
        assert _encode(self._params[name], self._params[name].values[:1]).shape[1] == 1, name
        index = list(self._params).index(name)
        before = list(self._params.values())[:index]
        return 1 + sum(_encode(param, param.values[:1]).shape[1] for param in before)

    def encode(self, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return an array of shape (configurations, features)."""
        columns = [np.zeros((len(configurations), 1))]  # at least one
        for name, param in self._params.items():
            values = [row.get(name, DEFAULTS[name]) for row in configurations]
            columns.append(_encode(param, values))
        return np.concatenate(columns, axis=1)


def _encode(param: Param, values: Sequence[Any]) -> np.ndarray:
    if isinstance(param, FloatRange | IntRange):
        ends, numbers = np.array([param.low, param.high], dtype=float), np.array(values, dtype=float)
        if param.log:
            ends, numbers = np.log(ends), np.log(np.maximum(numbers, 1e-300))
        return np.clip((numbers - ends[0]) / (ends[1] - ends[0]), 0, 1)[:, None]
    if all(isinstance(value, int | float) for value in param.values):
        ranks = np.searchsorted(sorted(param.values), np.array(values, dtype=float))
        return ranks[:, None] / (len(param.values) - 1)
    return np.array([[float(value == each) for each in param.values] for value in values])
