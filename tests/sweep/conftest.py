"""Six real sweeps, each run once by a user's commands and looked at by many tests."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from ikd_ray.records import SweepRecord, TrialRecord, read_sweep, read_trials
from tests.helpers.consistency import mlflow_runs
from tests.helpers.run_command import SweepExit, run_sweep_process, sweep_flags
from tests.helpers.tiny_models import write_teacher

REGIMES = """\
sampler: grid
params:
  regime: {choice: [hard, kd, id, pid, sid]}
  student_layers: 2
  temperature: {choice: [2.0, 1.0e-38], when: {regime: kd}}
  epochs_per_layer: {choice: [1, 2], when: {regime: [pid, sid]}}
  epochs: 2
  batch_size: 16
teacher: {epochs: 2}
"""
TWO_WORKERS = """\
params: {regime: pid, student_layers: 2, epochs_per_layer: 1, epochs: 2, batch_size: 16}
teacher: {epochs: 2}
"""
METHODS = """\
objectives: {dev/metric: max}
best_seeds: 1
methods:
  KD: {regime: kd}
  "KD by <an> assistant": {regime: kd, assistant_layers: 3}
params:
  student_layers: 2
  learning_rate: {float: [1.0e-3, 2.0e-2], log: true}
  batch_size: 16
  epochs: 1
teacher: {epochs: 1}
assistant: {regime: id, epochs: 2, learning_rate: 1.0e-3}
"""
CLASSES = ("negative", "neutral", "positive")
TASK = """\
name: reviews
text: Review text
label: stars
labels: {1: negative, 3: neutral, 5: positive}
metric: macro_f1
metrics: [accuracy, macro_f1]
"""
HOLDOUT = """\
sampler: grid
selection: holdout
params:
  train_fraction: {choice: [0.5, 1.0]}
  regime: kd
  student_layers: 2
  learning_rate: 3.0e-3
  epochs: 5
teacher: {epochs: 5, learning_rate: 3.0e-3}
"""
EMBEDDED = """\
sampler: grid
params: {regime: pid, student_layers: 1, epochs: 1, epochs_per_layer: 1, batch_size: 256}
teacher: {epochs: 1, batch_size: 256}
data: {max_length: 8}
"""


@dataclass
class Swept:
    """A sweep that has ended, and readers of what it left.

    Attributes:
        home: working directory of its commands.
        exits: the end of each `run.py`, in order.
        sockets: (process name, address) of every socket that was open to others while the first trial ran.
        auth_modes: RAY_AUTH_MODE of the raylets at that time.
        output: output folder on this machine, if not that of `home`.
        dev: (text, class) of each example of a custom task's dev set.
    """

    home: Path
    name: str
    exits: list[SweepExit]
    sockets: list[tuple[str, str]] = field(default_factory=list)
    auth_modes: set[str | None] = field(default_factory=set)
    task: str = "cola"
    output: Path | None = None
    dev: Sequence[tuple[str, str]] = ()

    @property
    def folder(self) -> Path:
        return (self.output or self.home / "outputs") / self.name

    @property
    def record(self) -> SweepRecord:
        return read_sweep(self.folder)

    @property
    def trials(self) -> list[TrialRecord]:
        return read_trials(self.folder)

    @property
    def front(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "pareto.json").read_text())["front"]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def runs(self, kind: str) -> list[Run]:
        return mlflow_runs(self.client, self.name, self.task)[kind]


def run_to_its_end(swept: Swept, environment: Mapping[str, str], arguments: Sequence[object]) -> Swept:
    """Run `run.py` and add its end to the sweep."""
    with run_sweep_process(dict(environment), swept.home, arguments) as process:
        if not swept.exits:
            process.wait_for("started: ")
            swept.sockets = process.tree.listening()
            raylets = process.tree.find("raylet")
            swept.auth_modes = {raylet.environ().get("RAY_AUTH_MODE") for raylet in raylets}
        swept.exits.append(process.end())
    return swept


@pytest.fixture(scope="session")
def sweep_home(tmp_path_factory) -> Path:
    """Return the working directory of the sweeps with the tiny teacher, whose cache they share."""
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="session")
def home_environment(sweep_home, environment) -> dict[str, str]:
    """Return the environment of a user who has never started Ray."""
    return environment | {"HOME": str(sweep_home)}


@pytest.fixture(scope="session")
def one_worker(inputs, sweep_home, home_environment) -> Swept:
    """Run every regime, one trial of which diverges; no trial takes an epoch from another."""
    arguments = sweep_flags(inputs, sweep_home, "whole", REGIMES, "--no-share")
    return run_to_its_end(Swept(sweep_home, "whole", []), home_environment, arguments)


@pytest.fixture(scope="session")
def resumed(inputs, sweep_home, home_environment, one_worker) -> Swept:
    """Run the trials of `one_worker` with shared epochs: six asked for, Ctrl-C after two, then resumed to eight."""
    arguments = sweep_flags(inputs, sweep_home, "cut", REGIMES, "--trials", 6)
    with run_sweep_process(home_environment, sweep_home, arguments) as process:
        process.wait_for("finished in", count=2)
        process.interrupt()
        swept = Swept(sweep_home, "cut", [process.end()])
    return run_to_its_end(swept, home_environment, ["--resume", "cut", "--trials", 8])


@pytest.fixture(scope="session")
def two_workers(inputs, sweep_home, home_environment, resumed) -> Swept:
    """Run a trial that one worker has trained, and saved, before."""
    arguments = sweep_flags(inputs, sweep_home, "two", TWO_WORKERS, "--trials", 1, "--workers-per-trial", 2)
    return run_to_its_end(Swept(sweep_home, "two", []), home_environment, arguments)


@pytest.fixture(scope="session")
def on_s3(inputs, machine, make_bucket, tmp_path_factory) -> Swept:
    """Compare methods, one with an assistant, on a machine whose disk is lost when the sweep has ended."""
    home, bucket = tmp_path_factory.mktemp("s3"), make_bucket()
    (home / "bucket").write_text(bucket)
    arguments = sweep_flags(inputs, home, "methods", METHODS, "--trials", 2, "--output", bucket)
    environment = machine("first")
    swept = run_to_its_end(Swept(home, "methods", []), environment, arguments)
    shutil.rmtree(environment["HOME"])
    return swept


def write_reviews(path: Path, rows: int, seed: int) -> list[tuple[str, str]]:
    """Write texts whose words tell their class, with all that a cell of CSV may hold; return (text, class)."""
    rng, found = random.Random(seed), []
    for _ in range(rows):
        number = rng.randrange(3)
        words = [f"w{rng.randrange(17 * number, 17 * number + 17)}" for _ in range(rng.randint(3, 12))]
        found.append((rng.choice([" ", ", ", ' "', "\n"]).join(words), CLASSES[number]))
    stars = dict(zip(CLASSES, "135", strict=True))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "Review text", "stars"])
        writer.writerows((number, text, stars[label]) for number, (text, label) in enumerate(found))
    return found


@pytest.fixture(scope="session")
def custom_task(environment, tmp_path_factory) -> Swept:
    """Choose by a held-out part for a task of one's own, whose file is moved when the sweep has ended."""
    home = tmp_path_factory.mktemp("custom")
    write_teacher(home / "tiny")
    (home / "folder").mkdir()
    write_reviews(home / "folder" / "train.csv", 300, seed=0)
    dev = write_reviews(home / "folder" / "dev.csv", 60, seed=1)
    (home / "reviews.yaml").write_text(TASK)
    (home / "holdout.yaml").write_text(HOLDOUT)
    flags = ["--task", "reviews.yaml", "--data-dir", "folder", "--teacher", "tiny", "--space", "holdout.yaml"]
    swept = Swept(home, "held", [], task="reviews", dev=dev)
    run_to_its_end(swept, environment, [*flags, "--name", "held"])
    (home / "reviews.yaml").rename(home / "moved.yml")
    return swept


@pytest.fixture(scope="session")
def embedded_corpus(inputs, environment, tmp_path_factory) -> Swept:
    """Run without data: on the embedded corpus."""
    home = tmp_path_factory.mktemp("embedded")
    (home / "small.yaml").write_text(EMBEDDED)
    flags = ["--task", "cola", "--teacher", inputs / "teacher", "--space", "small.yaml", "--name", "small"]
    return run_to_its_end(Swept(home, "small", []), environment, flags)
