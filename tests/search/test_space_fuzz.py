"""Any space file loads or is a usage error, and every space that loads can be sampled."""

import optuna
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


def loads_or_explains(load, content: str | bytes) -> None:
    try:
        space = load(content)
    except UsageError as error:
        message = str(error)
    else:
        message = ""
        samples_are_valid(space)
    assert all("space.yaml:" in line and line.isprintable() for line in message.split("\n") if message)


def samples_are_valid(space: Space) -> None:
    for method in space.methods:
        own = space.for_method(method)
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
        constants = own.suggest(trial)
        make_trial({**trial.params, **constants})
        if space.sampler == "grid":
            for row in own.grid()[:20]:
                make_trial(row)


ANY = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@ANY
@given(text=MARKS)
def test_any_text_loads_or_is_a_usage_error(load, text):
    loads_or_explains(load, text.encode("utf-8", "surrogatepass"))


@ANY
@given(content=st.binary(max_size=40))
def test_any_bytes_load_or_are_a_usage_error(load, content):
    loads_or_explains(load, content)


@ANY
@given(tree=TREES | NEAR_MISSES)
def test_any_tree_loads_or_is_a_usage_error(load, tree):
    loads_or_explains(load, yaml.safe_dump(tree, allow_unicode=True))
