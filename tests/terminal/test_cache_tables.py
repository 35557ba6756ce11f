"""The cache command: its tables, and what it clears."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from rich.filesize import decimal

from ikd_ray.config import Trial
from ikd_ray.distill.cache_contents import summarize_kinds, summarize_stages
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Distillation
from ikd_ray.storage.eviction import cache_entries
from ikd_ray.terminal.cache_tables import STAGES_SHOWN, format_ranges
from ikd_ray.terminal.command_line import run
from tests.helpers.terminal import invoke

FAST = {"student_layers": 2, "batch_size": 16, "learning_rate": 3e-3, "epochs": 3, "epochs_per_layer": 1}


@pytest.fixture(scope="module")
def make_distillation(data, targets):
    """Return a function that makes a distillation, not yet started, that saves its epochs in a cache."""

    def make_distillation(cache: Path, **fields):
        checkpoints = EpochCache(cache / "stages", 1.0, "sweep/trial")
        return iter(Distillation(Trial(**(FAST | fields)), data, targets, checkpoints=checkpoints))

    return make_distillation


@pytest.fixture(scope="module")
def filled_output(tmp_path_factory, make_distillation) -> Path:
    """Return an output folder after two trials, of which the PID student is the older one."""
    output = tmp_path_factory.mktemp("filled") / "outputs"
    cache = output / "cache"
    list(make_distillation(cache, regime="pid"))
    for number, state in enumerate(sorted(cache_entries(cache / "stages"), key=lambda state: state.used)):
        os.utime(state.folder, (1e9 + number, 1e9 + number))
    list(make_distillation(cache, regime="kd", seed=7, student_init="first"))
    for name in ("tokens", "teachers", "targets"):
        (cache / name / "key").mkdir(parents=True)
        (cache / name / "key" / "content").write_bytes(bytes(1234))
    (cache / "teachers" / ".key.lock").touch()
    return output


@pytest.fixture
def output(filled_output, tmp_path) -> Path:
    shutil.copytree(filled_output, tmp_path / "outputs")  # with its times
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("cache")


def rows(text: str) -> list[list[str]]:
    """Return the words of every line."""
    return [line.split() for line in text.splitlines()]


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


def test_list_shows_each_kind_with_its_folder(app, output):
    result = invoke(app, "list", "--output", output)
    assert result.exit_code == 0
    kinds = {kind.folder.name: kind for kind in summarize_kinds(output / "cache")}
    saved = sum(state.bytes for state in cache_entries(output / "cache" / "stages"))
    expected = dict.fromkeys(("tokens", "teachers", "targets"), (1, 1234)) | {
        "latency": (0, 0),
        "stages": (4, saved),
    }
    assert {name: (kind.entries, kind.bytes) for name, kind in kinds.items()} == expected
    assert kinds["latency"].last_used is None
    shown = "".join(result.stdout.split())  # a long path is folded
    for name, kind in kinds.items():
        assert f"{name}{kind.entries}{decimal(kind.bytes)}".replace(" ", "") in shown
    assert ["teachers", "1", "1.2", "kB"] in [row[:4] for row in rows(result.stdout)]


def test_list_shows_recently_used_stages_first(app, output):
    text = invoke(app, "list", "--output", output).stdout
    (head,) = [number for number, row in enumerate(rows(text)) if row[:2] == ["task", "regime"]]
    stages = [row for row in rows(text)[head + 1 :] if row[:1] == ["cola"]]
    assert [" ".join(row[:8]) for row in stages] == [  # the columns from task to epochs
        "cola kd C 2 first 0.003 7 1-3",
        "cola pid C 2 mapped 0.003 0 1-3",
        "cola pid 2 2 mapped 0.003 0 1",
        "cola pid 1 2 mapped 0.003 0 1",
    ]
    assert {row[-1] for row in stages} == {"no"}
    assert "2001-09-09" in " ".join(stages[1])


def test_tables_in_a_file_are_as_wide_as_those_of_other_commands(app, output, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    folded = [
        line
        for line in invoke(app, "list", "--output", output).stdout.splitlines()
        if str(output)[:20] in line
    ]
    assert max(map(len, folded)) > 80


def test_list_marks_stages_in_use(app, output, make_distillation):
    distillation = make_distillation(output / "cache", regime="pid")
    next(distillation)
    stages = summarize_stages(output / "cache")
    assert [stage.in_use for stage in stages].count(True) == 1
    (used,) = (stage for stage in stages if stage.in_use)
    assert used.about["stage"] == "1"
    assert re.search(r"cola pid +1 .* yes *$", invoke(app, "list", "--output", output).stdout, re.MULTILINE)
    distillation.close()
    assert not any(stage.in_use for stage in summarize_stages(output / "cache"))


def test_list_writes_nothing(app, output):
    before = list_files(output)
    folders = [output, *(path for path in output.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert invoke(app, "list", "--output", output).exit_code == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert list_files(output) == before


def test_many_stages_are_abbreviated(app, output):
    folder = output / "cache" / "stages"
    for number in range(STAGES_SHOWN):
        shutil.copytree(cache_entries(folder)[0].folder.parent, folder / f"copy{number}")
    stages = summarize_stages(output / "cache")
    text = invoke(app, "list", "--output", output).stdout
    assert sum(row[:1] == ["cola"] for row in rows(text)) == STAGES_SHOWN
    assert f"… and 4 more, {decimal(sum(stage.bytes for stage in stages[STAGES_SHOWN:]))}" in text


@pytest.mark.parametrize("card", ["", "[]", '{"about": 3}', '{"about": {"task": "\\u001b[31mred\\nx"}}'])
def test_list_tolerates_damaged_epochs(app, output, card):
    for state in cache_entries(output / "cache" / "stages"):
        (state.folder / "epoch.json").write_text(card)
    (output / "cache" / "stages" / "odd" / "folder").mkdir(parents=True)
    result = invoke(app, "list", "--output", output)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout


def test_clear_removes_only_saved_epochs(app, output):
    before = {path for path in (output / "cache").rglob("*") if "stages" not in path.parts}
    count, size = 8, decimal(sum(state.bytes for state in cache_entries(output / "cache" / "stages")))
    result = invoke(app, "clear", "--output", output)
    assert result.exit_code == 0
    assert f"Removed: {count} epochs of 4 stages, {size}." in result.stdout
    assert "Kept" not in result.stdout
    assert cache_entries(output / "cache" / "stages") == []
    assert {path for path in (output / "cache").rglob("*") if "stages" not in path.parts} == before
    assert "No saved epochs" in invoke(app, "list", "--output", output).stdout
    repeated = invoke(app, "clear", "--output", output)
    assert (repeated.exit_code, "Nothing to remove" in repeated.stdout) == (0, True)


def test_clear_keeps_epochs_in_use(app, output, make_distillation):
    distillation = make_distillation(output / "cache", regime="pid")
    next(distillation)
    result = invoke(app, "clear", "--output", output)
    (kept,) = cache_entries(output / "cache" / "stages")
    assert json.loads((kept.folder / "epoch.json").read_text())["about"]["stage"] == "1"
    assert "Removed: 7 epochs of 3 stages, " in result.stdout
    assert f"Kept: 1 epoch of 1 stage, {decimal(kept.bytes)}. Running trials use them." in result.stdout
    assert len(list(distillation)) == 4  # it goes on


def test_clear_reports_what_it_cannot_remove(app, output, monkeypatch):
    stuck = cache_entries(output / "cache" / "stages")[0].folder
    rename = os.rename

    def refuse(path, target):
        if path == stuck:
            raise PermissionError(path)
        rename(path, target)

    monkeypatch.setattr(os, "rename", refuse)
    result = invoke(app, "clear", "--output", output)
    assert result.exit_code == 1
    assert "no permission to remove 1 epoch of 1 stage" in result.stderr
    assert [state.folder for state in cache_entries(output / "cache" / "stages")] == [stuck]


@pytest.mark.parametrize("command", ["list", "clear"])
@pytest.mark.parametrize(
    "name", ["missing", "empty", "file", "file in place of the cache", "o" * 300, "/dev/null"]
)
def test_a_missing_cache_is_one_line_and_status_2(app, tmp_path, command, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "file in place of the cache").mkdir()
    (tmp_path / "file in place of the cache" / "cache").touch()
    before, output = list_files(tmp_path), tmp_path / name
    result = invoke(app, command, "--output", output)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: --output {output}: ")
    assert list_files(tmp_path) == before


@pytest.mark.parametrize("arguments", [[], ["lst"], ["list", "--out"], ["clear", "all"]])
def test_bad_arguments_are_one_line_and_status_2(app, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run(app, arguments)
    assert stop.value.code == 2
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert (output.out, line.startswith("error: ")) == ("", True)


@pytest.mark.parametrize(
    ("numbers", "text"), [([1, 2, 3], "1-3"), ([2], "2"), ([1, 3, 4, 9], "1, 3-4, 9"), ([], "")]
)
def test_format_ranges(numbers, text):
    assert format_ranges(numbers) == text
