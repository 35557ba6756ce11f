"""Whole sweeps in processes of their own: the overhead of a sweep's machinery, and what sharing epochs saves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ikd_ray.analysis.savings import compute_savings, is_reused
from ikd_ray.bench.inputs import Request
from ikd_ray.config import SweepConfig
from ikd_ray.data.corpus import generate
from ikd_ray.distill.epoch_cache import STAGES
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.records import TrialRecord, read_trials
from ikd_ray.terminal.console import Console

DEFAULT_SPACE = Path(__file__).resolve().parents[2] / "search_spaces" / "default.yaml"
TIMES_FILE = "times.json"

# The overhead's inputs
SENTENCES = 64  # of each split
EPOCHS = 3  # reports of each trial, the default space's `epochs`
LAYERS, HIDDEN, HEADS = (
    6,
    32,
    4,
)  # of the teacher: as deep as the default space needs, else as small as possible
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# PID and SID with one depth and three learning rates; all parameters that do not change a prefix are free.
STAGED_SPACE = """
params:
  regime: {{choice: [pid, sid]}}
  student_layers: {layers}
  learning_rate: {{choice: [5.0e-5, 1.0e-4, 2.0e-4]}}
  epochs_per_layer: {{int: [1, 4]}}
  cosine_threshold: {{float: [0.01, 0.5], log: true}}
  lambda: {{float: [0.01, 1], log: true}}
  temperature: {{float: [1, 10], log: true}}
  top_trains: {top}
  epochs: 1
"""


def measure_overhead(trials: int, folder: Path, concurrent: int = 2) -> dict[str, Any]:
    """Run a sweep whose trials train nothing.

    Real: the command's imports, the search of `search_spaces/default.yaml` and its study on disk, Ray, Tune and its
    actors, each trial's student (of a teacher with 6 layers, hidden size 32 and random weights) and its folder, a fresh
    SQLite store of MLflow, the terminal's lines, Pareto front, plot and tables. Synthetic: the epochs. A trial reports
    three, with all metrics of its regime. `seconds_a_trial` is thus the cost of a trial besides training and
    evaluation, without finding and saving epochs and without what grows with the model: to copy, save and checksum it.

    Args:
        trials: at least two.
        folder: for all files, among them the log `overhead.log`; without an earlier measurement.
        concurrent: trials at once.

    Returns:
        Costs of the sweep. Seconds are wall time unless named CPU; MB are 10^6 resident bytes of the driver, when the
        first trial ends and when the last one does; `_at_end` means the last tenth of the trials, which shows growth.

    Raises:
        RuntimeError: the sweep failed; the message has the end of its log.
    """
    write_inputs(folder)
    config = SweepConfig(
        task="cola",
        data_dir=folder / "glue",
        teacher=str(folder / "teacher"),
        space=DEFAULT_SPACE,
        trials=trials,
        concurrent=concurrent,
        output=folder / "outputs",
        name="overhead",
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
    )
    launched = time.time()
    times = _run_sweep(config, folder, synthetic=True)
    ends, cpu, mb = (times[name] for name in ("ends", "cpu", "mb"))
    last = max(2, len(ends) // 10)
    return {
        "trials": len(ends),
        "concurrent": concurrent,
        # From the command to the first report: imports, the start of Ray, a fresh MLflow store.
        "seconds_to_first_step": times["first_epoch"] - launched,
        "seconds_a_trial": _mean_step(ends) * concurrent,
        "seconds_a_trial_at_end": _mean_step(ends[-last:]) * concurrent,
        "driver_cpu_seconds_a_trial": _mean_step(cpu),
        "driver_cpu_seconds_a_trial_at_end": _mean_step(cpu[-last:]),
        # After the last trial: the end of actors and Ray, the rest of MLflow, Pareto front, plot, tables.
        "seconds_to_conclude": times["concluded"] - ends[-1],
        "driver_mb_at_start": mb[0],
        "driver_mb_at_end": mb[-1],
    }


def measure_sharing(
    request: Request, trials: int, folder: Path, console: Console
) -> Iterator[dict[str, Any]]:
    """Run PID and SID with the head alone trained on top, then with all layers, then the default space.

    The first two run with sharing and without, the default space only with it. The first sweep makes the teacher and
    the targets that all use; no sweep finds another's saved epochs.

    Yields:
        Counts of layer-epochs (internal stages) and epochs (classification), in all and trained, and the seconds from
        the start of the first trial to the end of the last. `seconds_predicted` is `seconds_alone` without the share of
        the reused epochs; `same_numbers` says whether every metric of every epoch is equal, to the last bit. Without a
        run alone, what compares with it is `None`.

    Raises:
        RuntimeError: a sweep failed; the message has the end of its log.
    """
    staged = {top: STAGED_SPACE.format(layers=request.student_layers, top=top) for top in ("head", "all")}
    spaces: dict[str, tuple[str, tuple[bool, ...]]] = {
        f"pid, sid: top trains {top}": (text, (True, False)) for top, text in staged.items()
    }
    spaces["default"] = DEFAULT_SPACE.read_text(), (True,)
    for number, (space, (text, runs)) in enumerate(spaces.items()):
        path = folder / f"space-{number}.yaml"
        path.write_text(text)
        sweeps = []
        for shares in runs:
            mode = "shared" if shares else "alone"
            name = f"{number}-{mode}"
            config = SweepConfig(
                task=request.task,
                data_dir=request.data_dir and request.data_dir.resolve(),
                teacher=request.teacher,
                space=path,
                trials=trials,
                output=folder / "outputs",
                name=name,
                tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
                no_share=not shares,
            )
            with console.step(f"{space}: {trials} trials, {mode}"):
                times = _run_sweep(config, folder)
            sweeps.append((read_trials(folder / "outputs" / name), times["ends"][-1] - times["started"]))
            shutil.rmtree(folder / "outputs" / "cache" / STAGES, ignore_errors=True)
        yield _compare(space, times["concurrent"], *sweeps)


def _compare(
    space: str,
    concurrent: int,
    shared: tuple[list[TrialRecord], float],
    alone: tuple[list[TrialRecord], float] | None = None,
) -> dict[str, Any]:
    trials, seconds = shared
    savings = compute_savings(trials)
    result = {
        "space": space,
        "trials": len(trials),
        "concurrent": concurrent,
        "internal": savings.internal_total,
        "internal_trained": savings.internal_trained,
        "internal_ratio": savings.internal_ratio,
        "classification": savings.classification_total,
        "classification_trained": savings.classification_trained,
        "seconds_shared": seconds,
    }
    compared = ("seconds_alone", "times_faster", "seconds_predicted", "over_predicted", "same_numbers")
    if alone is None:
        return result | dict.fromkeys(compared)
    trials_alone, seconds_alone = alone
    predicted = seconds_alone * _trained_share(trials_alone, trials)
    same = list(map(_numbers, trials_alone)) == list(map(_numbers, trials))
    values = (seconds_alone, seconds_alone / seconds, predicted, seconds / predicted, same)
    return result | dict(zip(compared, values, strict=True))


def _trained_share(alone: list[TrialRecord], shared: list[TrialRecord]) -> float:
    """Return the share of the epochs' time in `alone` that falls to epochs which `shared` trained too."""
    trained = total = 0.0
    for trial, other in zip(alone, shared, strict=True):
        for epoch, other_epoch in zip(trial.history, other.history, strict=True):
            seconds = epoch["time/epoch_s"] + epoch["time/evaluation_s"]
            total += seconds
            trained += 0 if is_reused(other_epoch) else seconds
    return trained / total


def _numbers(trial: TrialRecord) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return parameters and metrics of a trial, without times and counts of trained and reused epochs."""
    history = [
        {name: value for name, value in epoch.items() if not (name.startswith("time/") or "_epochs" in name)}
        for epoch in trial.history
    ]
    return trial.params, history


def _run_sweep(config: SweepConfig, folder: Path, synthetic: bool = False) -> dict[str, Any]:
    """Run a sweep in a Python process of its own, in `folder`, and return what its `TimingConsole` recorded."""
    unset = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")  # the user's must not be measured
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    if synthetic:
        environment["HF_HUB_OFFLINE"] = "1"
    log, times = folder / f"{config.name}.log", folder / TIMES_FILE
    times.unlink(missing_ok=True)
    code = f"from {__name__} import _sweep_process; _sweep_process()"
    with open(log, "w") as file:
        ended = subprocess.run(
            [sys.executable, "-c", code, config.model_dump_json(), json.dumps(synthetic)],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode or not times.is_file():
        raise RuntimeError(f"status {ended.returncode}: {log.read_text()[-2000:]}")
    return json.loads(times.read_text())


def _sweep_process() -> None:
    """Run the sweep of the command line; the main function of `_run_sweep`'s process."""
    from ikd_ray.sweep.request import validate

    console = TimingConsole()
    request = validate(SweepConfig.model_validate_json(sys.argv[1]))
    from ikd_ray.sweep import runner  # imported late, as `sweeps/run.py` does

    distillation = SyntheticDistillation if json.loads(sys.argv[2]) else Distillation
    status = runner.run(request, "bench", console, distillation=distillation)
    if status:
        raise SystemExit(status)
    console.times["concluded"] = time.time()
    Path(TIMES_FILE).write_text(json.dumps(console.times))


class TimingConsole(Console):
    """A console that records when trials start, report and end, and what the driver uses by then."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, Any] = {"ends": [], "cpu": [], "mb": []}

    def sweep(self, total: int, concurrent: int, metric: str) -> Any:
        """Record the number of trials at once."""
        self.times["concurrent"] = concurrent
        return super().sweep(total, concurrent, metric)

    def trial_started(self, *arguments: Any, **facts: Any) -> None:
        """Record the first start."""
        self.times.setdefault("started", time.time())
        super().trial_started(*arguments, **facts)

    def trial_epoch(self, *arguments: Any, **facts: Any) -> None:
        """Record the first report."""
        self.times.setdefault("first_epoch", time.time())
        super().trial_epoch(*arguments, **facts)

    def trial_finished(self, *arguments: Any, **facts: Any) -> None:
        """Record an end."""
        super().trial_finished(*arguments, **facts)
        self.times["ends"].append(time.time())
        self.times["cpu"].append(time.process_time())
        self.times["mb"].append(_resident_mb())


class SyntheticDistillation(Distillation):
    """A trial whose epochs have the metrics of a real trial, with values hashed from its parameters."""

    def __iter__(self) -> Iterator[Epoch]:
        stages = len(self.stages)
        for epoch in range(1, EPOCHS + 1):
            metrics = {name: self._value(name, epoch) for name in self._names()}
            metrics |= dict.fromkeys(
                ("time/epoch_s", "time/evaluation_s", "time/reused_s", "reused_epochs"), 0.0
            )
            metrics |= {"trained_epochs": float(epoch), "stage": float(stages)}
            yield Epoch(epoch, EPOCHS - epoch, stages, stages, self.stages[-1].name, metrics)

    def _names(self) -> list[str]:
        """Return every loss of every stage, and every metric on dev."""
        train = {"loss": None}
        for stage in self.stages:
            losses = ("kl", "cos") if stage.kl else ("cos",)
            train |= {f"layer_{layer}/{loss}": None for layer in stage.layers for loss in losses}
            train |= {name: None for name in ("soft", "hard") if getattr(stage, name)}
        layers = range(1, len(self.matched) + 1)
        dev = [f"layer_{layer}/{loss}" for layer in layers for loss in ("kl", "cos")]
        dev += ["attention_kl", "teacher_agreement", *self.data.task.metrics]
        return [f"train/{name}" for name in train] + [f"dev/{name}" for name in dev]

    def _value(self, name: str, epoch: int) -> float:
        text = json.dumps([self.trial.params(), name, epoch], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _mean_step(values: list[float]) -> float:
    return (values[-1] - values[0]) / (len(values) - 1)


def _resident_mb() -> float:
    """Return this process's resident memory; its peak where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource  # not on every system

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def write_inputs(folder: Path) -> None:
    """Write `glue`, a little of the embedded corpus in GLUE's layout, and `teacher`, a tiny BERT with a classifier."""
    from transformers import (  # type: ignore[attr-defined]  # the tokenizer is a lazy attribute
        BertConfig,
        BertForSequenceClassification,
        BertTokenizerFast,
    )

    data, teacher = folder / "glue" / "CoLA", folder / "teacher"
    data.mkdir(parents=True)
    teacher.mkdir()
    words = set()
    for name, judgements in zip(("train", "dev"), generate(train=SENTENCES, dev=SENTENCES), strict=True):
        rows = (f"x\t{judgement.label}\t\t{judgement.sentence}\n" for judgement in judgements)
        (data / f"{name}.tsv").write_text("".join(rows))
        words |= {word.strip(".,?!'").lower() for row in judgements for word in row.sentence.split()}
    vocabulary = [*SPECIAL_TOKENS, *".,?!'", *sorted(words)]
    (teacher / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(teacher / "vocab.txt")).save_pretrained(teacher)
    config = BertConfig(  # type: ignore[call-arg]  # the labels are the base class's
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_labels=2,
        id2label={0: "unacceptable", 1: "acceptable"},
        label2id={"unacceptable": 0, "acceptable": 1},
    )
    BertForSequenceClassification(config).save_pretrained(teacher)
