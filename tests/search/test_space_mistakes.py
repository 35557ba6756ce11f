"""Every mistake in a space file is named with its line and key."""

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.search.space import load_space


def mistakes(load, tmp_path, text: str | bytes) -> list[str]:
    """Return the lines of the message without the file's name: `line: key: ...`."""
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
    "name of a param": (params("temprature: 2"), "2: params.temprature: unknown name; did you mean temperature?"),
    "python name": (params("lambda_: 2"), "2: params.lambda_: unknown name; did you mean lambda?"),
    "nothing near": (params("x: 2"), "2: params.x: unknown name; known: regime, "),
    "number as name": (params("7: 2"), "2: params.7: unknown name"),
    "list as name": (params("? [a]\n  : 2"), "2: params.a list: got a list; write one name"),
    "merge": (params("<<: {epochs: 1}"), "2: params.<<: unknown name"),
    "given twice": ("params:\n  epochs: 1\n  epochs: 2\n", "3: params.epochs: given twice, the first on line 2"),
    "section twice": ("data: {}\nparams: {}\ndata: {}\n", "3: data: given twice, the first on line 1"),
    "params a list": ("params: [regime]\n", "1: params: got a list"),
    # what is compared, and how often
    "methods a list": ("methods: [kd]\n", "1: methods: got a list"),
    "no methods": ("methods: {}\n", "1: methods: empty; name some, or leave it out"),
    "too many methods": (
        "methods:\n" + "".join(f"  m{i}: {{seed: {i}}}\n" for i in range(51)),
        "52: methods.m50: one of 51 methods; name at most 50",
    ),
    "method's name": (
        'methods: {"a\\tb": {regime: kd}}\n',
        "1: methods.'a\\tb': the name contains a control character; remove it",
    ),
    "method's long name": (f"methods: {{{'x' * 61}: {{}}}}\n", "1: methods."),
    "method no mapping": ("methods: {a: kd}\n", "1: methods.a: got kd; write a mapping"),
    "method's field": ("methods: {a: {regim: kd}}\n", "1: methods.a.regim: unknown name; did you mean regime?"),
    "method's value": ("methods: {a: {regime: dk}}\n", "1: methods.a.regime: input should be 'hard', 'kd'"),
    "method's range": (
        "methods: {a: {epochs: {int: [1, 2]}}}\n",
        "1: methods.a.epochs: got a mapping; write one value",
    ),
    "method twice": ("methods: {a: {regime: kd}, b: {regime: kd}}\n", "1: methods.b: fixes what a does; keep one"),
    "condition that no method meets": (
        "methods: {a: {regime: kd}, b: {regime: id}}\nparams:\n  epochs: {int: [1, 2], when: {regime: pid}}\n",
        "3: params.epochs.when.regime: regime is never 'pid' in this space",
    ),
    "no seeds": ("seeds: 0\n", "1: seeds: input should be greater than or equal to 1"),
    "many seeds": ("seeds: 101\n", "1: seeds: input should be less than or equal to 100"),
    "seeds of the best": ("best_seeds: -1\n", "1: best_seeds: input should be greater than or equal to 0"),
    "seeds twice": (
        "seeds: 2\nparams:\n  seed: {choice: [1, 2]}\n",
        "1: seeds: the space names seed itself; keep one",
    ),
    "a method's seed": (
        "best_seeds: 2\nmethods: {a: {seed: 1}}\n",
        "1: best_seeds: the space names seed itself; keep one",
    ),
    "no such selection": ("selection: test\n", "1: selection: input should be 'dev' or 'holdout'"),
    "selection a list": ("selection: [dev]\n", "1: selection: got a list; write one value"),
    "no share at all": (params("train_fraction: 0"), "2: params.train_fraction: input should be greater"),
    "more than all": (params("train_fraction: 1.5"), "2: params.train_fraction: input should be less"),
    # dimensions
    "unknown kind": (params("temperature: {uniform: [1, 9]}"), "2: params.temperature.uniform: unknown name"),
    "no kind": (params("temperature: {log: true}"), "2: params.temperature: got none of the kinds"),
    "two kinds": (params("epochs: {int: [1, 2], choice: [1]}"), "2: params.epochs: got choice and int of"),
    "empty mapping": (params("epochs: {}"), "2: params.epochs: got none of the kinds"),
    "bare list": (params("regime: [kd, id]"), "2: params.regime: got a list; write {choice: [...]}"),
    "low over high": (params("epochs: {int: [5, 1]}"), "2: params.epochs.int: low 5 is over high 1; write [1, 5]"),
    "one bound": (params("epochs: {int: [5]}"), "2: params.epochs.int: got 1 values; write the two bounds"),
    "three bounds": (params("epochs: {int: [1, 2, 3]}"), "2: params.epochs.int: got 3 values"),
    "bounds no list": (params("epochs: {int: 5}"), "2: params.epochs.int: got 5; write a list"),
    "bound out of range": (params("epochs: {int: [0, 2]}"), "2: params.epochs.int: input should be greater than"),
    "high out of range": (params("student_layers: {int: [1, 999]}"), "2: params.student_layers.int: input should"),
    "float bound for int": (params("epochs: {int: [1, 2.5]}"), "2: params.epochs.int: input should be a valid int"),
    "log at zero": (
        params("cosine_threshold: {float: [0, 0.5], log: true}"),
        "2: params.cosine_threshold.float: low 0.0 with log",
    ),
    "int log at zero": (params("seed: {int: [0, 9], log: true}"), "2: params.seed.int: low 0 with log"),
    "log no boolean": (params("lambda: {float: [0.1, 1], log: 1}"), "2: params.lambda.log: input should be a valid"),
    "log with choice": (
        params("epochs: {choice: [1], log: true}"),
        "2: params.epochs.log: unknown name; known: choice, when",
    ),
    "step with choice": (
        params("epochs: {choice: [1], step: 2}"),
        "2: params.epochs.step: unknown name; known: choice, when",
    ),
    "step with float": (
        params("lambda: {float: [0, 1], step: 0.1}"),
        "2: params.lambda.step: unknown name; known: float, log, when",
    ),
    "step zero": (params("epochs: {int: [1, 9], step: 0}"), "2: params.epochs.step: input should be greater"),
    "step with log": (params("epochs: {int: [1, 9], step: 2, log: true}"), "2: params.epochs.step: does not go with"),
    "empty choice": (params("regime: {choice: []}"), "2: params.regime.choice: empty"),
    "choice no list": (params("regime: {choice: kd}"), "2: params.regime.choice: got kd; write a list"),
    "duplicate choices": (params("regime: {choice: [kd, id, kd]}"), "2: params.regime.choice: kd is given twice"),
    "equal numbers": (params("temperature: {choice: [1, 1.0]}"), "2: params.temperature.choice: 1.0 is given twice"),
    "choice not allowed": (
        "params:\n  regime:\n    choice:\n    - kd\n    - pdi\n",
        "5: params.regime.choice: input",
    ),
    "choice a list": (params("regime: {choice: [[kd]]}"), "2: params.regime.choice: got a list; write one value"),
    "int for words": (params("regime: {int: [1, 2]}"), "2: params.regime.int: the field takes no int; write choice"),
    "float for words": (
        params("train: {float: [1, 2]}"),
        "2: params.train.float: the field takes no float; write choice",
    ),
    "int for float": (
        params("temperature: {int: [1, 2]}"),
        "2: params.temperature.int: the field takes no int; write choice or float",
    ),
    "float for int": (
        params("epochs: {float: [1, 2]}"),
        "2: params.epochs.float: the field takes no float; write choice or int",
    ),
    # fixed values
    "fixed not allowed": (params("regime: distil"), "2: params.regime: input should be 'hard', 'kd'"),
    "fixed out of range": (params("student_layers: 0"), "2: params.student_layers: input should be greater"),
    "boolean": (params("epochs: true"), "2: params.epochs: input should be a valid integer (got true)"),
    "boolean for a float": (params("temperature: yes"), "2: params.temperature: input should be a valid number"),
    "boolean for a word": (params("train: on"), "2: params.train: input should be 'layer' or 'upto' (got on)"),
    "nothing": (params("epochs:"), "2: params.epochs: input should be a valid integer (got nothing)"),
    "nan": (params("temperature: .nan"), "2: params.temperature: input should be a finite number (got .nan)"),
    "inf": (params("lambda: {float: [0, .inf]}"), "2: params.lambda.float: input should be a finite number"),
    "overflow": (params("lambda: 1e999"), "2: params.lambda: input should be a finite number (got 1e999)"),
    "quoted number": (params('learning_rate: "5e-5"'), "2: params.learning_rate: input should be a valid number"),
    "exponent for an int": (params("epochs: 1e1"), "2: params.epochs: input should be a valid integer (got 1e1)"),
    "broken int": (params("epochs: 0x_"), "2: params.epochs: input should be a valid integer (got 0x_)"),
    "huge int": (params("seed: " + "9" * 5000), "2: params.seed: input should be"),
    "huge hex": (params("seed: 0x" + "f" * 5000), "2: params.seed: input should be less than"),
    "date": (params("epochs: 2020-01-01"), "2: params.epochs: input should be a valid integer (got 2020-01-01)"),
    "value sign": (params("regime: ="), "2: params.regime: input should be 'hard'"),
    "surrogate": (params('regime: "\\ud800"'), "2: params.regime: input should be a valid string"),
    # when
    "unknown parent": (
        params("epochs: {choice: [1], when: {regim: kd}}"),
        "2: params.epochs.when.regim: unknown name; did you mean regime?",
    ),
    "itself": (
        params("epochs: {choice: [1], when: {epochs: 1}}"),
        "2: params.epochs.when: a circle, epochs -> epochs",
    ),
    "when no mapping": (params("epochs: {choice: [1], when: kd}"), "2: params.epochs.when: got kd"),
    "when empty": (params("epochs: {choice: [1], when: {}}"), "2: params.epochs.when: empty"),
    "when no values": (params("epochs: {choice: [1], when: {regime: []}}"), "2: params.epochs.when.regime: empty"),
    "when not allowed": (params("epochs: {choice: [1], when: {regime: x}}"), "2: params.epochs.when.regime: input"),
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
    "direction": ("objectives: {dev/mcc: maximize}\n", "1: objectives.dev/mcc: input should be 'max' or 'min'"),
    "objective": ("objectives:\n  dev/acuracy: max\n", "2: objectives.dev/acuracy: unknown name; did you mean"),
    "sampler": ("sampler: random\n", "1: sampler: input should be 'tpe' or 'grid' (got random)"),
    "float in a grid": (
        "sampler: grid\nparams:\n  lambda: {float: [0, 1]}\n",
        "3: params.lambda: a float range in a grid",
    ),
    "grid without end": ("sampler: grid\nparams:\n  seed: {int: [0, 2147483647]}\n", "1: sampler: grid of more than"),
    "teacher": ("teacher:\n  epoch: 3\n", "2: teacher.epoch: unknown name; did you mean epochs?"),
    "teacher's value": ("teacher: {epochs: 0}\n", "1: teacher.epochs: input should be greater than or equal to 1"),
    "data": ("data: {max_length: 5000}\n", "1: data.max_length: input should be less than or equal to 512"),
    "targets": ("params: {}\ntargets: {mode: never}\n", "2: targets.mode: input should be 'auto', 'stored' or"),
    "prefix": ("prefix: {memory_gb: -1}\n", "1: prefix.memory_gb: input should be greater than or equal to 0"),
    "section a word": ("targets: auto\n", "1: targets: got auto"),
}  # fmt: skip


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
        UsageError, match=r"space\.yaml: (no such file|is a directory|over 64 KiB)[^\n]*;"
    ) as caught:
        load_space(path)
    assert "\n" not in str(caught.value)
