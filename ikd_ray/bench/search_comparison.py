"""The default search against an earlier version and against students made by hand: real sweeps in equal wall time.

`python -m ikd_ray.bench.search_comparison record FOLDER --data-dir glue` runs the sweeps that FOLDER lacks, one after
the other, and `python -m ikd_ray.bench.search_comparison show FOLDER` compares them. A sweep that was cut off runs
again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer

from ikd_ray.analysis.intervals import paired_t_interval
from ikd_ray.bench.results import show_rows
from ikd_ray.tasks import get_task

TASKS = ("cola", "mrpc", "rte")
DEFAULT, EARLIER = "default", "earlier version"
BY_HAND = {
    "by hand: 5 of KD": "student_layers: {int: [1, 5]}",
    "by hand: plain loop": "student_layers: {int: [1, 3]}, learning_rate: 5.0e-5, epochs: 3",
}
"""Parameters of students that people would make, the smallest first."""
DEPTHS = (1, 2, 3, 4, 5)
HALF = 3
NEAR = 0.02  # distance from the best score of a depth
SHARED = ("tokens", "teachers", "targets", "latency")  # of the cache: made before the time begins
RESULT = "result.json"
FAR_TRIALS = 500  # more than there is time for

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Job(NamedTuple):
    """A sweep of an arm with a seed, on a task."""

    task: str
    seed: int
    arm: str

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.task}-{self.seed}-{self.arm.replace(' ', '-').replace(':', '')}"


@app.command()
def record(
    folder: Annotated[Path, typer.Argument(help="Folder of all sweeps and results.")],
    data_dir: Annotated[Path, typer.Option(help="Folder in the GLUE layout.")],
    earlier: Annotated[
        Path | None, typer.Option(help="Checkout of an earlier version, compared on CoLA and MRPC.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes in which a sweep's trials run.")] = 12.0,
    seeds: Annotated[int, typer.Option(help="Sweeps of each kind.")] = 3,
    until: Annotated[str, typer.Option(help="HH:MM at which no further sweep begins.")] = "",
) -> None:
    """Run the sweeps that are missing, each alone on the machine."""
    # A background job ignores Ctrl-C, and sweeps would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = folder.resolve()
    arms = [DEFAULT, *BY_HAND, *([EARLIER] if earlier else [])]
    for job in (Job(task, seed, arm) for seed in range(seeds) for task in TASKS for arm in arms):
        if (folder / job.name / RESULT).exists() or (job.arm == EARLIER and job.task == "rte"):
            continue
        if until and time.strftime("%H:%M") >= until:
            break
        shutil.rmtree(folder / job.name, ignore_errors=True)
        checkout = earlier.resolve() if earlier and job.arm == EARLIER else None
        prepared = _prepare(folder, job.task, data_dir.resolve(), checkout)
        _copy_cache(prepared, folder / job.name)
        arguments = ["--seed", str(job.seed), *_arm_flags(folder, job.arm)]
        start = _run(folder / job.name, job.task, data_dir.resolve(), arguments, checkout, minutes)
        _write_result(folder / job.name, job, start)


def _arm_flags(folder: Path, arm: str) -> list[str]:
    if arm not in BY_HAND:
        return ["--trials", str(FAR_TRIALS)]
    space = folder / f"{arm.replace(' ', '-').replace(':', '')}.yaml"
    space.write_text(f"sampler: grid\nparams: {{regime: kd, {BY_HAND[arm]}}}\n", encoding="utf-8")
    return ["--space", str(space)]


def _prepare(folder: Path, task: str, data_dir: Path, checkout: Path | None) -> Path:
    """Return a folder whose cache has the teacher of a task and its targets; make it where it is missing."""
    prepared = folder / f"prepared-{task}{'-earlier' if checkout else ''}"
    if not (prepared / "done").exists():
        shutil.rmtree(prepared, ignore_errors=True)
        _run(prepared, task, data_dir, ["--trials", "2"], checkout, minutes=60)
        (prepared / "done").touch()
    return prepared


def _copy_cache(prepared: Path, target: Path) -> None:
    for kind in SHARED:
        source = prepared / "outputs" / "cache" / kind
        if source.is_dir():
            shutil.copytree(source, target / "outputs" / "cache" / kind, copy_function=os.link)


def _run(
    home: Path, task: str, data_dir: Path, arguments: list[str], checkout: Path | None, minutes: float
) -> float:
    """Run a sweep with `home` as its folder, end it with Ctrl-C after some minutes of trials; return their start."""
    home.mkdir(parents=True, exist_ok=True)
    program = [str(checkout / "sweeps" / "run.py")] if checkout else ["-m", "ikd_ray", "run"]
    words = [sys.executable, *program, "--task", task, "--data-dir", str(data_dir), "--name", "sweep"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    environment |= {"PYTHONPATH": str(checkout)} if checkout else {}
    start = 0.0
    with (home / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*words, *arguments],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        timer = threading.Timer(60 * minutes, process.send_signal, [signal.SIGINT])
        try:
            for line in process.stdout or ():
                log.write(line)
                log.flush()
                if " started: " in line and not start:
                    start = time.time()
                    timer.start()
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
    if status not in (0, 130) or not start:
        raise SystemExit(f"error: {home}: the sweep ended with status {status}; see {home / 'log'}")
    return start


def _write_result(home: Path, job: Job, start: float) -> None:
    metric = f"dev/{get_task(job.task).metric}"
    trials = []
    for file in (home / "outputs" / "sweep" / "trials").glob("*/trial.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["status"] == "finished":
            layers = content["params"]["student_layers"]
            end = file.stat().st_mtime - start  # which every version writes
            trials.append({"layers": layers, "score": content["metrics"][metric], "minutes": end / 60})
    result = {"task": job.task, "seed": job.seed, "arm": job.arm, "trials": trials}
    (home / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    shutil.rmtree(home / "outputs" / "cache", ignore_errors=True)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Folder of the results.")],
    minutes: Annotated[float, typer.Option(help="Minutes of each sweep.")] = 12.0,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw the curves to.")] = None,
) -> None:
    """Compare the recorded sweeps: mean best metric over depths, and the time to a good student of half the layers."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"*/{RESULT}"))]
    moments = np.arange(0.5, minutes + 0.25, 0.5)
    curves = pd.DataFrame(
        {
            "task": result["task"],
            "arm": result["arm"],
            "seed": result["seed"],
            "minute": moment,
            "score": score_at(result["trials"], moment),
        }
        for result in results
        for moment in moments
    )
    show_rows(list(_compare(curves, moments)), sys.stdout)
    show_rows(list(_times_to_half(results)), sys.stdout)
    if picture:
        _draw(curves, picture)


def score_at(trials: list[dict[str, Any]], minute: float) -> float:
    """Return the mean over depths of the best score by then of a student with at most so many layers; 0 without one.

    This is the hypervolume of the front, sizes in layers, above a score of 0.
    """
    ended = [trial for trial in trials if trial["minutes"] <= minute]
    best = [
        max((trial["score"] for trial in ended if trial["layers"] <= depth), default=0.0) for depth in DEPTHS
    ]
    return float(np.mean(np.maximum(best, 0.0)))


def _compare(curves: pd.DataFrame, moments: np.ndarray) -> Iterator[dict[str, Any]]:
    for task, of_task in curves.groupby("task", sort=False):
        table = of_task.pivot_table(index=["minute", "seed"], columns="arm", values="score")
        for arm in table.columns:
            row = {"task": task, "search": arm, "sweeps": int(table[arm].loc[moments[-1]].count())}
            row |= {f"at {moment:g} min": table[arm].loc[moment].mean() for moment in (2, 5, 8, moments[-1])}
            pairs = table.loc[moments[-1], list({DEFAULT, arm})].dropna()
            if arm != DEFAULT and len(pairs) > 1:
                found = paired_t_interval(pairs[DEFAULT], pairs[arm])
                row["default - it, at the end"] = f"{found.mean:+.3f} ± {found.half_width:.3f}"
                means = table.groupby("minute").mean()
                row["least difference after 5 min"] = float((means[DEFAULT] - means[arm]).loc[5:].min())
            yield row


def _times_to_half(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for result in results:
        same = [other["trials"] for other in results if other["task"] == result["task"]]
        best = max((t["score"] for trials in same for t in trials if t["layers"] == HALF), default=np.nan)
        near = [t["minutes"] for t in result["trials"] if t["layers"] == HALF and t["score"] >= best - NEAR]
        yield {key: result[key] for key in ("task", "arm", "seed")} | {
            "trials": len(result["trials"]),
            f"minutes to a good student of {HALF} layers": min(near, default=np.nan),
        }


def _draw(curves: pd.DataFrame, picture: Path) -> None:
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(curves["task"]))
    figure = Figure(figsize=(4.2 * len(tasks), 3.4), layout="constrained")
    for axes, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        for arm, rows in curves[curves["task"] == task].groupby("arm"):
            means = rows.groupby("minute")["score"].mean()
            axes.step(means.index, means, where="post", label=arm)
        axes.set(title=task, xlabel="minutes", ylabel="mean best metric over depths")
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    app()
