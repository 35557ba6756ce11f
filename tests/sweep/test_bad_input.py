"""Bad input gets one clear line, exit status 2, and nothing is written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tiny import make_hf, write_teacher, write_tokenizer

from ikd_ray.report.cli import run


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("run")


@pytest.fixture
def refused(app, inputs, tmp_path, monkeypatch, capsys):
    """`refused(words, **flags)`: the command line must refuse these flags with a line that has the words."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    space = tmp_path / "space.yaml"
    space.write_text("params: {student_layers: 2}\n")
    usual = {"task": "cola", "teacher": inputs / "teacher", "data-dir": inputs / "glue", "space": space}

    def check(*words: str, **changes: object) -> None:
        flags = usual | {name.replace("_", "-"): value for name, value in changes.items()}
        before = sorted(tmp_path.rglob("*"))
        arguments = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        with pytest.raises(SystemExit) as end:
            run(app, arguments)
        out, err = capsys.readouterr()
        assert end.value.code == 2, err
        assert "Traceback" not in out
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        for word in words:
            assert word in err
        assert sorted(tmp_path.rglob("*")) == before, "something was written"

    return check


def test_task(refused):
    refused("'colla'", "cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli", task="colla")
    refused("--task is missing", task=None)


def write_cola(folder: Path, train: str, dev: str = "x\t1\t\tw1 w2\n") -> Path:
    (folder / "CoLA").mkdir(parents=True)
    (folder / "CoLA" / "train.tsv").write_text(train)
    (folder / "CoLA" / "dev.tsv").write_text(dev)
    return folder


def test_data(refused, inputs, tmp_path):
    good = "x\t1\t\tw1 w2\n"
    refused("no-such-folder", data_dir=tmp_path / "no-such-folder")
    refused("RTE", data_dir=inputs / "glue", task="rte")
    refused("train.tsv line 2", data_dir=write_cola(tmp_path / "columns", good + "x\t1\tw3\n"))
    refused(
        "train.tsv line 3", "'2'", "0, 1", data_dir=write_cola(tmp_path / "label", good * 2 + "x\t2\t\tw3\n")
    )
    refused("train.tsv", data_dir=write_cola(tmp_path / "empty", ""))
    (missing := write_cola(tmp_path / "missing", good)).joinpath("CoLA/dev.tsv").unlink()
    refused("dev.tsv", data_dir=missing)


def test_teacher(refused, tmp_path):
    refused("no/such-teacher", "no folder of that name", teacher="no/such-teacher")
    (tmp_path / "empty").mkdir()
    refused("config.json", teacher=tmp_path / "empty")
    three = tmp_path / "three"
    make_hf(labels=3).save_pretrained(three)
    write_tokenizer(three)
    refused("3 labels", "cola has 2", teacher=three)
    gpt = write_teacher(tmp_path / "gpt")
    config = json.loads((gpt / "config.json").read_text()) | {"model_type": "gpt2"}
    (gpt / "config.json").write_text(json.dumps(config))
    refused("'gpt2'", "BERT-family", "roberta", teacher=gpt)
    pickled = write_teacher(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused("only safetensors are read", teacher=pickled)
    damaged = write_teacher(tmp_path / "damaged")
    with open(damaged / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    refused("model.safetensors", "damaged", teacher=damaged)


def test_space(refused, tmp_path):
    def space(text: str) -> Path:
        path = tmp_path / "other.yaml"
        path.write_text(text)
        return path

    refused("up to 5", "has 4 layers", space=space("params: {student_layers: {int: [1, 5]}}\n"))
    refused("other.yaml:2", "temprature", "temperature", space=space("params:\n  temprature: 2\n"))
    refused("other.yaml:3", "when", space=space(
        "params:\n  regime: {choice: [kd, id]}\n  cosine_threshold: {float: [0.1, 0.2], when: {regime: [pid]}}\n"
    ))  # fmt: skip
    refused("other.yaml:3", "not YAML", space=space("params:\n  regime: [kd\n"))
    refused("no-space.yaml", space=tmp_path / "no-space.yaml")
    refused("f1", "cola", space=space("objectives: {dev/f1: max}\nparams: {student_layers: 2}\n"))
    refused("--trials 3", "has 2", trials=3, space=space(
        "sampler: grid\nparams: {student_layers: 2, regime: {choice: [kd, id]}}\n"
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("trials", 0, ("--trials 0",)),
        ("trials", -3, ("--trials -3",)),
        ("trials", "many", ("--trials", "valid integer")),
        ("concurrent", 0, ("--concurrent 0",)),
        ("workers-per-trial", 0, ("--workers-per-trial 0",)),
        ("gpus-per-worker", -1, ("--gpus-per-worker -1",)),
        ("seed", -1, ("--seed -1",)),
        ("name", "../elsewhere", ("--name", "letters, digits")),
        ("name", "cache", ("--name cache",)),
        ("resume", "nothing", ("--resume nothing", "no sweep of that name")),
        ("resume", "../up", ("--resume", "letters, digits")),
    ],
)
def test_flags(refused, flag, value, words):
    refused(*words, **{flag: value})


def test_output(refused, tmp_path):
    (tmp_path / "file").write_text("")
    refused("--output", output=tmp_path / "file")
    refused("--output", output=tmp_path / "file" / "below")
    (tmp_path / "out" / "taken").mkdir(parents=True)
    refused("--name taken", "exists already", output=tmp_path / "out", name="taken")
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        refused("--output", output=tmp_path / "locked")


def test_workers_that_a_batch_or_the_machine_has_no_room_for(refused, tmp_path):
    small = tmp_path / "small.yaml"
    small.write_text("params: {student_layers: 2, batch_size: 3}\n")
    refused("batch_size", "2 workers", workers_per_trial=2, space=small)
