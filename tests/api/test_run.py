"""Sweeps that are started from Python."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import ray
import torch

import ikd_ray
from ikd_ray.api.library_settings import TOKENIZER_THREADS
from ikd_ray.records import read_sweep
from ikd_ray.sweep import cluster
from ikd_ray.terminal import interrupts

SPACE = {
    "sampler": "grid",
    "params": {
        "regime": {"choice": ["kd", "id"]},
        "temperature": {"choice": [2.0, 1e-38], "when": {"regime": "kd"}},
        "student_layers": 2,
        "epochs": 2,
        "batch_size": 16,
    },
    "teacher": {"epochs": 2},
}
SIGNALS = (signal.SIGINT, *interrupts.TERMINATION, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def home(inputs, tmp_path, monkeypatch):
    """Return an empty working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def arguments(inputs):
    return {"task": "cola", "data_dir": inputs / "glue", "teacher": inputs / "teacher", "space": SPACE}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials=0: input should be greater than or equal to 1"),
        ({"trials": 4, "minutes": 2}, "trials=4 and minutes=2: give one of the two"),
        ({"task": None}, "task is missing; give a GLUE task, such as cola, or a task file"),
        ({"task": "cole"}, "task 'cole' is not known; one of: cola"),
        ({"data_dir": "nowhere"}, "data_dir='"),
        ({"teacher": "nowhere"}, "teacher='"),
        ({"space": "papre"}, "space='papre': no such file, and built in are "),
        ({"space": {"params": {"temprature": 2}}}, "space: params.temprature: unknown name; did you mean"),
        ({"space": {"params": {"student_layers": 9}}}, "space: student_layers: up to 9, but the teacher"),
        ({"name": "a/b"}, "name='a/b': use letters"),
        ({"resume": "nowhere"}, "resume='nowhere': no sweep of that name in"),
        ({"tracking_uri": "http://ann:secret@host"}, "tracking_uri='http://host': a password or token"),
        ({"seed": -1}, "seed=-1: input should be greater"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_argument(home, arguments, changes, message):
    with pytest.raises(ikd_ray.UsageError) as error:
        ikd_ray.sweep(**arguments | changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
    assert not list(home.iterdir())


def test_other_threads_are_refused(home, arguments):
    errors = []

    def run() -> None:
        try:
            ikd_ray.sweep(**arguments)
        except ikd_ray.UsageError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == ["ikd_ray.sweep: call it in the main thread, which Ctrl-C interrupts"]


def settings() -> dict[str, object]:
    """Return what a sweep changes in its process: handlers of signals, threads, environment variables."""
    handlers = {number.name: signal.getsignal(number) for number in SIGNALS}
    variables = {
        name: os.environ.get(name) for name in (*cluster.DEFAULTS, *cluster.VARIABLES, TOKENIZER_THREADS)
    }
    return {"threads": torch.get_num_threads(), **handlers, **variables}


@pytest.mark.slow
def test_a_sweep_from_python(home, arguments, capsys):
    """A real sweep, whose trials fail at first: what is raised, returned, recorded and restored."""
    before = settings()
    failing = SPACE | {"params": SPACE["params"] | {"regime": "kd", "temperature": 1e-38}}
    with pytest.raises(ikd_ray.SweepError) as error:
        ikd_ray.sweep(**arguments | {"space": failing}, name="bad")
    assert str(error.value).startswith("bad: none of 1 trials finished; t000: ")
    assert "see ikd_ray.open_sweep('bad').trials; go on: ikd_ray.sweep(resume='bad')" in str(error.value)
    assert ikd_ray.open_sweep("bad").trials.loc["t000", "reason"]

    sweep = ikd_ray.sweep(**arguments, name="good", trials=2)
    assert settings() == before
    assert not ray.is_initialized()
    assert list(sweep.trials["status"]).count("finished") >= 1
    assert len(sweep.trials) == 2
    assert len(sweep.front) >= 1
    record = read_sweep(sweep.folder)
    assert record.command.startswith("ikd_ray.sweep(task='cola', data_dir='")
    assert record.settings["space"] == str(sweep.folder / "space.yaml")
    output = capsys.readouterr().out
    assert "Pareto front: " in output
    assert "\x1b" not in output

    with pytest.raises(
        ikd_ray.UsageError, match=r"name='good': .* exists already; .* go on with resume='good'"
    ):
        ikd_ray.sweep(**arguments, name="good")
    resumed = ikd_ray.sweep(resume="good", trials=3, space=SPACE)
    assert list(resumed.trials["status"]) == ["finished", "failed", "finished"]
    assert resumed.best.load()[0].config.num_labels == 2
    assert resumed.report().is_file()


@pytest.mark.slow
def test_a_ray_of_the_users_own_stays_and_is_free_after_an_interrupt(home, arguments, capfd):
    """Otherwise the processes of the trials would hold its CPUs until it is shut down."""
    space = SPACE | {"params": SPACE["params"] | {"epochs": 200}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        interrupt = threading.Thread(target=interrupt_first_epoch, args=(home / "outputs" / "own",))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt, match=r"ikd_ray.sweep\(resume='own'\)"):
            ikd_ray.sweep(**arguments | {"space": space}, name="own", minutes=5)
        interrupt.join()
        assert ray.is_initialized()
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU") != 2:
            assert time.monotonic() < deadline, ray.available_resources()
            time.sleep(0.2)
        sweep = ikd_ray.sweep(**arguments, trials=1)
        assert list(sweep.trials["status"]) == ["finished"]
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def interrupt_first_epoch(sweep) -> None:
    """Press Ctrl-C when a trial has saved an epoch."""
    stages = sweep.parent / "cache" / "stages"
    while not list(stages.glob("*/1/epoch.json")):
        time.sleep(0.1)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)
