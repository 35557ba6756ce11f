"""Search spaces: samples and grids follow the file."""

from pathlib import Path

import optuna
import pytest

from ikd_ray.config import make_trial
from ikd_ray.errors import UsageError
from ikd_ray.search.space import MAX_GRID, OBJECTIVES, Space
from ikd_ray.search.space_file import load_space
from ikd_ray.tasks import TASKS

SHIPPED = Path(__file__).parents[2] / "search_spaces"
COLA, MRPC = TASKS["cola"], TASKS["mrpc"]

CONDITIONAL = """\
params:
  cosine_threshold: {float: [0.01, 0.5], log: true, when: {regime: [pid, sid], train: layer}}
  train: {choice: [layer, upto], when: {regime: pid}}
  regime: {choice: [kd, pid, sid]}
  student_layers: {int: [1, 5], step: 2}
  batch_size: 16
"""

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_missing_entries_have_defaults(load):
    for text in ("params: {}\n", "params:\nteacher:\n", "sampler: tpe\n", "{}\n"):
        space = load(text)
        assert space.grid() == [{}]
        assert space.suggest(optuna.create_study().ask()) == {}
        assert space.objectives == {"dev/metric": "max", "student/params": "min"}
        assert (space.teacher.epochs, space.data.max_length, space.targets.mode) == (5, 128, "auto")
        assert space.possible_values("student_layers") == (3,)
        assert space.text == text


def test_sections_and_objectives_are_read(load):
    space = load(
        "objectives: {student/size_mb: min, dev/f1: max}\nteacher: {epochs: 2, learning_rate: 3e-5}\n"
        "data: {max_length: 64}\ntargets: {mode: online, budget_gb: 1}\n"
        "prefix: {memory_gb: 0.5, disk_gb: 0}\n"
    )
    assert list(space.objectives.items()) == [("student/size_mb", "min"), ("dev/f1", "max")]
    assert (space.teacher.epochs, space.teacher.learning_rate, space.teacher.patience) == (2, 3e-5, 2)
    assert (space.data.max_length, space.targets.mode, space.targets.budget_gb) == (64, "online", 1.0)
    assert (space.prefix.memory_gb, space.prefix.disk_gb) == (0.5, 0.0)
    assert load("teacher: {learning_rate: null}\n").teacher.learning_rate is None


@pytest.mark.parametrize("number", ["5e-5", "5E-5", "5.0e-5", "0.00005", ".5e-4", "+5e-5"])
def test_a_small_float_may_be_written_either_way(load, number):
    space = load(f"params: {{learning_rate: {{choice: [{number}, 1e-4]}}}}")
    assert space.possible_values("learning_rate") == (5e-5, 1e-4)
    assert load(f"params: {{learning_rate: {{float: [{number}, 1e-4]}}}}").params["learning_rate"].low == 5e-5


def test_a_whole_number_in_a_floats_place_is_a_float(load):
    space = load("params:\n  temperature: {choice: [1, 2]}\n  lambda: 1\n")
    assert all(type(value) is float for row in space.grid() for value in row.values())


def test_objectives_are_resolved_for_the_task(load):
    space = load("objectives: {student/params: min, dev/metric: max}\n")
    assert list(space.objectives_for(COLA).items()) == [("student/params", "min"), ("dev/mcc", "max")]
    assert space.objectives_for(MRPC) == {"dev/f1": "max", "student/params": "min"}
    both = load("objectives: {dev/accuracy: max, dev/metric: max}\n").objectives_for(MRPC)
    assert both == {"dev/accuracy": "max", "dev/f1": "max"}
    with pytest.raises(UsageError, match=r"objectives: dev/metric is dev/mcc for cola; keep one"):
        load("objectives: {dev/mcc: max, dev/metric: min}\n").objectives_for(COLA)
    with pytest.raises(UsageError, match=r"objectives: dev/pearson: cola has no such metric; it has dev/mcc"):
        load("objectives: {dev/pearson: max}\n").objectives_for(COLA)


def test_objectives_are_those_of_the_split_that_selects(load):
    text = "objectives: {dev/metric: max, dev/attention_kl: min, student/params: min}\n"
    assert load(text).selection == load(text + "selection: dev\n").selection == "dev"
    held_out = load(text + "selection: holdout\n")
    assert held_out.selection == "holdout"
    assert list(held_out.objectives_for(MRPC).items()) == [
        ("holdout/f1", "max"),
        ("holdout/attention_kl", "min"),
        ("student/params", "min"),
    ]
    assert (held_out.selection_metric(MRPC), load(text).selection_metric(MRPC)) == ("holdout/f1", "dev/f1")
    with pytest.raises(UsageError, match=r"objectives: dev/metric is dev/mcc for cola; keep one"):
        load("selection: holdout\nobjectives: {dev/mcc: max, dev/metric: min}\n").objectives_for(COLA)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_recordable_metric_may_be_an_objective(load, objective):
    assert load(f"objectives: {{{objective}: min}}\n").objectives == {objective: "min"}


def holds(row: dict) -> bool:
    """Check the conditions of CONDITIONAL."""
    train = row.get("train", "layer")
    assert ("train" in row) == (row["regime"] == "pid")
    assert ("cosine_threshold" in row) == (row["regime"] in ("pid", "sid") and train == "layer")
    assert row["student_layers"] in (1, 3, 5)
    return True


def suggestions(space: Space, seed: int, count: int) -> list[dict]:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    rows = []
    for _ in range(count):
        trial = study.ask()
        constants = space.suggest(trial)
        rows.append(trial.params | constants)
        study.tell(trial, float(rows[-1].get("student_layers", 0)))
    return rows


def test_conditions_hold_in_a_study(load):
    rows = suggestions(load(CONDITIONAL), seed=1, count=60)
    assert all(holds(row) and row["batch_size"] == 16 for row in rows)
    assert {row["regime"] for row in rows} == {"kd", "pid", "sid"}
    assert {row["student_layers"] for row in rows} == {1, 3, 5}
    assert {row.get("train") for row in rows} == {None, "layer", "upto"}


def test_a_step_that_misses_the_upper_bound_gives_no_warning(load, recwarn):
    space = load("params: {epochs: {int: [1, 6], step: 2}}")
    seen = {row["epochs"] for row in suggestions(space, seed=0, count=40)}
    assert seen == set(space.possible_values("epochs")) == {1, 3, 5}
    assert not [warning for warning in recwarn if "step" in str(warning.message)]


def test_a_grid_has_every_combination_once(load):
    text = CONDITIONAL.replace("{float: [0.01, 0.5], log: true,", "{choice: [0.1, 0.2],")
    rows = load("sampler: grid\n" + text).grid()
    assert all(holds(row) and row["batch_size"] == 16 for row in rows)
    # kd: 1; pid: layer with 2 thresholds, upto with none; sid: 2 thresholds. Each at 3 depths.
    assert len(rows) == (1 + 3 + 2) * 3
    assert len({tuple(sorted(row.items())) for row in rows}) == len(rows)
    assert len({make_trial(row) for row in rows}) == len(rows)


def test_every_sample_is_a_row_of_the_grid(load):
    space = load(CONDITIONAL.replace("{float: [0.01, 0.5], log: true,", "{choice: [0.1, 0.2],"))
    assert all(row in space.grid() for row in suggestions(space, seed=3, count=30))


def test_a_condition_on_an_unlisted_field_looks_at_its_default(load):
    space = load("sampler: grid\nparams:\n  epochs: {choice: [1, 2], when: {regime: kd}}\n")
    assert space.grid() == [{"epochs": 1}, {"epochs": 2}]
    assert space.possible_values("epochs") == (1, 2)


def test_only_separate_values_make_a_grid(load):
    with pytest.raises(UsageError, match=r"params\.cosine_threshold: a float range in a grid"):
        load(CONDITIONAL).grid()
    assert load("sampler: grid\nparams: {lambda: 0.5}\n").grid() == [{"lambda": 0.5}]
    assert len(load(f"sampler: grid\nparams: {{seed: {{int: [1, {MAX_GRID}]}}}}\n").grid()) == MAX_GRID


def test_possible_values(load):
    space = load(CONDITIONAL)
    assert space.possible_values("student_layers") == (1, 3, 5)
    assert space.possible_values("regime") == ("kd", "pid", "sid")
    assert space.possible_values("batch_size") == (16,)
    assert space.possible_values("epochs") == (3,)
    assert space.possible_values("cosine_threshold") == (0.01, 0.5, 0.0)
    sometimes = "params:\n  regime: {choice: [kd, id]}\n  student_layers: {int: [1, 2], when: {regime: %s}}\n"
    assert load(sometimes % "id").possible_values("student_layers") == (1, 2, 3)
    assert load(sometimes % "[kd, id]").possible_values("student_layers") == (1, 2)


@pytest.mark.parametrize(
    ("domain", "least"),
    [
        ("0.3", 0.3),
        ("{choice: [0.5, 0.2, 1]}", 0.2),
        ("{float: [0.05, 1], log: true}", 0.05),
        ("{choice: [0.5], when: {regime: kd}}", 0.5),
    ],
)
def test_possible_values_include_the_minimum(load, domain, least):
    assert min(load(f"params:\n  train_fraction: {domain}\n").possible_values("train_fraction")) == least
    assert load("params: {}\n").possible_values("train_fraction") == (1.0,)


@pytest.mark.parametrize(
    ("word", "depths"), [("most", [1, 5, 11]), ("three_quarters", [1, 4, 9]), ("half", [1, 3, 6])]
)
def test_depths_relative_to_the_teacher(tmp_path, word, depths):
    path = tmp_path / "space.yaml"
    path.write_text(f"""\
methods:
  a: {{student_layers: {word}}}
  b: {{regime: id}}
params:
  student_layers: {{choice: [{word}, 20]}}
  assistant_layers: {{int: [0, {word}], when: {{student_layers: {word}}}}}
""")
    for layers, depth in zip([2, 6, 12], depths, strict=True):
        space = load_space(path, layers)
        assert space.methods["a"] == {"student_layers": depth}
        assert space.params["student_layers"].values == (depth, 20)
        assert space.params["assistant_layers"].high == depth
        assert space.params["assistant_layers"].when == {"student_layers": (depth,)}


def test_a_grid_of_relative_depths_is_checked_when_the_teacher_is_known(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("sampler: grid\nparams: {student_layers: {int: [1, most]}, epochs: {int: [1, 900]}}\n")
    load_space(path)
    assert len(load_space(path, 12).grid()) == 11 * 900
    with pytest.raises(UsageError, match="grid of more than"):
        load_space(path, 13)


START = """\
params:
  regime: {choice: [kd, pid]}
  student_layers: {int: [1, 5]}
  temperature: {float: [1, 10]}
  epochs_per_layer: {int: [1, 4], when: {regime: pid}}
  batch_size: 16
start:
  - {regime: kd, student_layers: {int: [4, most]}}
  - {regime: pid, student_layers: 3, epochs_per_layer: {choice: [3, 1]}, batch_size: 16}
  - {student_layers: 5, temperature: 2}
  - {student_layers: 5}
"""


def test_a_start_is_expanded(tmp_path):
    (tmp_path / "space.yaml").write_text(START)
    pid = {"regime": "pid", "student_layers": 3, "batch_size": 16}
    assert load_space(tmp_path / "space.yaml", 6).start == (
        {"regime": "kd", "student_layers": 4},
        {"regime": "kd", "student_layers": 5},
        {**pid, "epochs_per_layer": 3},
        {**pid, "epochs_per_layer": 1},
        {"student_layers": 5, "temperature": 2.0},
        {"student_layers": 5},
    )


def test_a_start_whose_lines_are_all_comments_is_none(load):
    assert load("params: {epochs: {int: [1, 9]}}\nstart:\n# - {epochs: 2}\n").start == ()


def test_a_method_starts_with_what_it_does_not_contradict(load):
    methods = "methods:\n  KD: {regime: kd}\n  PID: {regime: pid}\n"
    space = load(
        methods + "params:\n  epochs: {int: [1, 9]}\nstart:\n- {regime: kd, epochs: 5}\n- {epochs: 7}\n"
    )
    assert space.for_method("KD").start == ({"regime": "kd", "epochs": 5}, {"epochs": 7})
    assert space.for_method("PID").start == ({"epochs": 7},)


@pytest.mark.parametrize("layers", [6, 12])
@pytest.mark.parametrize("path", SHIPPED.glob("*.yaml"), ids=lambda path: path.stem)
def test_shipped_spaces_make_valid_trials(path, layers):
    space = load_space(path, layers)
    for method in space.methods:
        own = space.for_method(method)
        for row in own.grid() if own.sampler == "grid" else suggestions(own, seed=0, count=50):
            assert make_trial(row).params().items() >= row.items()
    assert space.text.startswith("# ")


def test_the_papers_rows():
    space = load_space(SHIPPED / "paper.yaml", 6)
    rows = [make_trial(suggestions(space.for_method(name), seed=0, count=1)[0]) for name in space.methods]
    assert [(row.regime, row.internal_losses, row.soft_labels, row.assistant_layers) for row in rows] == [
        ("hard", "both", "top", 0),
        ("kd", "both", "top", 0),
        ("id", "kl", "top", 0),
        ("id", "cos", "top", 0),
        ("id", "both", "top", 0),
        ("pid", "both", "top", 0),
        ("sid", "both", "top", 0),
        ("sid", "both", "always", 0),
        ("kd", "both", "top", 4),
    ]
    assert {row.student_layers for row in rows} == {3}
    assert (space.selection, space.best_seeds) == ("holdout", 5)


@pytest.mark.parametrize(
    ("name", "varied", "values"),
    [
        ("depth", "student_layers", [1, 2, 3, 4, 5]),
        ("data_size", "train_fraction", [0.05, 0.1, 0.25, 0.5, 1.0]),
    ],
)
def test_shipped_curves(name, varied, values):
    space = load_space(SHIPPED / f"{name}.yaml", 6)
    assert space.seeds == 3
    assert [fixed["regime"] for fixed in space.methods.values()] == ["hard", "kd", "id", "pid", "sid"]
    for method in space.methods:
        assert [row[varied] for row in space.for_method(method).grid()] == values


def test_the_default_space_starts_with_one_student_a_depth():
    start = load_space(SHIPPED / "default.yaml", 12).start
    assert [row["student_layers"] for row in start] == list(range(1, 12))


def test_the_default_space_searches_each_regimes_own_parameters():
    always = {"regime", "student_layers", "student_init", "lambda", "learning_rate", "epochs"}
    shared = always | {"temperature"}
    internal = shared | {"internal_losses", "internal_weight"}
    staged = {"soft_labels", "epochs_per_layer", "cosine_threshold", "top_trains"}
    expected = {("kd", "top"): shared, ("id", "top"): internal}
    for regime in ("pid", "sid"):
        expected |= {(regime, "top"): shared | staged, (regime, "always"): always | staged}
    rows = suggestions(load_space(SHIPPED / "default.yaml", 6), seed=0, count=100)
    kinds = [(row["regime"], row.get("soft_labels", "top")) for row in rows]
    assert set(kinds) == set(expected)
    assert all(set(row) == expected[kind] for row, kind in zip(rows, kinds, strict=True))
