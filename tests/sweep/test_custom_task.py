"""A task of one's own, from its file and tables to exported students, as a user goes through it."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from transformers import pipeline

from ikd_ray.records import read_sweep, read_trials
from tests.helpers.tiny_models import write_teacher

pytestmark = pytest.mark.slow

CLASSES = ("negative", "neutral", "positive")
TASK = """\
name: reviews
text: Review text
label: stars
labels: {1: negative, 3: neutral, 5: positive}
metric: macro_f1
metrics: [accuracy, macro_f1]
"""
SPACE = """\
params:
  regime: {choice: [kd, pid]}
  student_layers: {int: [1, 2]}
  learning_rate: 1.0e-2
  epochs: 2
teacher: {epochs: 2, learning_rate: 1.0e-2}
"""


def write_table(path: Path, rows: int, seed: int) -> list[tuple[str, str]]:
    """Texts whose words tell their class, with all that a CSV's cell may hold; returns (text, class)."""
    chance, found = random.Random(seed), []
    for _ in range(rows):
        number = chance.randrange(3)
        words = [f"w{chance.randrange(17 * number, 17 * number + 17)}" for _ in range(chance.randint(3, 12))]
        text = chance.choice([" ", ", ", ' "', "\n"]).join(words)
        found.append((text, CLASSES[number]))
    stars = dict(zip(CLASSES, "135", strict=True))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "Review text", "stars"])
        writer.writerows((number, text, stars[label]) for number, (text, label) in enumerate(found))
    return found


@pytest.fixture(scope="module")
def story(command, tmp_path_factory):
    """Run; then the task file is gone; check, export by the task's name, go on with more trials, export again."""
    home = tmp_path_factory.mktemp("custom")
    write_teacher(home / "tiny")
    (home / "folder").mkdir()
    write_table(home / "folder" / "train.csv", 150, seed=0)
    dev = write_table(home / "folder" / "dev.csv", 60, seed=1)
    (home / "reviews.yaml").write_text(TASK)
    (home / "space.yaml").write_text(SPACE)
    first = command(
        *(
            "run",
            "--task",
            "reviews.yaml",
            "--data-dir",
            "folder",
            "--teacher",
            "tiny",
            "--space",
            "space.yaml",
        ),
        *("--trials", 2, "--concurrent", 1, "--name", "first"),
        cwd=home,
    )
    (home / "reviews.yaml").rename(home / "moved.yml")
    done = {
        "first": first,
        "check": command("report", "--check", "first", cwd=home),
        "export": command("export", "--task", "reviews", cwd=home),
    }
    (home / "changed.yaml").write_text(TASK.replace("3: neutral", "3: mixed"))
    more = ("run", "--resume", "first", "--trials", 3)
    done["changed"] = command(*more, "--task", "changed.yaml", cwd=home)
    done["second"] = command(*more, "--task", "moved.yml", cwd=home)
    done["again"] = command("export", "--task", "moved.yml", "--force", "--to", "again", cwd=home)
    return SimpleNamespace(home=home, dev=dev, done=done, sweep=home / "outputs" / "first")


def test_every_command_takes_it(story):
    for name in ("first", "check", "export", "second", "again"):
        assert story.done[name].returncode == 0, (name, story.done[name].stderr)
    assert "folder folder (reviews, 150 train / 60 dev)" in story.done["first"].stdout
    assert "python sweeps/export.py --task reviews --name first" in story.done["first"].stdout
    assert "0 differences" in story.done["check"].stdout
    assert len(read_trials(story.sweep)) == 3


def test_the_definition_is_kept_and_cannot_change(story):
    assert (story.sweep / "task.yaml").read_text() == TASK
    assert story.done["changed"].returncode == 2
    [line] = story.done["changed"].stderr.splitlines()
    assert "--task cannot change when a sweep goes on (it is reviews)" in line


def test_its_metrics_are_recorded_everywhere(story):
    sweep = read_sweep(story.sweep)
    assert sweep.objectives == {"dev/macro_f1": "max", "student/params": "min"}
    assert {"dev/macro_f1", "dev/accuracy"} <= set(sweep.teacher["metrics"])
    client = MlflowClient(f"sqlite:///{story.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("ikd-reviews").experiment_id
    kinds = [run.data.tags["ikd.kind"] for run in client.search_runs([experiment])]
    assert sorted(kinds) == ["sweep", "teacher", "trial", "trial", "trial"]


@pytest.mark.parametrize("exports", ["exports", "again"])
def test_exported_students_name_the_classes_and_score_as_recorded(story, exports):
    folders = sorted((story.home / exports).glob("reviews-*"))
    assert folders
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        assert config["id2label"] == {str(number): name for number, name in enumerate(CLASSES)}
        classify = pipeline("text-classification", str(folder), device="cpu")
        answers = classify([text for text, _ in story.dev])
        right = sum(answer["label"] == label for answer, (_, label) in zip(answers, story.dev, strict=True))
        facts = json.loads((folder / "ikd.json").read_text())
        assert right / len(story.dev) == facts["metrics"]["dev/accuracy"]
        card = (folder / "README.md").read_text()
        assert "for the task reviews." in card
        assert "Labels: negative, neutral, positive." in card
        assert "GLUE" not in card
    # The last epochs learned something: a broken label column would leave guesses.
    assert max(trial.metrics["dev/accuracy"] for trial in read_trials(story.sweep)) > 0.5
