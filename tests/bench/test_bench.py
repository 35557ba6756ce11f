"""The command line of `sweeps/bench.py`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ikd_ray.bench import suite
from ikd_ray.terminal.command_line import run

ROOT = Path(__file__).resolve().parents[2]
WORDS = "w1 w2 w3 w4 w5 w6 w7 w8 w9"


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """Write 40 examples to train on."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "CoLA").mkdir()
    for name, count in (("train", 40), ("dev", 12)):
        lines = [f"x\t{row % 2}\t\t{WORDS[: 2 + 3 * (row % 9)]}\n" for row in range(count)]
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("bench")


@pytest.fixture
def refused(app, glue, teacher_folder, tmp_path, monkeypatch, capsys):
    """Return a function that asserts that flags are refused, with one line that contains some words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def check(*words: str, **flags: object) -> None:
        all_flags = {"data_dir": glue, "teacher": teacher_folder} | flags
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in all_flags.items()]
        with pytest.raises(SystemExit) as end:
            run(app, arguments)
        out, err = capsys.readouterr()
        assert end.value.code == 2, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        for word in words:
            assert word in err
        assert not list(tmp_path.iterdir()), "something was written"

    return check


def test_wrong_flags_are_refused(refused):
    refused("'colla'", "cola, sst2", task="colla")
    refused("no-such-folder", data_dir="no-such-folder")
    refused("no/such-teacher", teacher="no/such-teacher")
    refused("--student-layers 5", "4 layers", "1 to 4", student_layers=5)
    refused("--student-layers", student_layers=0)
    refused("--batch-size", batch_size="many")
    refused("--limit", limit=0)
    refused("'apex'", "textbrewer, trainer", peer="apex")
    refused("--overhead-trials", overhead_trials=0)
    refused("leave --peer out", overhead_trials=2, peer="trainer")
    refused("--what", what=1)
    refused("--sharing-trials measures that alone", sharing_trials=2, limit=5)


def test_overhead_of_several_sweeps_is_printed(app, monkeypatch, capsys):
    def measure_overhead(count: int, folder: Path) -> dict:
        assert folder.is_dir()
        return {"trials": count, "seconds_a_trial": count / 8, "folder": folder}

    monkeypatch.setattr(suite, "measure_overhead", measure_overhead)
    with pytest.raises(SystemExit) as end:
        run(app, ["--overhead-trials=2", "--overhead-trials=4", "--json"])
    assert end.value.code == 0
    out, err = capsys.readouterr()
    two, four = json.loads(out)["overhead"]
    assert (two["trials"], four["trials"]) == (2, 4)
    assert four["seconds_a_trial"] == 0.5
    assert not Path(four["folder"]).exists()
    assert ["seconds_a_trial", "0.250", "0.500"] in [line.split() for line in err.splitlines()]


@pytest.mark.slow
def test_all_rows_are_measured(glue, teacher_folder, tmp_path):
    """Run the whole benchmark on 36 examples with all installed peers."""
    flags = ["--limit=36", "--student-layers=2", "--batch-size=8", "--json"]
    peers = {"textbrewer": "textbrewer", "accelerate": "trainer"}
    installed = [peer for package, peer in peers.items() if importlib.util.find_spec(package)]
    command = [
        sys.executable,
        ROOT / "sweeps" / "bench.py",
        f"--data-dir={glue}",
        f"--teacher={teacher_folder}",
    ]
    (home := tmp_path / "home").mkdir()
    (temporary := tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [*command, *flags, *(f"--peer={peer}" for peer in installed)],
        cwd=home,
        env={
            "TMPDIR": str(temporary),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        *("kd C", "id 1+2+C"),
        *("pid 1", "pid 2", "pid C", "pid C, head alone"),
        *("sid 1", "sid 1+2", "sid C", "sid, mean"),
        *("reference", *(["textbrewer"] if "textbrewer" in installed else [])),
        *("teacher", *(["trainer"] if "trainer" in installed else [])),
    ]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["id 1+2+C"]["faster_than"].keys() == set(rows) & {"reference", "textbrewer"}
    assert rows["teacher"]["faster_than"].keys() == set(rows) & {"trainer"}
    assert report["examples"] == 36
    assert report["padding_of_plan"] <= report["padding_of_random"]
    assert report["store"]["bytes"] > 0
    assert report["memory"]["peak_above_idle"].keys() == {"kd", "id", "pid", "sid"}
    assert report["concurrency"]["at_once_s"] > 0
    assert report["peak_gflops"] == max(
        *report["gflops_at_start"]["torch.mm"].values(), *report["gflops_at_end"]["torch.mm"].values()
    )
    assert "an epoch of" in done.stderr
    # torch makes the folder of its compiler's cache when it is imported.
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]
    assert not list(home.iterdir())
