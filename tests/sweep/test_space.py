"""Search spaces: what a file says is what is sampled, and every mistake in it is named with its line."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ikd_ray.config import Trial, make_trial
from ikd_ray.errors import UsageError
from ikd_ray.sweep.space import MAX_GRID, OBJECTIVES, Space, load_space
from ikd_ray.tasks import Task

SHIPPED = Path(__file__).parents[2] / "search_spaces"
NAMES = ("default", "paper", "depth")
COLA = SimpleNamespace(name="cola", metric="mcc", metrics=("mcc",))
MRPC = SimpleNamespace(name="mrpc", metric="f1", metrics=("accuracy", "f1"))

CONDITIONAL = """\
params:
  cosine_threshold: {float: [0.01, 0.5], log: true, when: {regime: [pid, sid], train: layer}}
  train: {choice: [layer, upto], when: {regime: pid}}
  regime: {choice: [kd, pid, sid]}
  student_layers: {int: [1, 5], step: 2}
  batch_size: 16
"""

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def load(tmp_path):
    def load(text: str | bytes) -> Space:
        path = tmp_path / "space.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_space(path)

    return load


def mistakes(load, tmp_path, text: str | bytes) -> list[str]:
    """The message's lines without the file's name: `line: key: ...`."""
    with pytest.raises(UsageError) as caught:
        load(text)
    lines = str(caught.value).split("\n")
    prefix = f"{tmp_path / 'space.yaml'}:"
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def params(line: str) -> str:
    return f"params:\n  {line}\n"


MISTAKES = {
    # the file's shape
    "not a mapping": ("- a\n- b\n", "1: the file: got a list"),
    "a word": ("params\n", "1: the file: got params"),
    "empty": ("# nothing here\n", "1: the file: empty"),
    "not YAML": ("params:\n  regime: [kd\n  epochs: 3\n", "3: not YAML: "),
    "tab": ("params:\n\tregime: kd\n", "2: not YAML: "),
    "control character": ("sampler: tpe\nparams: \x07\n", "2: not YAML: character 0x7"),
    "no such character": ('params:\n  regime: "\\UFFFFFFFF"\n', "2: not YAML: "),
    "two documents": ("params: {}\n---\nparams: {}\n", "2: not YAML: "),
    "not UTF-8": (b"params:\n  regime: \xff\n", "2: not UTF-8"),
    "alias": ("params: &a {}\ndata: *a\n", "1: &a: an anchor"),
    "tag": ("params:\n  regime: !!str kd\n", "2: tag:yaml.org,2002:str: a tag"),
    "python tag": ("params: !!python/object/apply:os.system [ls]\n", "1: tag:yaml.org,2002:python"),
    "deep": ("params: " + "[" * 5000, "1: the file: nested deeper"),
    # names
    "top-level name": ("samplr: grid\n", "1: samplr: unknown name; did you mean sampler?"),
    "name of a param": (
        params("temprature: 2"),
        "2: params.temprature: unknown name; did you mean temperature?",
    ),
    "python name": (params("lambda_: 2"), "2: params.lambda_: unknown name; did you mean lambda?"),
    "nothing near": (params("x: 2"), "2: params.x: unknown name; known: regime, "),
    "number as name": (params("7: 2"), "2: params.7: unknown name"),
    "list as name": (params("? [a]\n  : 2"), "2: params.a list: unknown name"),
    "merge": (params("<<: {epochs: 1}"), "2: params.<<: unknown name"),
    "given twice": (
        "params:\n  epochs: 1\n  epochs: 2\n",
        "3: params.epochs: given twice, the first on line 2",
    ),
    "section twice": ("data: {}\nparams: {}\ndata: {}\n", "3: data: given twice, the first on line 1"),
    "params a list": ("params: [regime]\n", "1: params: got a list"),
    # dimensions
    "unknown kind": (params("temperature: {uniform: [1, 9]}"), "2: params.temperature.uniform: unknown name"),
    "no kind": (params("temperature: {log: true}"), "2: params.temperature: got none of the kinds"),
    "two kinds": (params("epochs: {int: [1, 2], choice: [1]}"), "2: params.epochs: got choice and int of"),
    "empty mapping": (params("epochs: {}"), "2: params.epochs: got none of the kinds"),
    "bare list": (params("regime: [kd, id]"), "2: params.regime: got a list; write {choice: [...]}"),
    "low over high": (
        params("epochs: {int: [5, 1]}"),
        "2: params.epochs.int: low 5 is over high 1; write [1, 5]",
    ),
    "one bound": (params("epochs: {int: [5]}"), "2: params.epochs.int: got 1 values; write the two bounds"),
    "three bounds": (params("epochs: {int: [1, 2, 3]}"), "2: params.epochs.int: got 3 values"),
    "bounds no list": (params("epochs: {int: 5}"), "2: params.epochs.int: got 5; write the two bounds"),
    "bound out of range": (
        params("epochs: {int: [0, 2]}"),
        "2: params.epochs.int: input should be greater than",
    ),
    "high out of range": (
        params("student_layers: {int: [1, 999]}"),
        "2: params.student_layers.int: input should",
    ),
    "float bound for int": (
        params("epochs: {int: [1, 2.5]}"),
        "2: params.epochs.int: input should be a valid int",
    ),
    "log at zero": (
        params("cosine_threshold: {float: [0, 0.5], log: true}"),
        "2: params.cosine_threshold.float: low 0.0 with log",
    ),
    "int log at zero": (params("seed: {int: [0, 9], log: true}"), "2: params.seed.int: low 0 with log"),
    "log no boolean": (
        params("lambda: {float: [0.1, 1], log: 1}"),
        "2: params.lambda.log: input should be a valid",
    ),
    "log with choice": (
        params("epochs: {choice: [1], log: true}"),
        "2: params.epochs.log: does not go with choice",
    ),
    "step with choice": (
        params("epochs: {choice: [1], step: 2}"),
        "2: params.epochs.step: does not go with choice",
    ),
    "step with float": (params("lambda: {float: [0, 1], step: 0.1}"), "2: params.lambda.step: goes with int"),
    "step zero": (params("epochs: {int: [1, 9], step: 0}"), "2: params.epochs.step: input should be greater"),
    "step with log": (
        params("epochs: {int: [1, 9], step: 2, log: true}"),
        "2: params.epochs.step: does not go with",
    ),
    "empty choice": (params("regime: {choice: []}"), "2: params.regime.choice: empty"),
    "choice no list": (params("regime: {choice: kd}"), "2: params.regime.choice: got kd; write a list"),
    "duplicate choices": (
        params("regime: {choice: [kd, id, kd]}"),
        "2: params.regime.choice: kd is given twice",
    ),
    "equal numbers": (
        params("temperature: {choice: [1, 1.0]}"),
        "2: params.temperature.choice: 1.0 is given twice",
    ),
    "choice not allowed": (
        "params:\n  regime:\n    choice:\n    - kd\n    - pdi\n",
        "5: params.regime.choice: input",
    ),
    "choice a list": (
        params("regime: {choice: [[kd]]}"),
        "2: params.regime.choice: got a list; write one value",
    ),
    "int for words": (params("regime: {int: [1, 2]}"), "2: params.regime.int: the field takes words"),
    "float for words": (params("train: {float: [1, 2]}"), "2: params.train.float: the field takes words"),
    "int for float": (
        params("temperature: {int: [1, 2]}"),
        "2: params.temperature.int: the field is of type float",
    ),
    "float for int": (params("epochs: {float: [1, 2]}"), "2: params.epochs.float: the field is of type int"),
    # fixed values
    "fixed not allowed": (params("regime: distil"), "2: params.regime: input should be 'hard', 'kd'"),
    "fixed out of range": (params("student_layers: 0"), "2: params.student_layers: input should be greater"),
    "boolean": (params("epochs: true"), "2: params.epochs: input should be a valid integer (got true)"),
    "boolean for a float": (
        params("temperature: yes"),
        "2: params.temperature: input should be a valid number",
    ),
    "boolean for a word": (
        params("train: on"),
        "2: params.train: input should be 'layer' or 'upto' (got on)",
    ),
    "nothing": (params("epochs:"), "2: params.epochs: input should be a valid integer (got nothing)"),
    "nan": (params("temperature: .nan"), "2: params.temperature: input should be a finite number (got .nan)"),
    "inf": (params("lambda: {float: [0, .inf]}"), "2: params.lambda.float: input should be a finite number"),
    "overflow": (params("lambda: 1e999"), "2: params.lambda: input should be a finite number (got 1e999)"),
    "quoted number": (
        params('learning_rate: "5e-5"'),
        "2: params.learning_rate: input should be a valid number",
    ),
    "exponent for an int": (
        params("epochs: 1e1"),
        "2: params.epochs: input should be a valid integer (got 1e1)",
    ),
    "broken int": (params("epochs: 0x_"), "2: params.epochs: input should be a valid integer (got 0x_)"),
    "huge int": (params("seed: " + "9" * 5000), "2: params.seed: input should be"),
    "huge hex": (params("seed: 0x" + "f" * 5000), "2: params.seed: input should be less than"),
    "date": (
        params("epochs: 2020-01-01"),
        "2: params.epochs: input should be a valid integer (got 2020-01-01)",
    ),
    "value sign": (params("regime: ="), "2: params.regime: input should be 'hard'"),
    "surrogate": (params('regime: "\\ud800"'), "2: params.regime: input should be a valid string"),
    # when
    "unknown parent": (
        params("epochs: {choice: [1], when: {regim: kd}}"),
        "2: params.epochs.when.regim: unknown name; did you mean regime?",
    ),
    "itself": (
        params("epochs: {choice: [1], when: {epochs: 1}}"),
        "2: params.epochs.when.epochs: depends on itself",
    ),
    "when no mapping": (params("epochs: {choice: [1], when: kd}"), "2: params.epochs.when: got kd"),
    "when empty": (params("epochs: {choice: [1], when: {}}"), "2: params.epochs.when: empty"),
    "when no values": (
        params("epochs: {choice: [1], when: {regime: []}}"),
        "2: params.epochs.when.regime: empty",
    ),
    "when not allowed": (
        params("epochs: {choice: [1], when: {regime: x}}"),
        "2: params.epochs.when.regime: input",
    ),
    "float parent": (
        "params:\n  epochs: {choice: [1], when: {lambda: 0.5}}\n  lambda: {float: [0, 1]}\n",
        "2: params.epochs.when.lambda: lambda is a float range",
    ),
    "never in the choices": (
        "params:\n  regime: {choice: [kd, id]}\n  epochs: {choice: [1], when: {regime: [kd, sid]}}\n",
        "3: params.epochs.when.regime: regime is never 'sid'",
    ),
    "never in the range": (
        "params:\n  epochs: {int: [1, 9], step: 2}\n  regime: {choice: [kd], when: {epochs: 2}}\n",
        "3: params.regime.when.epochs: epochs is never 2",
    ),
    "never the fixed value": (
        "params:\n  regime: id\n  epochs: {choice: [1], when: {regime: kd}}\n",
        "3: params.epochs.when.regime: regime is never 'kd'",
    ),
    "never the default": (
        params("epochs: {choice: [1], when: {regime: sid}}"),
        "2: params.epochs.when.regime: regime is never 'sid'",
    ),
    "never unset": (
        "params:\n  regime: kd\n  train: {choice: [upto], when: {regime: kd}}\n"
        "  epochs: {choice: [1], when: {train: layer}}\n",
        "4: params.epochs.when.train: train is never 'layer'",
    ),
    "circle": (
        "params:\n  regime: {choice: [kd], when: {train: layer}}\n"
        "  train: {choice: [upto], when: {epochs: 3}}\n"
        "  epochs: {choice: [1], when: {regime: kd}}\n",
        "2: params.regime.when: a circle, regime -> epochs -> train -> regime",
    ),
    # the rest of the file
    "objectives empty": ("objectives: {}\n", "1: objectives: empty"),
    "objectives nothing": ("objectives:\n", "1: objectives: got nothing"),
    "objectives a list": ("objectives: [dev/mcc]\n", "1: objectives: got a list"),
    "direction": (
        "objectives: {dev/mcc: maximize}\n",
        "1: objectives.dev/mcc: input should be 'max' or 'min'",
    ),
    "objective": (
        "objectives:\n  dev/acuracy: max\n",
        "2: objectives.dev/acuracy: unknown name; did you mean",
    ),
    "sampler": ("sampler: random\n", "1: sampler: input should be 'tpe' or 'grid' (got random)"),
    "float in a grid": (
        "sampler: grid\nparams:\n  lambda: {float: [0, 1]}\n",
        "3: params.lambda: a float range in a grid",
    ),
    "grid without end": (
        "sampler: grid\nparams:\n  seed: {int: [0, 2147483647]}\n",
        "1: sampler: grid of more than",
    ),
    "teacher": ("teacher:\n  epoch: 3\n", "2: teacher.epoch: unknown name; did you mean epochs?"),
    "teacher's value": (
        "teacher: {epochs: 0}\n",
        "1: teacher.epochs: input should be greater than or equal to 1",
    ),
    "data": ("data: {max_length: 5000}\n", "1: data.max_length: input should be less than or equal to 512"),
    "targets": (
        "params: {}\ntargets: {mode: never}\n",
        "2: targets.mode: input should be 'auto', 'stored' or",
    ),
    "section a word": ("targets: auto\n", "1: targets: got auto"),
}


@pytest.mark.parametrize(("text", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_line_and_key(load, tmp_path, text, expected):
    found = mistakes(load, tmp_path, text)
    assert found[0].startswith(expected)
    assert len(found) == (2 if expected == "1: &a: an anchor" else 1)
    assert all(line.isprintable() and len(line) < 400 for line in found)


def test_every_mistake_is_named(load, tmp_path):
    text = """\
objectives: {dev/mcc: up}
sampler: grid
params:
  regime: {choice: [kd, pdi, id]}
  temprature: 2
  epochs: {int: [9, 1]}
  lambda: {float: [0.1, 1], when: {regime: sid, epochs: 3}}
  internal_losses:
    choice: [kl, kl, cos]
    when: {regime: id, train: upto}
data: {max_length: 1}
extra: 1
"""
    assert [line.split(": ")[:2] for line in mistakes(load, tmp_path, text)] == [
        ["1", "objectives.dev/mcc"],
        ["4", "params.regime.choice"],
        ["5", "params.temprature"],
        ["6", "params.epochs.int"],
        ["7", "params.lambda.when.regime"],
        ["7", "params.lambda"],
        ["9", "params.internal_losses.choice"],
        ["10", "params.internal_losses.when.train"],
        ["11", "data.max_length"],
        ["12", "extra"],
    ]


def test_each_of_two_circles_is_named(load, tmp_path):
    text = """\
params:
  regime: {choice: [kd, id], when: {train: layer}}
  train: {choice: [layer, upto], when: {regime: kd}}
  epochs: {int: [1, 3], when: {batch_size: 32}}
  batch_size: {choice: [16, 32], when: {epochs: 3}}
  embeddings: {choice: [train], when: {train: upto}}
"""
    found = mistakes(load, tmp_path, text)
    assert [line.split(": ")[:2] for line in found] == [
        ["2", "params.regime.when"],
        ["4", "params.epochs.when"],
    ]


def test_a_mistake_in_a_parent_is_not_blamed_on_its_children(load, tmp_path):
    text = """\
params:
  regime: {choice: [kd, id}
"""
    assert len(mistakes(load, tmp_path, text)) == 1
    text = """\
params:
  regime: {chioce: [pid, sid]}
  train: {choice: [upto], when: {regime: pid}}
  epochs: {int: [1, 2], when: {train: [upto, layer]}}
"""
    assert [line.split(": ")[1] for line in mistakes(load, tmp_path, text)] == ["params.regime.chioce"]


@pytest.mark.parametrize("kind", ["missing", "directory", "large"])
def test_a_file_that_cannot_be_read(tmp_path, kind):
    path = tmp_path / "space.yaml"
    if kind == "directory":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(
        UsageError, match=r"space\.yaml: (no such file|is a directory|over 1 MiB)[^\n]*;"
    ) as caught:
        load_space(path)
    assert "\n" not in str(caught.value)


def test_what_is_not_written_keeps_its_default(load):
    for text in ("params: {}\n", "params:\nteacher:\n", "sampler: tpe\n", "{}\n"):
        space = load(text)
        assert space.grid() == [{}]
        assert space.suggest(optuna.create_study().ask()) == {}
        assert space.objectives == {"dev/metric": "max", "student/params": "min"}
        assert (space.teacher.epochs, space.data.max_length, space.targets.mode) == (5, 128, "auto")
        assert space.reachable("student_layers") == (3,)
        assert space.text == text


def test_sections_and_objectives_are_read(load):
    space = load(
        "objectives: {student/size_mb: min, dev/f1: max}\nteacher: {epochs: 2, learning_rate: 3e-5}\n"
        "data: {max_length: 64}\ntargets: {mode: online, budget_gb: 1}\n"
    )
    assert list(space.objectives.items()) == [("student/size_mb", "min"), ("dev/f1", "max")]
    assert (space.teacher.epochs, space.teacher.learning_rate, space.teacher.patience) == (2, 3e-5, 2)
    assert (space.data.max_length, space.targets.mode, space.targets.budget_gb) == (64, "online", 1.0)
    assert load("teacher: {learning_rate: null}\n").teacher.learning_rate is None


@pytest.mark.parametrize("number", ["5e-5", "5E-5", "5.0e-5", "0.00005", ".5e-4", "+5e-5"])
def test_a_small_float_may_be_written_either_way(load, number):
    space = load(params(f"learning_rate: {{choice: [{number}, 1e-4]}}"))
    assert space.reachable("learning_rate") == (5e-5, 1e-4)
    assert (
        load(params(f"learning_rate: {{float: [{number}, 1e-4]}}")).params["learning_rate"].domain.low == 5e-5
    )


def test_a_whole_number_in_a_floats_place_is_a_float(load):
    space = load("params:\n  temperature: {choice: [1, 2]}\n  lambda: 1\n")
    assert all(type(value) is float for row in space.grid() for value in row.values())


def test_objectives_are_resolved_for_the_task(load):
    space = load("objectives: {student/params: min, dev/metric: max}\n")
    assert list(space.objectives_for(COLA).items()) == [("student/params", "min"), ("dev/mcc", "max")]
    assert space.objectives_for(MRPC) == {"dev/f1": "max", "student/params": "min"}
    assert load("objectives: {dev/accuracy: max, dev/metric: max}\n").objectives_for(MRPC) == {
        "dev/accuracy": "max",
        "dev/f1": "max",
    }
    with pytest.raises(UsageError, match=r"objectives: dev/metric is dev/mcc for cola; keep one"):
        load("objectives: {dev/mcc: max, dev/metric: min}\n").objectives_for(COLA)
    with pytest.raises(UsageError, match=r"objectives: dev/pearson: cola has no such metric; it has dev/mcc"):
        load("objectives: {dev/pearson: max}\n").objectives_for(COLA)


def test_tasks_have_what_objectives_need():
    assert {"name", "metric", "metrics"} <= set(Task.__dataclass_fields__)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_recordable_metric_may_be_an_objective(load, objective):
    assert load(f"objectives: {{{objective}: min}}\n").objectives == {objective: "min"}


def holds(row: dict) -> bool:
    """What CONDITIONAL says, written out."""
    train = row.get("train", "layer")
    assert ("train" in row) == (row["regime"] == "pid")
    assert ("cosine_threshold" in row) == (row["regime"] in ("pid", "sid") and train == "layer")
    assert row["student_layers"] in (1, 3, 5)
    return True


def test_conditions_hold_in_a_study(load):
    space = load(CONDITIONAL)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1))
    rows = []
    for _ in range(60):
        trial = study.ask()
        constants = space.suggest(trial)
        assert constants == {"batch_size": 16}
        rows.append(trial.params)
        study.tell(trial, trial.params["student_layers"])
    assert all(holds(row) for row in rows)
    assert {row["regime"] for row in rows} == {"kd", "pid", "sid"}
    assert {row["student_layers"] for row in rows} == {1, 3, 5}
    assert {row.get("train") for row in rows} == {None, "layer", "upto"}


def suggestions(space: Space, seed: int, count: int, task=COLA) -> list[dict]:
    from ray.tune.search.optuna import OptunaSearch

    objectives = space.objectives_for(task)
    search = OptunaSearch(space.suggest, metric=list(objectives), mode=list(objectives.values()), seed=seed)
    rows = []
    for number in range(count):
        rows.append(search.suggest(str(number)))
        result = dict.fromkeys(objectives, float(rows[-1].get("student_layers", 0)))
        search.on_trial_complete(str(number), result)
    return rows


def test_conditions_hold_in_rays_search(load):
    rows = suggestions(load(CONDITIONAL), seed=1, count=40)
    assert all(holds(row) and row["batch_size"] == 16 for row in rows)
    assert {row["regime"] for row in rows} == {"kd", "pid", "sid"}


def test_equal_seeds_give_equal_suggestions():
    space = load_space(SHIPPED / "default.yaml")
    first = suggestions(space, seed=7, count=15)
    assert suggestions(pickle.loads(pickle.dumps(space)), seed=7, count=15) == first
    assert suggestions(space, seed=8, count=15) != first


def test_a_step_that_misses_the_high_end_is_no_warning(load, recwarn):
    space = load(params("epochs: {int: [1, 6], step: 2}"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(40):
        trial = study.ask()
        space.suggest(trial)
        seen.add(trial.params["epochs"])
    assert seen == set(space.reachable("epochs")) == {1, 3, 5}
    assert not [warning for warning in recwarn if "step" in str(warning.message)]


def test_a_grid_has_every_combination_once(load):
    text = CONDITIONAL.replace("{float: [0.01, 0.5], log: true,", "{choice: [0.1, 0.2],")
    rows = load("sampler: grid\n" + text).grid()
    assert all(holds(row) and row["batch_size"] == 16 for row in rows)
    # kd: 1; pid: layer with 2 thresholds, upto with none; sid: 2 thresholds. Each at 3 depths.
    assert len(rows) == (1 + 3 + 2) * 3
    assert len({tuple(sorted(row.items())) for row in rows}) == len(rows)
    assert len({make_trial(row) for row in rows}) == len(rows)


def test_what_is_sampled_is_a_row_of_the_grid(load):
    space = load(CONDITIONAL.replace("{float: [0.01, 0.5], log: true,", "{choice: [0.1, 0.2],"))
    assert all(row in space.grid() for row in suggestions(space, seed=3, count=30))


def test_a_condition_on_an_unlisted_field_looks_at_its_default(load):
    space = load("sampler: grid\nparams:\n  epochs: {choice: [1, 2], when: {regime: kd}}\n")
    assert space.grid() == [{"epochs": 1}, {"epochs": 2}]
    assert space.reachable("epochs") == (1, 2)


def test_only_separate_values_make_a_grid(load):
    with pytest.raises(UsageError, match=r"params\.cosine_threshold: a float range in a grid"):
        load(CONDITIONAL).grid()
    assert load("sampler: grid\nparams: {lambda: 0.5}\n").grid() == [{"lambda": 0.5}]
    assert len(load(f"sampler: grid\nparams: {{seed: {{int: [1, {MAX_GRID}]}}}}\n").grid()) == MAX_GRID


def test_reachable_values(load):
    space = load(CONDITIONAL)
    assert space.reachable("student_layers") == (1, 3, 5)
    assert space.reachable("regime") == ("kd", "pid", "sid")
    assert space.reachable("batch_size") == (16,)
    assert space.reachable("epochs") == (3,)
    with pytest.raises(ValueError, match="cosine_threshold is a float range"):
        space.reachable("cosine_threshold")
    sometimes = "params:\n  regime: {choice: [kd, id]}\n  student_layers: {int: [1, 2], when: {regime: %s}}\n"
    assert load(sometimes % "id").reachable("student_layers") == (1, 2, 3)
    assert load(sometimes % "[kd, id]").reachable("student_layers") == (1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_spaces_make_valid_trials(name):
    space = load_space(SHIPPED / f"{name}.yaml")
    rows = space.grid() if space.sampler == "grid" else suggestions(space, seed=0, count=50)
    for row in rows:
        trial = make_trial(row)
        assert trial.params().items() >= row.items()
    assert space.text.startswith("# ")


def test_shipped_spaces_are_all_tested():
    assert {path.stem for path in SHIPPED.glob("*.yaml")} >= set(NAMES)


def test_shipped_grids():
    paper, depth = (load_space(SHIPPED / f"{name}.yaml").grid() for name in ("paper", "depth"))
    assert [(row["regime"], row.get("soft_labels")) for row in paper] == [
        ("hard", None),
        ("kd", None),
        ("id", None),
        ("pid", None),
        ("sid", "top"),
        ("sid", "always"),
    ]
    assert {row["student_layers"] for row in paper} == {3}
    assert [(row["regime"], row["student_layers"]) for row in depth] == [
        (regime, layers) for regime in ("kd", "sid") for layers in range(1, 6)
    ]


def test_the_default_space_searches_each_regimes_own_parameters():
    shared = {
        "regime",
        "student_layers",
        "student_init",
        "temperature",
        "lambda",
        "learning_rate",
        "epochs",
    }
    internal = shared | {"internal_losses", "internal_weight"}
    staged = internal | {"soft_labels", "epochs_per_layer", "cosine_threshold", "top_trains"}
    expected = {"kd": shared, "id": internal, "pid": staged, "sid": staged}
    rows = suggestions(load_space(SHIPPED / "default.yaml"), seed=0, count=50)
    assert {row["regime"] for row in rows} == set(expected)
    assert all(set(row) == expected[row["regime"]] for row in rows)


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
    optional={"sampler": st.sampled_from(["tpe", "grid"]), "data": TREES},
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
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    constants = space.suggest(trial)
    make_trial({**trial.params, **constants})
    if space.sampler == "grid":
        for row in space.grid()[:20]:
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
