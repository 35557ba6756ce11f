"""The command line of `ikd bench`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch

from ikd_ray.bench import suite
from ikd_ray.bench.epoch_profile import KINDS, OTHER
from ikd_ray.terminal.command_line import run
from tests.helpers.run_command import ROOT, script_command


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("bench")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"task": "colla"}, ("'colla'", "cola, sst2")),
        ({"data-dir": "no-such-folder"}, ("no-such-folder",)),
        ({"teacher": "no/such-teacher"}, ("no/such-teacher",)),
        ({"student-layers": 5}, ("--student-layers 5", "4 layers", "1 to 4")),
        ({"student-layers": 0}, ("--student-layers",)),
        ({"batch-size": "many"}, ("--batch-size",)),
        ({"limit": 0}, ("--limit",)),
        ({"precision": "int8"}, ("--precision", "'int8' is not one of", "'bfloat16'")),
        ({"device": "cuda"}, ("--device cuda: PyTorch finds no GPU",)),
        ({"peer": "apex"}, ("'apex' is not known; one of: textbrewer, trainer",)),
        ({"overhead-trials": 0}, ("--overhead-trials",)),
        ({"overhead-trials": 2, "peer": "trainer"}, ("leave --peer out",)),
        ({"what": 1}, ("--what",)),
        ({"sharing-trials": 2, "limit": 5}, ("--sharing-trials measures that alone",)),
    ],
)
def test_wrong_flags_are_refused(app, inputs, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    all_flags = {"data-dir": inputs / "glue", "teacher": inputs / "teacher"} | flags
    with pytest.raises(SystemExit) as end:
        run(app, [f"--{name}={value}" for name, value in all_flags.items()])
    out, err = capsys.readouterr()
    assert end.value.code == 2, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []
    assert not list(tmp_path.iterdir()), "something was written"


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


def test_the_shares_of_an_epoch_are_printed(app, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    flags = [f"--data-dir={inputs / 'glue'}", f"--teacher={inputs / 'teacher'}", "--limit=36"]
    with pytest.raises(SystemExit) as end:
        run(app, [*flags, "--student-layers=2", "--profile", "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    rows = {row.pop("operations"): row for row in json.loads(out)["profile"]}
    assert rows.keys() == {*KINDS, OTHER}
    assert sum(float(row["share"].rstrip("%")) for row in rows.values()) == pytest.approx(100, abs=1)
    # A kind without time has names that PyTorch no longer uses.
    assert [kind for kind, row in rows.items() if not row["s"] and kind != "random masks of dropout"] == []
    assert "softmax" in err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("ikd-")]


def test_shares_are_measured_alone(app, capsys):
    with pytest.raises(SystemExit) as end:
        run(app, ["--profile", "--peer=trainer"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --profile measures an epoch of id on the CPU alone")


@pytest.mark.slow
def test_all_rows_are_measured(inputs, tmp_path):
    """Run the whole benchmark on 36 examples with all installed peers."""
    flags = [f"--data-dir={inputs / 'glue'}", f"--teacher={inputs / 'teacher'}"]
    flags += ["--limit=36", "--student-layers=2", "--batch-size=8", "--precision=bfloat16", "--json"]
    peers = {"textbrewer": "textbrewer", "accelerate": "trainer"}
    installed = [peer for package, peer in peers.items() if importlib.util.find_spec(package)]
    (home := tmp_path / "home").mkdir()
    (temporary := tmp_path / "temporary").mkdir()
    done = subprocess.run(
        script_command("bench", *flags, *(f"--peer={peer}" for peer in installed)),
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
        *("reference", "bfloat16 reference", *(["textbrewer"] if "textbrewer" in installed else [])),
        *("teacher", *(["trainer"] if "trainer" in installed else [])),
    ]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["id 1+2+C"]["faster_than"].keys() == set(rows) & {
        *("reference", "bfloat16 reference", "textbrewer")
    }
    assert rows["teacher"]["faster_than"].keys() == set(rows) & {"trainer"}
    assert report["examples"] == 36
    assert report["precision"] == "bfloat16"
    assert report["padding_of_plan"] <= report["padding_of_random"]
    assert report["store"]["bytes"] > 0
    assert report["memory"]["peak_above_idle"].keys() == {"kd", "id", "pid", "sid"}
    assert [found["trials"] for found in report["concurrency"]] == [2]
    assert report["concurrency"][0]["at_once_s"] > 0
    assert report["peak_gflops"] == max(
        *report["gflops_at_start"]["torch.mm"].values(), *report["gflops_at_end"]["torch.mm"].values()
    )
    assert "an epoch of" in done.stderr
    # torch makes the folder of its compiler's cache when it is imported.
    assert not [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")]
    assert not list(home.iterdir())
