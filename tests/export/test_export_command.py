"""`ikd export` as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ikd_ray import records
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.storage import store
from tests.helpers.sample_students import (
    LARGE_EXPORT,
    SENTENCE,
    SMALL_EXPORT,
    file_contents,
    is_whole_export,
    make_student_sweep,
)
from tests.helpers.terminal import usage_error

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "sweeps" / "export.py"


@pytest.fixture(scope="module")
def sample_output(tmp_path_factory) -> Path:
    """Return an output folder to read; never change it."""
    output = tmp_path_factory.mktemp("sample") / "outputs"
    first = make_student_sweep(output)
    (output / "unfinished").mkdir()
    records.write_sweep(output / "unfinished", records.read_sweep(first))
    return output


@pytest.fixture
def output(sample_output, tmp_path) -> Path:
    """Return a copy to change."""
    shutil.copytree(sample_output, tmp_path / "outputs")
    return tmp_path / "outputs"


def test_generated_corpus_is_unmissable(tmp_path, call, export):
    make_student_sweep(tmp_path / "outputs", generated=True)
    listed = call("export", "--task", "cola", "--list", cwd=tmp_path)
    assert GENERATED_WARNING in listed.stdout
    result = export(tmp_path / "outputs")
    assert GENERATED_WARNING in result.stdout
    card = (tmp_path / "exports" / SMALL_EXPORT / "README.md").read_text()
    assert card.count(GENERATED_WARNING) >= 2
    assert "generated-data" in card
    assert json.loads((tmp_path / "exports" / SMALL_EXPORT / "ikd.json").read_text())["generated"] is True


def test_existing_folder_is_refused_before_anything_is_written(sample_output, tmp_path, export):
    to = tmp_path / "exports"
    (to / LARGE_EXPORT).mkdir(parents=True)
    (to / LARGE_EXPORT / "mine.txt").write_text("keep")
    before = file_contents(to)
    error = usage_error(export(sample_output, status=2))
    assert LARGE_EXPORT in error
    assert "--force" in error
    assert file_contents(to) == before
    assert [path.name for path in to.iterdir()] == [LARGE_EXPORT]
    export(sample_output, "--force")
    assert sorted(path.name for path in to.iterdir()) == [SMALL_EXPORT, LARGE_EXPORT]
    assert not (to / LARGE_EXPORT / "mine.txt").exists()
    assert is_whole_export(to / LARGE_EXPORT)


def test_folders_of_earlier_versions_are_replaced_whole(sample_output, tmp_path, export):
    """They have checksums, and notes on them, in files of their own."""
    old = tmp_path / "exports" / SMALL_EXPORT
    old.mkdir(parents=True)
    (old / "model.onnx").write_bytes(b"old")
    store.publish(old, old.with_name("published"))
    old.with_name("published").rename(old)
    assert {path.name for path in old.iterdir()} >= {"model.onnx", store.MANIFEST, store.VERIFIED}
    export(sample_output, "--pick", "aaaa1111", "--force")
    assert not {"model.onnx", store.MANIFEST, store.VERIFIED} & {path.name for path in old.iterdir()}
    assert is_whole_export(old)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_trial_is_skipped_and_reported(output, tmp_path, export, damage):
    weights = records.trial_folder(output / "first", "aaaa1111") / "student" / "model.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        weights.unlink()
    result = export(output, status=1)
    assert "aaaa1111: not exported: " in result.stderr
    assert "damaged" in result.stderr
    assert [path.name for path in (tmp_path / "exports").iterdir()] == [LARGE_EXPORT]


def test_command_takes_the_newest_sweep_with_a_student_and_prints_how_to_load(output, export):
    make_student_sweep(output, name="second")
    make_student_sweep(output, name="of-rte", task="rte")
    for age, name in enumerate(["of-rte", "unfinished", "second", "first"]):
        os.utime(output / name / "sweep.json", (1e9 - age, 1e9 - age))
    result = export(output)
    assert "front of sweep second" in result.stdout
    names: dict = {}
    exec(result.stdout.partition("Load one:\n")[2], names)
    assert names["classify"](SENTENCE)[0]["label"] in ("acceptable", "unacceptable")


INVALID = {
    "unknown task": (["--task", "colla"], "one of: cola"),
    "no sweep of the task": (["--task", "rte"], "no sweep of rte"),
    "unknown name": (["--task", "cola", "--name", "nothing"], "nothing"),
    "another task's": (["--task", "rte", "--name", "first"], "sweep of cola, not of rte"),
    "leaves the folder": (["--task", "cola", "--name", "../outputs/first"], "not a path"),
    "parent": (["--task", "cola", "--name", ".."], "not a path"),
    "empty name": (["--task", "cola", "--name", ""], "not a path"),
    "control character": (["--task", "cola", "--name", "a\x1b[31mb"], "x1b"),
    "no output": (["--task", "cola", "--output", "nowhere"], "nowhere"),
    "long output": (["--task", "cola", "--output", "x" * 5000], "--output"),
    "long name": (["--task", "cola", "--name", "x" * 5000], "no sweep there"),
    "picked a word": (["--task", "cola", "--pick", "bset"], "has this id; give best"),
    "picked a failed trial": (["--task", "cola", "--pick", "dddd4444"], "has failed"),
    "picked two": (["--task", "cola", "--pick", "best", "aaaa1111"], "'best aaaa1111'"),
    "stray word": (["--task", "cola", "aaaa1111"], "'aaaa1111': no argument"),
    "push a name that is none": (["--task", "cola", "--push-to-hub", "a/b/c"], "not a repository's name"),
    "push and list": (["--task", "cola", "--list", "--push-to-hub", "ann/x"], "leave out --push-to-hub"),
    "list and write": (["--task", "cola", "--list", "--int8"], "leave out --int8"),
    "unfinished": (["--task", "cola", "--name", "unfinished"], "no finished trial"),
}


@pytest.mark.parametrize("case", INVALID)
def test_bad_input_is_one_line_and_writes_nothing(sample_output, tmp_path, call, case):
    arguments, message = INVALID[case]
    options = {"--output": sample_output, "--to": tmp_path / "exports"}
    more = [part for key, value in options.items() if key not in arguments for part in (key, value)]
    assert message in usage_error(call("export", *arguments, *more, cwd=tmp_path, status=2))
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "--task"), (["--task", "cola", "--colour", "red"], "--colour")]
)
def test_typer_frames_its_own_errors(tmp_path, call, arguments, message):
    result = call("export", *arguments, cwd=tmp_path, status=2)
    assert result.stdout == ""
    assert message in result.stderr
    assert not (tmp_path / "exports").exists()


@pytest.mark.parametrize("to", ["file", "file/below", "link", "/proc/nowhere"])
def test_target_that_cannot_be_written_is_refused(sample_output, tmp_path, export, to):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = file_contents(tmp_path)
    assert usage_error(export(sample_output, to=to, status=2)).startswith("error: --to ")
    assert file_contents(tmp_path) == before


def test_finished_trials_without_finite_objectives_are_refused(tmp_path, export):
    sweep = make_student_sweep(tmp_path / "outputs", objectives={"dev/f1": "max"})
    assert "finite" in usage_error(export(sweep.parent, status=2))


def test_list_needs_no_student_and_no_torch_and_writes_nothing(output, tmp_path):
    for weights in output.glob("first/trials/*/student"):
        shutil.rmtree(weights)
    shutil.rmtree(output / "cache")
    before = file_contents(tmp_path)
    arguments = ["export.py", "--task", "cola", "--output", str(output), "--name", "first", "--list"]
    code = (
        f"import runpy, sys; sys.argv = {arguments!r}\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'onnx', 'sklearn'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "cola: front of sweep first"
    assert max(map(len, lines)) <= 80
    assert [line.split()[-1] for line in lines[-4:-2]] == ["bbbb2222", "aaaa1111"]  # the best first
    assert lines[-4].split()[:3] == ["pid", "2", "0.350"]
    assert lines[-2].startswith("2 layers: ")
    assert "cccc3333" not in done.stdout
    assert file_contents(tmp_path) == before


@pytest.mark.parametrize(
    ("pick", "expected"),
    [
        (["--pick", "best"], LARGE_EXPORT),
        (["--pick", "smallest-within", "0.05"], SMALL_EXPORT),
        (["--pick=smallest-within=0.05"], SMALL_EXPORT),
        (["--pick", "cccc3333"], "cola-sid-2L-cccc3333"),
    ],
)
def test_only_the_student_that_is_picked_is_exported(sample_output, tmp_path, call, export, pick, expected):
    flags = (*pick, "--name", "first")
    result = export(sample_output, *flags)
    assert "a student of sweep first" in result.stdout
    assert [path.name for path in (tmp_path / "exports").iterdir()] == [expected]
    listed = call("export", "--task", "cola", "--output", sample_output, *flags, "--list", cwd=tmp_path)
    assert listed.stdout.splitlines()[-2].split()[-1] == expected[-8:]
