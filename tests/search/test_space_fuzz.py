"""Any space file loads or is a usage error, and every space that loads can be sampled."""

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ikd_ray.config import Trial, make_trial
from ikd_ray.errors import UsageError
from ikd_ray.search.space import OBJECTIVES, Space

optuna.logging.set_verbosity(optuna.logging.WARNING)


WORDS = st.sampled_from(
    [
        *(
            "params",
            "objectives",
            "sampler",
            "teacher",
            "data",
            "choice",
            "int",
            "float",
            "when",
            "log",
            "step",
        ),
        *("kd", "sid", "top", "grid", "tpe", "max"),
        *(*Trial().params(), *OBJECTIVES),
    ]
)
SCALARS = (
    WORDS | st.none() | st.booleans() | st.integers(-3, 9) | st.integers() | st.floats() | st.text(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SCALARS, inner, max_size=4),
    max_leaves=20,
)
NUMBERS = st.integers(-2, 12) | st.floats(0, 12)
VALUES = st.sampled_from(["hard", "kd", "id", "pid", "sid", "layer", "upto", "all", "head"]) | NUMBERS
FIELDS = st.sampled_from([*Trial().params()])
DIMENSIONS = VALUES | st.fixed_dictionaries(
    {},
    optional={
        "choice": st.lists(VALUES, max_size=3),
        "int": st.lists(st.integers(-1, 9), min_size=2, max_size=2),
        "float": st.lists(NUMBERS, min_size=2, max_size=2),
        "log": st.booleans(),
        "step": st.integers(0, 3),
        "when": st.dictionaries(FIELDS, VALUES | st.lists(VALUES, max_size=3), max_size=2),
    },
)
NEAR_MISSES = st.fixed_dictionaries(
    {"params": st.dictionaries(FIELDS, DIMENSIONS, max_size=4)},
    optional={
        "sampler": st.sampled_from(["tpe", "grid"]),
        "data": TREES,
        "methods": st.dictionaries(WORDS, st.dictionaries(FIELDS, VALUES, max_size=2), max_size=3),
        "seeds": st.integers(-1, 3),
        "best_seeds": st.integers(-1, 3),
    },
)
MARKS = st.lists(
    st.sampled_from([*"[]{}:,#&*!|>'\"%@`?-<=~\n\t \\\x00\x85\u2028\ufeff", "---", "0x_", "\\U", "5e-5"])
    | WORDS
    | st.text(max_size=3),
    max_size=25,
).map("".join)


def samples_are_valid(space: Space) -> None:
    for method in space.methods:
        own = space.for_method(method)
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        constants = own.suggest(trial)
        make_trial({**trial.params, **constants})
        if space.sampler == "grid":
            for row in own.grid()[:20]:
                make_trial(row)


UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FILES = {
    "marks": MARKS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    "bytes": st.binary(max_size=40),
    "trees": (TREES | NEAR_MISSES).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)),
}


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=200, suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_any_file_loads_or_is_a_usage_error(load, kind, data):
    mistakes = []
    try:
        samples_are_valid(load(data.draw(FILES[kind])))
    except UsageError as error:
        mistakes = str(error).split("\n")
    assert all("space.yaml:" in line and line.isprintable() for line in mistakes)
