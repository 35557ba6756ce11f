"""What README says to type works as it stands there, and what it shows is there."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ikd_ray.config import Trial
from ikd_ray.distill import regimes
from ikd_ray.search.budget import Budget
from ikd_ray.search.space import load_space
from tests.helpers.run_command import write_glue
from tests.helpers.servers import free_port, is_healthy, wait_until

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
# Checked by other means, and how; each must be there.
ELSEWHERE = {
    "python3 -m venv .venv": ".ci/run installs and tests in this way",
    "python -m pytest tests/faults --kills 20": "test_kills.py runs a quick form of it",
    "python sweeps/bench.py": "a quarter of an hour; tests/bench runs it on a few sentences",
}


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.S | re.M)[1]


def commands(text: str) -> list[str]:
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)).splitlines()
    return [line for line in (line.partition(" #")[0].strip() for line in lines) if line]


CLUSTER = commands(section("A cluster"))  # test_cluster_docs.py holds these
CLAIMS = commands(section("The paper's claims, measured again"))  # hours; a test reads what they ask for
OTHERS = {*CLUSTER, *CLAIMS}
HERE = [line for line in commands(README) if line not in OTHERS and not line.startswith(tuple(ELSEWHERE))]


def test_every_command_is_run_by_some_test():
    assert len(HERE) > 8
    for start in ELSEWHERE:
        assert any(line.startswith(start) for line in commands(README)), start
    ci = (ROOT / ".ci" / "run").read_text()
    tests = next(line for line in commands(README) if "-m pytest" in line)
    for part in ('pip install -e ".[test]"', "-m pytest -n 2 --dist loadfile"):
        assert part in tests
    assert '-m pip install --quiet --editable ".[test]"' in ci
    assert "-m pytest -q -n 2 --dist loadfile" in ci


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder as README has it in mind: the repository's, with a little data. And its environment."""
    here = tmp_path_factory.mktemp("readme")
    for name in ("sweeps", "search_spaces"):
        (here / name).symlink_to(ROOT / name)
    write_glue(here / "glue")
    block = next(text for text in re.findall(r"^```yaml\n(.*?)^```", README, re.S | re.M) if "stars" in text)
    (here / "reviews.yaml").write_text(block)
    (here / "reviews").mkdir()
    rows = [
        f'"A film, number {n}, that was {word}.",{stars}' for n in range(20) for word, stars in WORDS.items()
    ]
    for name, part in (("train", rows), ("dev", rows[:24])):
        (here / "reviews" / f"{name}.csv").write_text("\n".join(["review,stars", *part]) + "\n")
    unset = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    kept = {key: value for key, value in os.environ.items() if key not in unset}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return here, kept | {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}


WORDS = {"bad": 1, "passable": 3, "good": 5}


def test_what_it_measured_is_asked_for_as_it_says():
    table = section("The paper's claims, measured again")
    for line in CLAIMS:
        _, program, *words = shlex.split(line)
        context = typer.main.get_command(runpy.run_path(str(ROOT / program))["app"]).make_context(
            program, words
        )
        asked = context.params
        (trials,) = re.findall(rf"\| `{asked['name']}` \| (\d+) \|", table)
        if "space" in asked:
            space = load_space(ROOT / asked["space"])
            assert Budget(space, asked["trials"]).total == int(trials), line


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_commands_work_one_after_the_other(here):
    folder, environment = here
    for line in HERE:
        words = shlex.split(line)
        if words[:2] == ["mlflow", "ui"]:
            serves(words, folder, environment)
            continue
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert list(folder.glob("outputs/*/report/report.html"))
    assert [path.name for path in folder.glob("onnx/*/*.onnx")]
    assert len(list(folder.glob("small/*/model.safetensors"))) == 1
    reviews = list(folder.glob("exports/reviews-*/config.json"))
    assert reviews
    assert all('"negative"' in config.read_text() for config in reviews)


def serves(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """The command starts a server that answers; its port is another one, as somebody may use the usual one."""

    port = free_port()
    with open(folder / "mlflow.log", "ab") as log:
        server = subprocess.Popen(
            [*words, "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    try:
        wait_until(lambda: is_healthy(f"http://127.0.0.1:{port}"), server, folder / "mlflow.log")
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def test_the_new_regime_is_one():
    block = next(
        text for text in re.findall(r"^```python\n(.*?)^```", README, re.S | re.M) if "top_down" in text
    )
    names = dict(vars(regimes))
    exec(compile(block, "README.md", "exec"), names)
    stages = names["top_down"](Trial(student_layers=3))
    assert [stage.name for stage in stages] == ["3", "2", "1", "C"]
    assert len(block.strip().splitlines()) <= 15


def test_messages_are_those_that_people_see():
    sources = "\n".join(path.read_text() for path in (ROOT / "ikd_ray").rglob("*.py"))
    sources = re.sub(r"\{[^{}]*\}", "...", sources)
    rows = re.findall(r"^\| `(.*?)` \|", section("Troubleshooting"), re.M)
    assert len(rows) > 8
    for row in rows:
        piece = max(re.split(r"\.\.\.|NAME|: ", row), key=len).strip(" ()")
        assert piece in sources, row


@pytest.mark.parametrize("picture", re.findall(r"\]\((?!http|#)([^)]*)\)", README))
def test_what_it_links_to_is_there(picture):
    assert (ROOT / picture).is_file()
    assert (ROOT / picture).stat().st_size < 200_000, "small enough to load at once"


def test_its_sections_are_there():
    titles = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^## (.*)", README, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", README)) <= titles
