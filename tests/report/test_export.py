from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from screen import run
from students import student, write_tokenizer
from transformers import AutoTokenizer, pipeline

from ikd_ray.config import Trial
from ikd_ray.data import store
from ikd_ray.distill.linear import use_onednn
from ikd_ray.errors import UsageError
from ikd_ray.report import export, records
from ikd_ray.report.export import choose_sweep, export_students
from ikd_ray.report.pareto import GENERATED
from ikd_ray.report.records import SweepRecord, TrialRecord
from ikd_ray.tasks import get_task

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "sweeps" / "export.py"
SENTENCE = "The cats sat on a mat."
SMALL, LARGE = "cola-kd-1L-aaaa1111", "cola-pid-2L-bbbb2222"


def make_sweep(
    output: Path, name: str = "first", task: str = "cola", generated: bool = False, **changes
) -> Path:
    """A sweep of four trials, two of them on the front, and its teacher."""
    teacher = output / "cache" / "teachers" / "key"
    if not teacher.exists():
        write_tokenizer(teacher)
    fields = {
        "name": name,
        "task": task,
        "seed": 7,
        "trials": 4,
        "command": f"python sweeps/run.py --task {task} --name {name}",
        "code_version": "0.1.0+gabc1234",
        "data": {
            "source": "embedded" if generated else "folder",
            "description": "8551 train | 1043 dev",
            "fingerprint": "f00d",
            "generated": generated,
            "max_length": 48,
        },
        "teacher": {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}},
        "objectives": {"dev/mcc": "max", "student/params": "min"},
    }
    sweep = output / name
    sweep.mkdir(parents=True)
    records.write_sweep(sweep, SweepRecord(**(fields | changes)))
    labels = 1 if task == "stsb" else 2
    for number, (trial_id, regime, layers, mcc) in enumerate(
        [("aaaa1111", "kd", 1, 0.1 + 0.2), ("bbbb2222", "pid", 2, 0.35), ("cccc3333", "sid", 2, 0.2)]
    ):
        model = student(layers, labels)
        params = Trial.model_validate({"regime": regime, "student_layers": layers, "lambda": 0.3}).params()
        metrics = {"dev/mcc": mcc, "student/params": model.num_parameters(), "student/size_mb": 0.1}
        trial = TrialRecord(trial_id, number, params, [3, 6][-layers:], "finished", metrics, duration_s=2.5)
        records.write_trial(sweep, trial, model.save_pretrained)
    failed = TrialRecord("dddd4444", 3, {"regime": "id"}, [6], "failed", reason="out of memory")
    records.write_trial(sweep, failed)
    return sweep


@pytest.fixture
def output(tmp_path) -> Path:
    make_sweep(tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("export")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_exported_students_load_with_named_labels_and_the_same_logits(output, tmp_path):
    made = export_students(output / "first", tmp_path / "exports")
    assert [student.folder.name for student in made] == [SMALL, LARGE]
    for layers, exported in enumerate(made, start=1):
        classify = pipeline("text-classification", str(exported.folder), device="cpu")
        answers = classify(SENTENCE, top_k=None)
        assert {answer["label"] for answer in answers} == {"acceptable", "unacceptable"}
        inputs = AutoTokenizer.from_pretrained(exported.folder)(SENTENCE, return_tensors="pt")
        assert inputs["input_ids"].tolist() == [[2, 5, 6, 11, 7, 8, 9, 10, 12, 3]]
        original = student(layers)
        original.set_attn_implementation("sdpa")
        use_onednn(original, False)  # another library's matrix products differ in the last bit
        # A copy, because the last bit of a matrix product depends on where a file's mapping put the weights.
        loaded = copy.deepcopy(classify.model)
        with torch.inference_mode():
            assert torch.equal(loaded(**inputs).logits, original(**inputs).logits)
        scores = {answer["label"]: answer["score"] for answer in answers}
        with torch.inference_mode():
            expected = original(**inputs).logits.softmax(-1)[0]
        assert scores["acceptable"] == pytest.approx(float(expected[1]), rel=1e-5)


def test_exported_folder_loads_where_this_package_is_not(output, tmp_path):
    (small, _) = export_students(output / "first", tmp_path / "exports")
    code = (
        "import sys; from transformers import pipeline; "
        "print(pipeline('text-classification', sys.argv[1], device='cpu')('the cat')[0]['label']); "
        "assert 'ikd_ray' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small.folder)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "acceptable" in done.stdout


def test_regression_of_pairs_gives_a_score(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", task="stsb")
    (small, _) = export_students(sweep, tmp_path / "exports")
    classify = pipeline("text-classification", str(small.folder), device="cpu")
    answer = classify({"text": "the cat", "text_pair": "a mat"})
    assert answer["label"] == "score"
    inputs = AutoTokenizer.from_pretrained(small.folder)("the cat", "a mat", return_tensors="pt")
    with torch.inference_mode():
        assert answer["score"] == pytest.approx(float(student(1, 1)(**inputs).logits[0, 0]), rel=1e-4)
    assert "text_pair" in (small.folder / "README.md").read_text()


def test_folder_is_whole_and_says_how_it_was_made(output, tmp_path):
    (small, large) = export_students(output / "first", tmp_path / "exports")
    assert store.is_intact(small.folder)
    names = {path.name for path in small.folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "ikd.json"} <= names
    assert "teacher.json" not in names
    assert (small.folder / "model.safetensors").read_bytes() != b"not for students"
    facts = json.loads((large.folder / "ikd.json").read_text())
    assert facts["params"]["lambda"] == 0.3
    assert facts["layer_map"] == [3, 6]
    assert facts["teacher"] == {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    assert facts["generated"] is False
    _, front_matter, card = (small.folder / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front_matter)
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-classification")
    assert "| dev/mcc | 0.30000000000000004 | 0.41 |" in card
    assert "8551 train \\| 1043 dev" in card
    assert "python sweeps/run.py --task cola --name first" in card
    assert "| 1 | 6 |" in card
    assert all(f"| {name} | {value} |" in card for name, value in small.trial.params.items())
    assert GENERATED not in card
    assert "assistant" not in facts
    assert "| assistant |" not in card
    assert not list((tmp_path / "exports").glob(".*"))


def test_it_says_who_taught_in_the_teachers_place(tmp_path):
    known = {"name": "2L of mini", "key": "f00", "metrics": {"dev/mcc": math.nan}}
    teacher = {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}}
    sweep = make_sweep(tmp_path / "outputs", teacher=teacher | {"assistants": {"2": known}})
    trial = records.read_trial(sweep, "aaaa1111")
    store.discard(records.trial_folder(sweep, trial.id))
    taught = replace(trial, params=trial.params | {"assistant_layers": 2})
    records.write_trial(sweep, taught, student(1).save_pretrained)
    small, large = export_students(sweep, tmp_path / "exports")
    facts, others = (json.loads((made.folder / "ikd.json").read_text()) for made in (small, large))
    assert facts["teacher"] == others["teacher"] == teacher
    assert facts["assistant"] == known | {"metrics": {"dev/mcc": None}}
    assert "assistant" not in others
    row = "| assistant | 2 layers (f00), in the teacher's place |"
    assert row in (small.folder / "README.md").read_text()
    assert "| assistant |" not in (large.folder / "README.md").read_text()


def test_generated_corpus_is_unmissable(tmp_path, app):
    make_sweep(tmp_path / "outputs", generated=True)
    result = run(app, "--task", "cola", "--output", tmp_path / "outputs", "--to", tmp_path / "exports")
    assert result.exit_code == 0
    assert GENERATED in result.stdout
    card = (tmp_path / "exports" / SMALL / "README.md").read_text()
    assert card.count(GENERATED) >= 2
    assert "generated-data" in card
    assert json.loads((tmp_path / "exports" / SMALL / "ikd.json").read_text())["generated"] is True


def test_existing_folder_is_refused_before_anything_is_written(output, tmp_path, app):
    to = tmp_path / "exports"
    (to / LARGE).mkdir(parents=True)
    (to / LARGE / "mine.txt").write_text("keep")
    before = everything(to)
    result = run(app, "--task", "cola", "--output", output, "--to", to)
    assert result.exit_code == 2
    assert LARGE in result.stderr
    assert "--force" in result.stderr
    assert everything(to) == before
    assert [path.name for path in to.iterdir()] == [LARGE]
    assert run(app, "--task", "cola", "--output", output, "--to", to, "--force").exit_code == 0
    assert sorted(path.name for path in to.iterdir()) == [SMALL, LARGE]
    assert not (to / LARGE / "mine.txt").exists()
    assert store.is_intact(to / LARGE)


def test_force_keeps_the_old_folder_when_the_new_one_fails(output, tmp_path, monkeypatch):
    to = tmp_path / "exports"
    export_students(output / "first", to)
    before = everything(to)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "model_card", fail)
    with pytest.raises(UsageError, match="No space left"):
        export_students(output / "first", to, force=True)
    assert everything(to) == before
    monkeypatch.undo()
    rename = os.rename

    def not_the_last(old, new):
        if Path(new).parent == to and Path(old).name == "new":
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(export.os, "rename", not_the_last)
    with pytest.raises(UsageError, match="Input/output error"):
        export_students(output / "first", to, force=True)
    assert everything(to) == before


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_trial_is_skipped_and_told(output, tmp_path, app, damage):
    weights = records.trial_folder(output / "first", "aaaa1111") / "student" / "model.safetensors"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        weights.unlink()
    result = run(app, "--task", "cola", "--output", output, "--to", tmp_path / "exports")
    assert result.exit_code == 1
    assert "aaaa1111" in result.stderr
    assert "damaged" in result.stderr
    assert [path.name for path in (tmp_path / "exports").iterdir()] == [LARGE]


def test_command_takes_the_newest_sweep_with_a_student_and_prints_how_to_load(output, tmp_path, app):
    newer = make_sweep(output, name="second")
    unfinished = output / "third"
    unfinished.mkdir()
    records.write_sweep(unfinished, records.read_sweep(newer))
    make_sweep(output, name="of-rte", task="rte")
    for age, name in enumerate(["of-rte", "third", "second", "first"]):
        os.utime(output / name / "sweep.json", (1e9 - age, 1e9 - age))
    result = run(app, "--task", "cola", "--output", output, "--to", tmp_path / "exports")
    assert result.exit_code == 0
    assert "front of sweep second" in result.stdout
    load = next(line for line in result.stdout.splitlines() if line.startswith("from transformers"))
    namespace: dict = {}
    exec(load, namespace)
    assert namespace["classify"](SENTENCE)[0]["label"] in ("acceptable", "unacceptable")


BAD = {
    "unknown task": (["--task", "colla"], "one of: cola"),
    "no task": ([], "--task"),
    "unknown option": (["--task", "cola", "--colour", "red"], "--colour"),
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
    "picked nothing": (["--task", "cola", "--pick", ""], "give best"),
    "picked a word": (["--task", "cola", "--pick", "bset"], "no such trial; give best"),
    "picked a failed trial": (["--task", "cola", "--pick", "dddd4444"], "has failed"),
    "picked within nothing": (["--task", "cola", "--pick", "smallest-within"], "e.g. 0.02"),
    "picked within a word": (["--task", "cola", "--pick", "smallest-within", "a bit"], "got 'a bit'"),
    "picked two": (["--task", "cola", "--pick", "best", "aaaa1111"], "'best aaaa1111'"),
    "stray word": (["--task", "cola", "aaaa1111"], "'aaaa1111': no argument"),
    "list and write": (["--task", "cola", "--list", "--int8"], "leave out --int8"),
    "unfinished": (["--task", "cola", "--name", "unfinished"], "no finished trial"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(output, tmp_path, app, case):
    arguments, message = BAD[case]
    (output / "unfinished").mkdir()
    records.write_sweep(output / "unfinished", records.read_sweep(output / "first"))
    to = tmp_path / "exports"
    options = {"--output": output, "--to": to}
    more = [part for key, value in options.items() if key not in arguments for part in (key, value)]
    result = run(app, *arguments, *more)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert "\x1b" not in result.stderr
    if not case.startswith(("no task", "unknown option")):  # Typer's own, which it frames
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    assert not to.exists()


@pytest.mark.parametrize("to", ["file", "file/below", "link", "/proc/nowhere"])
def test_target_that_cannot_be_written(output, tmp_path, app, to):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    before = everything(tmp_path)
    result = run(app, "--task", "cola", "--output", output, "--to", tmp_path / to)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --to ")
    assert result.stderr.count("\n") == 1
    assert everything(tmp_path) == before


def test_target_without_permission(output, tmp_path, monkeypatch):
    monkeypatch.setattr(export.os, "access", lambda *_: False)  # root, who may run this, may write anywhere
    with pytest.raises(UsageError, match="no permission"):
        export_students(output / "first", tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_finished_trials_without_finite_objectives(output, tmp_path, app):
    make_sweep(output, "diverged", objectives={"dev/f1": "max"})
    result = run(
        app, "--task", "cola", "--name", "diverged", "--output", output, "--to", tmp_path / "exports"
    )
    assert result.exit_code == 2
    assert "finite" in result.stderr


def test_missing_or_damaged_teacher_is_told(output, tmp_path):
    (output / "cache" / "teachers" / "key" / "vocab.txt").write_text("changed")
    with pytest.raises(UsageError, match="teacher"):
        export_students(output / "first", tmp_path / "exports")
    assert not (tmp_path / "exports").exists()


def test_list_needs_no_student_and_no_torch_and_writes_nothing(output, tmp_path):
    for weights in output.glob("first/trials/*/student"):
        shutil.rmtree(weights)
    shutil.rmtree(output / "cache")
    before = everything(tmp_path)
    arguments = ["export.py", "--task", "cola", "--output", str(output), "--list"]
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
    assert [line.split()[-1] for line in lines[-2:]] == ["bbbb2222", "aaaa1111"]  # the best first
    assert lines[-2].split()[:3] == ["pid", "2", "0.350"]
    assert "cccc3333" not in done.stdout
    assert everything(tmp_path) == before


def test_list_of_the_generated_corpus_says_so(tmp_path, app):
    make_sweep(tmp_path / "outputs", generated=True)
    result = run(app, "--task", "cola", "--output", tmp_path / "outputs", "--list")
    assert result.exit_code == 0
    assert GENERATED in result.stdout


@pytest.mark.parametrize(
    ("pick", "wanted"),
    [
        (["--pick", "best"], LARGE),
        (["--pick", "smallest-within", "0.04"], LARGE),
        (["--pick", "smallest-within", "0.05"], SMALL),
        (["--pick", "smallest-within 0.05"], SMALL),
        (["--pick=smallest-within=0.05"], SMALL),
        (["--pick", "cccc3333"], "cola-sid-2L-cccc3333"),
    ],
)
def test_only_the_student_that_is_picked_is_exported(output, tmp_path, app, pick, wanted):
    to = tmp_path / "exports"
    result = run(app, *pick, "--task", "cola", "--output", output, "--to", to)
    assert result.exit_code == 0
    assert "a student of sweep first" in result.stdout
    assert [path.name for path in to.iterdir()] == [wanted]
    listed = run(app, "--task", "cola", "--output", output, "--list", *pick)
    assert listed.stdout.splitlines()[-1].split()[-1] == wanted[-8:]


def test_unreadable_trial_is_told(output, tmp_path):
    (records.trial_folder(output / "first", "cccc3333") / "trial.json").write_text("{")
    with pytest.raises(UsageError, match="first"):
        choose_sweep(output, get_task("cola"))


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import runpy, sys; sys.argv = ['export.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--force" in done.stdout
