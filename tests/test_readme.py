"""Every README: commands, flags, links, code blocks and quoted messages agree with the repository."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from ikd_ray.analysis.training_costs import Savings
from ikd_ray.commands.program import load_app
from ikd_ray.config import Trial
from ikd_ray.data.sources import load_dataset
from ikd_ray.data.task_file import _SCHEMA, load_task
from ikd_ray.distill import regimes
from ikd_ray.records import TrialRecord
from ikd_ray.search.budget import Budget
from ikd_ray.search.builtin_spaces import find_space
from ikd_ray.search.space import OBJECTIVES
from ikd_ray.search.space_file import load_space
from tests.helpers import field_tables
from tests.helpers.run_command import write_glue
from tests.helpers.servers import free_port, is_healthy, start_server, wait_until
from tests.helpers.tiny_models import make_dataset, write_teacher

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("", "sweeps", "sweeps/cluster", "search_spaces", "ikd_ray", "ikd_ray/report", "ikd_ray/bench")
NAMES = [*(str(Path(folder, "README.md")) for folder in FOLDERS), ".github/CONTRIBUTING.md"]
TEXTS = {name: (ROOT / name).read_text() for name in NAMES}
MAIN, SWEEPS = TEXTS["README.md"], TEXTS["sweeps/README.md"]
SPACES, BENCH = TEXTS["search_spaces/README.md"], TEXTS["ikd_ray/bench/README.md"]
MAX_PICTURE_BYTES = 200_000

# How a command that no test here runs is checked. A file that is named exists.
CHECKED_ELSEWHERE = {
    "python3 -m venv .venv": ".ci/run",  # installs and tests in this way
    ".venv/bin/ruff": ".ci/run",
    ".venv/bin/python -m pytest": ".ci/run",
    "source .venv/bin/activate": ".pre-commit-config.yaml",  # its hooks are compared with .ci/run below
    "python -m pytest -m slow tests/faults": "tests/faults/test_kills.py",  # a shorter form of it
    "python -m pytest -m long tests/sweep": "tests/sweep/test_scale.py",  # over an hour
    "python -m pytest -m gpu && ikd bench --device cuda": "tests/distill/test_gpu.py",  # needs a GPU
    "python -m tests.helpers.field_tables": "tests/helpers/field_tables.py",  # its output is compared below
    "ikd bench": "tests/bench/test_bench.py",  # on a few sentences; the command takes a quarter of an hour
    "ikd cache": "tests/terminal/test_cache_tables.py",
    "ikd report --check": "tests/sweep/test_verify.py",
    "ikd report": "tests/report/test_page.py",
    "ikd run --resume": "tests/sweep/test_sweep.py",
    "ikd run": "tests/sweep/test_sweep.py",  # hours on real data; flags and trials are checked below
    "ikd export": "tests/export/test_export_command.py",
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[str]:
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [line for line in (line.partition(" #")[0].strip() for line in lines) if line]


def section(text: str, title: str) -> str:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)[1]


def first_column(text: str, title: str) -> set[str]:
    """Return the code words in the first column of a section's tables."""
    rows = re.findall(r"^\| (`.*?) \|", section(text, title), re.M)
    return {word for row in rows for word in re.findall(r"`([^`]*)`", row)}


# test_cluster_docs.py checks the README of sweeps/cluster.
COMMANDS = [
    (name, line)
    for name, text in TEXTS.items()
    if name != "sweeps/cluster/README.md"
    for line in commands(text)
]
DAILY = [line for title in ("Daily use", "Your own data") for line in commands(section(MAIN, title))]


def application(command: str) -> Any:
    return typer.main.get_command(load_app(command))


# Commands


def test_every_command_is_checked_somewhere():
    assert len(DAILY) > 8
    for name, line in COMMANDS:
        if not (name == "README.md" and line in DAILY):
            assert line.startswith(tuple(CHECKED_ELSEWHERE)), f"{name}: {line}"
    for start, path in CHECKED_ELSEWHERE.items():
        assert any(line.startswith(start) for _, line in COMMANDS), start
        assert (ROOT / path).exists()


@pytest.mark.parametrize(("name", "line"), [c for c in COMMANDS if c[1].startswith("ikd ")])
def test_commands_have_flags_that_exist(name, line):
    _, command, *arguments = shlex.split(line)
    parser = application(command)
    if command == "cache":
        parser, arguments = parser.commands[arguments[0]], arguments[1:]
    given = parser.make_context(command, arguments).params
    assert find_space(given.get("space", "default")).exists()


def test_the_two_commands_are_those_of_ci():
    script = (ROOT / ".ci" / "run").read_text()
    install, tests = 'pip install -e ".[test]"', "-m pytest -n 2 --dist loadfile"
    for text in (MAIN, TEXTS[".github/CONTRIBUTING.md"]):
        assert any(install in line for line in commands(text))
        assert any(tests in line for line in commands(text))
    assert '-m pip install --quiet --editable ".[test]"' in script
    assert tests in script


def test_pre_commit_runs_the_checks_of_ci():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    script = (ROOT / ".ci" / "run").read_text().replace('"', "")
    programs = {hook["entry"].removesuffix(" --fix") for hook in repository["hooks"]}
    assert programs == {"ruff check", "ruff format", "mypy"}
    assert all(f"bin/{program}" in script for program in programs)


def test_the_claims_were_measured_with_the_trials_that_the_table_gives():
    claims = section(BENCH, "The paper's claims, measured again")
    runs = [words for line in commands(claims) if (words := shlex.split(line))[:2] == ["ikd", "run"]]
    for _, command, *arguments in runs:
        asked = application(command).make_context(command, arguments).params
        (trials,) = re.findall(rf"\| `{asked['name']}` \| (\d+) \|", claims)
        assert Budget(load_space(find_space(asked["space"]), 6), asked["trials"]).total == int(trials)
    assert len(runs) == 5


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory):
    """Return a working folder as the README assumes it, with little data."""
    folder = tmp_path_factory.mktemp("readme")
    write_glue(folder / "glue")
    (folder / "reviews.yaml").write_text(task_block())
    (folder / "reviews").mkdir()
    stars = {"bad": 1, "passable": 3, "good": 5}
    rows = [f'"Film number {n} was {word}.",{label}' for n in range(20) for word, label in stars.items()]
    for name, part in (("train", rows), ("dev", rows[:24])):
        (folder / "reviews" / f"{name}.csv").write_text("\n".join(["review,stars", *part]) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_daily_commands_work_one_after_the_other(working_folder, environment):
    """The sequence of commands in README.md, each in a process of its own, on little data."""
    environment = environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for line in DAILY:
        words = shlex.split(line)
        if words[:2] == ["mlflow", "ui"]:
            check_server(words, working_folder, environment)
            continue
        options = {"cwd": working_folder, "env": environment, "timeout": 600}
        done = subprocess.run(words, capture_output=True, text=True, **options)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert list(working_folder.glob("outputs/*/report/report.html"))
    assert list(working_folder.glob("onnx/*/onnx/model_quantized.onnx"))
    assert len(list(working_folder.glob("small/*/model.safetensors"))) == 1
    reviews = list(working_folder.glob("exports/reviews-*/config.json"))
    assert reviews
    assert all('"negative"' in config.read_text() for config in reviews)
    names = check_block_of_pipeline(next(working_folder.glob("exports/cola-*")))
    assert names <= {"acceptable", "unacceptable"}
    block = python_block("README.md", "ikd_ray.sweep(")
    options = {"cwd": working_folder, "env": environment, "timeout": 900}
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    assert list(working_folder.glob("exports-python/cola-*/model.safetensors"))
    assert (working_folder / "student" / "model.safetensors").is_file()


def check_server(words: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Check that a command starts a server that answers, at a port that is free."""
    port, log = free_port(), folder / "mlflow.log"
    server = start_server([*words, "--port", str(port)], folder, log, environment)
    try:
        wait_until(lambda: is_healthy(f"http://127.0.0.1:{port}"), server, log)
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def check_block_of_pipeline(student: Path) -> set[str]:
    """Run README.md's Python block on an exported student; return the labels that it gives."""
    block = python_block("README.md", 'pipeline("text-classification"')
    names = run_block(block.replace("exports/cola-kd-3L-t000", str(student)))
    return {answer["label"] for answer in names["classify"](["w1 w2.", "w2 w1."])}


def run_block(block: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Run a block with the given names defined, and return all names after it."""
    names = dict(given or {})
    exec(compile(block, "README.md", "exec"), names)
    return names


# Flags, keys and names


@pytest.mark.parametrize(
    ("command", "text", "title"),
    [
        ("run", SWEEPS, "ikd run: run a sweep"),
        ("report", SWEEPS, "ikd report: draw or check a sweep"),
        ("export", SWEEPS, "ikd export: export students"),
        ("bench", BENCH, "Speed"),
    ],
)
def test_tables_have_all_flags(command, text, title):
    flags = {flag for parameter in application(command).params for flag in parameter.opts}
    assert {word for word in first_column(text, title) if word.startswith("--")} == flags - {"--help"}


def test_the_cache_has_one_flag():
    commands = application("cache").commands
    assert commands.keys() == {"list", "clear"}
    assert {parameter.name for command in commands.values() for parameter in command.params} == {"output"}


def test_the_keys_of_a_trial_are_those_of_its_record():
    properties = TypeAdapter(TrialRecord).json_schema(by_alias=True)["properties"]
    assert first_column(SWEEPS, "The output folder") >= properties.keys()


def test_the_names_in_mlflow_are_those_of_the_code():
    code = "\n".join(path.read_text() for path in (ROOT / "ikd_ray" / "tracking").glob("*.py"))
    text = section(SWEEPS, "MLflow")
    assert set(re.findall(r"`(ikd\.\w+)`", text)) == set(re.findall(r"\bikd\.(?!json)[a-z]\w*", code))
    saved = {name for name in Savings().metrics() if name.startswith("sharing/")}
    assert set(re.findall(r"`(sharing/\w+)`", text)) == saved


def test_field_tables_are_those_of_the_models():
    _, marker, tables = SPACES.partition(field_tables.MARKER)
    assert marker
    assert tables.strip() == field_tables.tables().strip(), (
        "the tables of search_spaces/README.md differ from ikd_ray/config.py; "
        "make them anew: python -m tests.helpers.field_tables"
    )


def test_all_objectives_are_listed():
    assert first_column(SPACES, "Objectives") == set(OBJECTIVES)


def test_all_space_files_are_listed():
    listed = set(re.findall(r"\]\((\w+\.yaml)\)", SPACES))
    assert listed == {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}


def test_messages_are_those_of_the_code():
    code = "\n".join(path.read_text() for path in (ROOT / "ikd_ray").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", re.sub(r"\{[^{}]*\}", "...", code))
    rows = re.findall(r"^\| `(.*?)` \|", section(SWEEPS, "Troubleshooting"), re.M)
    assert len(rows) > 8
    for row in rows:
        piece = max(re.split(r"\.\.\.|NAME|: ", row), key=len).strip(" ()")
        assert piece in code, row


def test_results_of_the_main_readme_are_those_of_the_benchmark():
    mrpc = re.search(r"^### Regimes on MRPC\n(.*?)^### ", BENCH, re.S | re.M)[1]
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", section(MAIN, "Results"), re.M)[1:]]
    assert len(rows) == 6
    for name, *cells in rows:
        (row,) = re.findall(rf"^\| {name} \| (.*) \|$", mrpc, re.M)
        assert set(cells) <= set(row.split(" | "))


# Code blocks


def task_block() -> str:
    return next(block for block in blocks(MAIN, "yaml") if "stars" in block)


@pytest.mark.parametrize(
    ("name", "block"),
    [("reviews", task_block()), *zip(("tickets", "films"), blocks(SWEEPS, "yaml"), strict=True)],
)
def test_task_files_are_valid(tmp_path, name, block):
    (tmp_path / "task.yaml").write_text(block)
    assert load_task(tmp_path / "task.yaml").name == name


def test_the_example_of_one_table_is_loaded_as_described(tmp_path):
    (tmp_path / "task.yaml").write_text(blocks(SWEEPS, "yaml")[0])
    for name, rows in (("tickets", range(600)), ("test", range(600, 660))):
        lines = [f"message {row},{('billing', 'delivery', 'other')[row % 3]}\n" for row in rows]
        (tmp_path / f"{name}.csv").write_text("message,topic\n" + "".join(lines))
    data = load_dataset(load_task(tmp_path / "task.yaml"), tmp_path)
    said = "dev: 60 of 600 rows, drawn stratified with seed 0"
    assert data.description.endswith(f"(tickets, 540 train / 60 dev / 60 test); {said}")
    assert said in " ".join(SWEEPS.split())


def test_the_table_has_all_keys_of_task_files():
    assert first_column(SWEEPS, "Task files") == set(get_args(_SCHEMA)[0].__annotations__)


@pytest.mark.parametrize(
    "block", [*blocks(SPACES, "yaml"), *(block for block in blocks(MAIN, "yaml") if "params:" in block)]
)
def test_space_blocks_are_valid(block, tmp_path):
    (tmp_path / "space.yaml").write_text(block)
    assert load_space(tmp_path / "space.yaml").params


def python_block(name: str, word: str) -> str:
    return next(block for block in blocks(TEXTS[name], "python") if word in block)


def test_the_new_regime_is_one():
    block = python_block("ikd_ray/README.md", "top_down")
    stages = run_block(block, vars(regimes))["top_down"](Trial(student_layers=3))
    assert [stage.name for stage in stages] == ["3", "2", "1", "C"]
    assert len(block.strip().splitlines()) <= 15


def test_one_trial_runs_without_ray_and_its_metrics_are_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ikd_ray.data.sources.load_dataset", lambda task, folder: make_dataset(task.name))
    teacher = write_teacher(tmp_path / "teacher")
    monkeypatch.setattr("ikd_ray.distill.teacher.bundled_teacher", lambda: teacher)
    names = run_block(python_block("ikd_ray/README.md", "ikd_ray.distill("))
    assert (tmp_path / "student" / "model.safetensors").is_file()
    student = names["student"]
    names = run_block(python_block("ikd_ray/README.md", "build_targets("))
    assert (tmp_path / "student-of-parts" / "model.safetensors").is_file()
    assert {*names["result"].metrics} <= {*student.metrics}
    listed = first_column(SWEEPS, "MLflow")
    for metric in names["result"].metrics:
        metric = re.sub(r"layer_\d+", "layer_<i>", metric).replace("dev/mcc", "dev/<metric>")
        assert metric in listed


# Links


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a text."""
    titles = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


LINKS = sorted(
    {(name, link) for name, text in TEXTS.items() for link in re.findall(r"\]\((?!http)([^)\s]*)\)", text)}
)


@pytest.mark.parametrize(("name", "link"), LINKS, ids=[f"{name}: {link}" for name, link in LINKS])
def test_links_lead_somewhere(name, link):
    path, _, anchor = link.partition("#")
    target = (ROOT / name).parent / path if path else ROOT / name
    assert target.exists()
    if anchor:
        assert anchor in anchors(target.read_text())
    if target.suffix == ".png":
        assert target.stat().st_size < MAX_PICTURE_BYTES, "too large to load at once"


def test_every_readme_can_be_reached_from_the_main_one():
    linked = {(ROOT / name).parent / link.partition("#")[0] for name, link in LINKS if name == "README.md"}
    assert {ROOT / name for name in NAMES[1:]} <= {path.resolve() for path in linked}
    tracked = subprocess.run(["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True)
    assert set(tracked.stdout.split()) <= set(NAMES)


def test_the_main_readme_is_short():
    assert len(MAIN.splitlines()) <= 200


def test_the_rooms_are_listed_in_their_order():
    from tests.test_structure import GROUND, ROOMS

    text = TEXTS["ikd_ray/README.md"]
    rooms = re.findall(r"^\| \[(\w+)(?:\.py)?\]\(", text.partition("## Modules at the top")[0], re.M)
    assert rooms == list(ROOMS)
    assert set(re.findall(r"\[(\w+)\.py\]", section(text, "Modules at the top"))) == set(GROUND)
