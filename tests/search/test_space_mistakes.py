"""Every mistake in a space file is named with its line and key."""

import os
import re

import pytest

from ikd_ray.errors import UsageError
from ikd_ray.search.space_file import load_space
from ikd_ray.yaml_file import MAX_BYTES, MAX_MISTAKES

# An entry of `start`, and the message about it from behind `start.` on.
STARTS = [
    ("{epoch: 2}", "epoch: unknown name; did you mean epochs?"),
    ("{epochs: [2, 3]}", "epochs: got a list; write {choice: [...]}"),
    ("{epochs: {choice: [2], when: {regime: kd}}}", "epochs.when: unknown name; known: choice"),
    ("{epochs: {choise: [2]}}", "epochs.choise: unknown name; did you mean choice?"),
    ("{epochs: {float: [1, 2]}}", "epochs.float: the field takes no float"),
    ("{lambda: {float: [0.1, 1]}}", "lambda: a float range has no end; write {choice: [...]}"),
    ("{epochs: 9}", "epochs: 9 is not among its values in params; write one of them"),
    ("{temperature: 20}", "temperature: 20.0 is not among its values in params"),
    ("{epochs: 2}", "lambda: not given, and its default 0.2 is not among its values in params"),
    ("{lambda: 0.5, train_fraction: 0.5}", "train_fraction: params does not search it"),
    ("{lambda: 0.5, batch_size: 8}", "batch_size: 8, but every trial has 16; leave it out"),
    ("{lambda: 0.5, internal_weight: 2}", "internal_weight: its `when` does not hold"),
    ("7", "got 7; write a mapping"),
]


def mistakes(load, tmp_path, text: str | bytes) -> list[str]:
    """Return the lines of the message without the file's name: `line: key: ...`."""
    with pytest.raises(UsageError) as caught:
        load(text)
    lines = str(caught.value).split("\n")
    prefix = f"{tmp_path / 'space.yaml'}:"
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


# A line below `params:`, and the message about it from behind `2: params.` on.
PARAMS = [
    # names
    ("temprature: 2", "temprature: unknown name; did you mean temperature?"),
    ("lambda_: 2", "lambda_: unknown name; did you mean lambda?"),
    ("x: 2", "x: unknown name; known: regime, "),
    ("7: 2", "7: unknown name"),
    ("? [a]\n  : 2", "a list: got a list; write one name"),
    ("<<: {epochs: 1}", "<<: unknown name"),
    ("train_fraction: 0", "train_fraction: input should be greater"),
    ("train_fraction: 1.5", "train_fraction: input should be less"),
    # domains
    ("temperature: {uniform: [1, 9]}", "temperature.uniform: unknown name"),
    ("temperature: {log: true}", "temperature: got none of the kinds"),
    ("epochs: {int: [1, 2], choice: [1]}", "epochs: got choice and int of"),
    ("epochs: {}", "epochs: got none of the kinds"),
    ("regime: [kd, id]", "regime: got a list; write {choice: [...]}"),
    ("epochs: {int: [5, 1]}", "epochs.int: low 5 is over high 1; write [1, 5]"),
    ("epochs: {int: [5]}", "epochs.int: got 1 values; write the two bounds"),
    ("epochs: {int: [1, 2, 3]}", "epochs.int: got 3 values"),
    ("epochs: {int: 5}", "epochs.int: got 5; write a list"),
    ("epochs: {int: [0, 2]}", "epochs.int: input should be greater than"),
    ("student_layers: {int: [1, 999]}", "student_layers.int: input should"),
    ("epochs: {int: [1, 2.5]}", "epochs.int: input should be a valid int"),
    ("cosine_threshold: {float: [0, 0.5], log: true}", "cosine_threshold.float: low 0.0 with log"),
    ("seed: {int: [0, 9], log: true}", "seed.int: low 0 with log"),
    ("lambda: {float: [0.1, 1], log: 1}", "lambda.log: input should be a valid"),
    ("epochs: {choice: [1], log: true}", "epochs.log: unknown name; known: choice, when"),
    ("epochs: {choice: [1], step: 2}", "epochs.step: unknown name; known: choice, when"),
    ("lambda: {float: [0, 1], step: 0.1}", "lambda.step: unknown name; known: float, log, when"),
    ("epochs: {int: [1, 9], step: 0}", "epochs.step: input should be greater"),
    ("epochs: {int: [1, 9], step: 2, log: true}", "epochs.step: does not go with"),
    ("regime: {choice: []}", "regime.choice: empty"),
    ("regime: {choice: kd}", "regime.choice: got kd; write a list"),
    ("regime: {choice: [kd, id, kd]}", "regime.choice: kd is given twice"),
    ("temperature: {choice: [1, 1.0]}", "temperature.choice: 1.0 is given twice"),
    ("regime: {choice: [[kd]]}", "regime.choice: got a list; write one value"),
    ("regime: {int: [1, 2]}", "regime.int: the field takes no int; write choice"),
    ("train: {float: [1, 2]}", "train.float: the field takes no float; write choice"),
    ("temperature: {int: [1, 2]}", "temperature.int: the field takes no int; write choice or float"),
    ("epochs: {float: [1, 2]}", "epochs.float: the field takes no float; write choice or int"),
    # fixed values
    ("regime: distil", "regime: input should be 'hard', 'kd'"),
    ("student_layers: 0", "student_layers: input should be greater"),
    ("epochs: true", "epochs: input should be a valid integer (got true)"),
    ("temperature: yes", "temperature: input should be a valid number"),
    ("train: on", "train: input should be 'layer' or 'upto' (got on)"),
    ("epochs:", "epochs: input should be a valid integer (got nothing)"),
    ("temperature: .nan", "temperature: input should be a finite number (got .nan)"),
    ("lambda: {float: [0, .inf]}", "lambda.float: input should be a finite number"),
    ("lambda: 1e999", "lambda: input should be a finite number (got 1e999)"),
    ('learning_rate: "5e-5"', "learning_rate: input should be a valid number"),
    ("epochs: 1e1", "epochs: input should be a valid integer (got 1e1)"),
    ("epochs: 0x_", "epochs: input should be a valid integer (got 0x_)"),
    ("epochs: 2020-01-01", "epochs: input should be a valid integer (got 2020-01-01)"),
    ("regime: =", "regime: input should be 'hard'"),
    ('regime: "\\ud800"', "regime: input should be a valid string"),
    # when
    ("epochs: {choice: [1], when: {regim: kd}}", "epochs.when.regim: unknown name; did you mean regime?"),
    ("epochs: {choice: [1], when: {epochs: 1}}", "epochs.when: a circle, epochs -> epochs"),
    ("epochs: {choice: [1], when: kd}", "epochs.when: got kd"),
    ("epochs: {choice: [1], when: {}}", "epochs.when: empty"),
    ("epochs: {choice: [1], when: {regime: []}}", "epochs.when.regime: empty"),
    ("epochs: {choice: [1], when: {regime: x}}", "epochs.when.regime: input"),
    ("epochs: {choice: [1], when: {regime: sid}}", "epochs.when.regime: regime is never 'sid'"),
    ("epochs: {choice: [1], when: {lambda: 0.5}}\n  lambda: {float: [0, 1]}", "epochs.when.lambda: lambda is a float"),
    (
        "epochs: {int: [1, 2], when: {regime: [kd, sid]}}\n  regime: {choice: [kd, id]}",
        "epochs.when.regime: regime is never 'sid'",
    ),
    (
        "regime: {choice: [kd], when: {epochs: 2}}\n  epochs: {int: [1, 9], step: 2}",
        "regime.when.epochs: epochs is never 2",
    ),
    ("epochs: {choice: [1], when: {regime: kd}}\n  regime: id", "epochs.when.regime: regime is never 'kd'"),
    (
        "epochs: {int: [1, 2], when: {train: layer}}\n  regime: kd\n  train: {choice: [upto], when: {regime: kd}}",
        "epochs.when.train: train is never 'layer'",
    ),
    (
        "regime: {choice: [kd], when: {train: layer}}\n  train: {choice: [upto], when: {epochs: 3}}\n"
        "  epochs: {choice: [1], when: {regime: kd}}",
        "regime.when: a circle, regime -> epochs -> train -> regime",
    ),
]  # fmt: skip

FILES = [
    # the file's shape
    ("- a\n- b", "1: the file: got a list"),
    ("params", "1: the file: got params"),
    ("# nothing here", "1: the file: empty"),
    ("params:\n  regime: [kd\n  epochs: 3", "3: not YAML: "),
    ("params:\n  regime: {choice: [kd, id}", "2: not YAML: "),
    ("params:\n\tregime: kd", "2: not YAML: "),
    ("sampler: tpe\nparams: \x07", "2: not YAML: character 0x7"),
    ('params:\n  regime: "\\UFFFFFFFF"', "2: not YAML: "),
    ("params: {}\n---\nparams: {}", "2: not YAML: "),
    (b"params:\n  regime: \xff", "2: not UTF-8"),
    ("params: &a {}\ndata: *a", "1: &a: an anchor"),
    ("params:\n  regime: !!str kd", "2: tag:yaml.org,2002:str: a tag"),
    ("params: !!python/object/apply:os.system [ls]", "1: tag:yaml.org,2002:python"),
    ("params: " + "[" * 5000, "1: the file: nested deeper"),
    # names
    ("samplr: grid", "1: samplr: unknown name; did you mean sampler?"),
    ("params:\n  epochs: 1\n  epochs: 2", "3: params.epochs: given twice, the first on line 2"),
    ("data: {}\nparams: {}\ndata: {}", "3: data: given twice, the first on line 1"),
    ("params: [regime]", "1: params: got a list"),
    ('params: {"\\e[31mx": 2}', r"1: params.'\x1b[31mx': the name contains a control character"),
    # what is compared, and how often
    ("methods: [kd]", "1: methods: got a list"),
    ("methods: {}", "1: methods: empty; name some, or leave it out"),
    (
        "methods:\n" + "".join(f"  m{i}: {{seed: {i}}}\n" for i in range(51)),
        "52: methods.m50: one of 51 methods; name at most 50",
    ),
    ('methods: {"a\\tb": {regime: kd}}', "1: methods.'a\\tb': the name contains a control character; remove it"),
    (f"methods: {{{'x' * 61}: {{}}}}", "1: methods."),
    ("methods: {a: kd}", "1: methods.a: got kd; write a mapping"),
    ("methods: {a: {regim: kd}}", "1: methods.a.regim: unknown name; did you mean regime?"),
    ("methods: {a: {regime: dk}}", "1: methods.a.regime: input should be 'hard', 'kd'"),
    ("methods: {a: {epochs: {int: [1, 2]}}}", "1: methods.a.epochs: got a mapping; write one value"),
    ("methods: {a: {regime: kd}, b: {regime: kd}}", "1: methods.b: fixes what a does; keep one"),
    (
        "methods: {a: {regime: kd}, b: {regime: id}}\nparams:\n  epochs: {int: [1, 2], when: {regime: pid}}",
        "3: params.epochs.when.regime: regime is never 'pid' in this space",
    ),
    ("seeds: 0", "1: seeds: input should be greater than or equal to 1"),
    ("seeds: 101", "1: seeds: input should be less than or equal to 100"),
    ("best_seeds: -1", "1: best_seeds: input should be greater than or equal to 0"),
    ("seeds: 2\nparams:\n  seed: {choice: [1, 2]}", "1: seeds: the space names seed itself; keep one"),
    ("best_seeds: 2\nmethods: {a: {seed: 1}}", "1: best_seeds: the space names seed itself; keep one"),
    ("selection: test", "1: selection: input should be 'dev' or 'holdout'"),
    ("selection: [dev]", "1: selection: got a list; write one value"),
    ("params:\n  regime:\n    choice:\n    - kd\n    - pdi", "5: params.regime.choice: input"),
    ("params: {seed: " + "9" * 5000 + "}", "1: params.seed: input should be"),
    ("params: {seed: 0x" + "f" * 5000 + "}", "1: params.seed: input should be less than"),
    # the rest of the file
    ("objectives: {}", "1: objectives: empty"),
    ("objectives:", "1: objectives: got nothing"),
    ("objectives: [dev/mcc]", "1: objectives: got a list"),
    ("objectives: {dev/mcc: maximize}", "1: objectives.dev/mcc: input should be 'max' or 'min'"),
    ("objectives:\n  dev/acuracy: max", "2: objectives.dev/acuracy: unknown name; did you mean"),
    ("sampler: random", "1: sampler: input should be 'cost_aware', 'tpe' or 'grid' (got random)"),
    ("sampler: grid\nparams:\n  lambda: {float: [0, 1]}", "3: params.lambda: a float range in a grid"),
    ("sampler: grid\nparams:\n  seed: {int: [0, 2147483647]}", "1: sampler: grid of more than"),
    ("teacher:\n  epoch: 3", "2: teacher.epoch: unknown name; did you mean epochs?"),
    ("teacher: {epochs: 0}", "1: teacher.epochs: input should be greater than or equal to 1"),
    ("data: {max_length: 5000}", "1: data.max_length: input should be less than or equal to 512"),
    ("params: {}\ntargets: {mode: never}", "2: targets.mode: input should be 'auto', 'stored' or"),
    ("prefix: {memory_gb: -1}", "1: prefix.memory_gb: input should be greater than or equal to 0"),
    ("assistant: {train_fraction: 0.5}", "1: assistant.train_fraction: unknown name"),
    ("assistant: {student_layers: 3}", "1: assistant.student_layers: unknown name"),
    ("assistant: {epochs: 0}", "1: assistant.epochs: input should be greater than or equal to 1"),
    ("targets: auto", "1: targets: got auto"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), PARAMS)
def test_a_mistake_in_a_param_is_named(load, tmp_path, line, expected):
    [found] = mistakes(load, tmp_path, f"params:\n  {line}\n")
    assert found.startswith(f"2: params.{expected}")
    assert found.isprintable()
    assert len(found) < 400


@pytest.mark.parametrize(("text", "expected"), FILES, ids=[expected for _, expected in FILES])
def test_a_mistake_is_named_with_its_line_and_key(load, tmp_path, text, expected):
    found = mistakes(load, tmp_path, text)
    assert found[0].startswith(expected)
    assert len(found) == (2 if expected == "1: &a: an anchor" else 1)
    assert all(line.isprintable() and len(line) < 400 for line in found)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(50)),
        ("params: {seed: {choice: [" + "1, " * MAX_BYTES)[: MAX_BYTES - 3] + "]}}",  # as large as may be
    ],
    ids=["aliases that explode", "a long list"],
)
def test_of_many_mistakes_the_first_are_named(load, tmp_path, text):
    *first, last = mistakes(load, tmp_path, text)
    assert len(first) == MAX_MISTAKES
    assert re.fullmatch(r" and \d+ more mistakes; correct these first", last)


# Several mistakes in a file: the lines and keys that are named.
SEVERAL = {
    "every kind of section": (
        """\
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
""",
        [
            *(
                "1: objectives.dev/mcc",
                "4: params.regime.choice",
                "5: params.temprature",
                "6: params.epochs.int",
            ),
            *("7: params.lambda.when.regime", "7: params.lambda", "9: params.internal_losses.choice"),
            *("10: params.internal_losses.when.train", "11: data.max_length", "12: extra"),
        ],
    ),
    "two circles": (
        """\
params:
  regime: {choice: [kd, id], when: {train: layer}}
  train: {choice: [layer, upto], when: {regime: kd}}
  epochs: {int: [1, 3], when: {batch_size: 32}}
  batch_size: {choice: [16, 32], when: {epochs: 3}}
  embeddings: {choice: [train], when: {train: upto}}
""",
        ["2: params.regime.when", "4: params.epochs.when"],
    ),
    "a parent's mistake, which its children are not blamed for": (
        """\
params:
  regime: {chioce: [pid, sid]}
  train: {choice: [upto], when: {regime: pid}}
  epochs: {int: [1, 2], when: {train: [upto, layer]}}
""",
        ["2: params.regime.chioce"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), SEVERAL.values(), ids=SEVERAL)
def test_every_mistake_is_named_once(load, tmp_path, text, expected):
    found = [line.split(": ") for line in mistakes(load, tmp_path, text)]
    assert [f"{line}: {key}" for line, key, *_ in found] == expected


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (os.mkfifo, "no ordinary file"),
        (lambda path: path.symlink_to(path), "levels of symbolic links"),
        (lambda path: path.write_bytes(b"#" * (2**20 + 1)), "over 64 KiB"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, make, reason):
    make(tmp_path / "space.yaml")
    with pytest.raises(UsageError, match=rf"space\.yaml: [^\n;]*{reason}[^\n]*;[^\n]*$"):
        load_space(tmp_path / "space.yaml")


@pytest.mark.parametrize(("entry", "message"), STARTS)
def test_mistakes_of_a_start(load, tmp_path, entry, message):
    space = """\
params:
  temperature: {float: [1, 10]}
  lambda: {float: [0.5, 1]}
  epochs: {int: [1, 4]}
  batch_size: 16
  internal_weight: {float: [0.1, 10], when: {epochs: 4}}
start:
"""
    (found,) = mistakes(load, tmp_path, f"{space}  - {entry}\n")
    assert found.startswith(f"8: start: {message}") or found.startswith(f"8: start.{message}")


def test_a_grid_has_no_start(load, tmp_path):
    found = mistakes(load, tmp_path, "sampler: grid\nparams: {epochs: {int: [1, 3]}}\nstart: [{epochs: 2}]\n")
    assert found == ["3: start: a grid tries every combination; leave it out"]


def test_a_start_is_not_endless(load, tmp_path):
    space = "params: {seed: {int: [0, 100000]}}\nstart: [{seed: {int: [0, 99999]}}]\n"
    assert mistakes(load, tmp_path, space) == ["2: start: more than 1,000 configurations; name fewer"]
