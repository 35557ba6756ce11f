"""Whole sweeps in processes of their own: the overhead of a sweep's machinery, and what sharing epochs saves."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ikd_ray.analysis.dataframes import epochs_frame
from ikd_ray.analysis.training_costs import compute_savings
from ikd_ray.bench import machine
from ikd_ray.bench.inputs import Request
from ikd_ray.config import SweepConfig
from ikd_ray.data.corpus import generate
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.epoch_cache import STAGES
from ikd_ray.distill.loop import Distillation
from ikd_ray.errors import first_line
from ikd_ray.records import TrialRecord, read_sweep, read_trials
from ikd_ray.search.builtin_spaces import DEFAULT_SPACE, find_space
from ikd_ray.sweep.local_processes import run_alone
from ikd_ray.tasks import PROBABILITY_METRICS
from ikd_ray.terminal.console import Console

# The overhead's inputs
CONCURRENT = 2  # trials at once
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


def measure_overhead(trials: int, folder: Path) -> dict[str, Any]:
    """Run a sweep whose trials train nothing.

    Real: the command's imports, the search of the default space and its study on disk, Ray, Tune and its
    actors, each trial's student (of a teacher with 6 layers, hidden size 32 and random weights) and its folder, a fresh
    SQLite store of MLflow, the terminal's lines, Pareto front, plot and tables. Synthetic: the epochs. A trial reports
    three, with all metrics of its regime. `seconds_a_trial` is thus the cost of a trial besides training and
    evaluation, without finding and saving epochs and without what grows with the model: to copy, save and checksum it.

    Args:
        trials: at least two.
        folder: for all files, among them the log `overhead.log`; without an earlier measurement.

    Returns:
        Costs of the sweep. Seconds are wall time unless named CPU; MB are 10^6 resident bytes of the driver, when the
        first trial ends and when the last one does; `_at_end` means the last tenth of the trials, which shows growth.

    Raises:
        RuntimeError: the sweep failed; the message has the end of its log.
    """
    write_inputs(folder)
    launched = time.time()
    times = _run_sweep(
        folder,
        SyntheticDistillation,
        task="cola",
        data_dir=folder / "glue",
        teacher=str(folder / "teacher"),
        space=find_space(DEFAULT_SPACE),
        trials=trials,
        concurrent=CONCURRENT,
        name="overhead",
    )
    ends, cpu, mb = zip(*times["ends"], strict=True)
    last = max(2, len(ends) // 10)
    return {
        "trials": len(ends),
        "concurrent": CONCURRENT,
        # From the command to the first report: imports, the start of Ray, a fresh MLflow store.
        "seconds_to_first_step": times["first_epoch"] - launched,
        "seconds_a_trial": _mean_step(ends) * CONCURRENT,
        "seconds_a_trial_at_end": _mean_step(ends[-last:]) * CONCURRENT,
        "driver_cpu_seconds_a_trial": _mean_step(cpu),
        "driver_cpu_seconds_a_trial_at_end": _mean_step(cpu[-last:]),
        # After the last trial: the end of actors and Ray, the rest of MLflow, Pareto front, plot, tables.
        "seconds_to_conclude": times["concluded"] - ends[-1],
        "driver_mb_at_start": mb[0],
        "driver_mb_at_end": mb[-1],
    }


def _mean_step(values: Sequence[float]) -> float:
    return (values[-1] - values[0]) / (len(values) - 1)


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
    staged = {
        f"pid, sid: top trains {top}": STAGED_SPACE.format(layers=request.student_layers, top=top)
        for top in ("head", "all")
    }
    spaces = staged | {"default": find_space(DEFAULT_SPACE).read_text(encoding="utf-8")}
    for number, (space, text) in enumerate(spaces.items()):
        path = folder / f"space-{number}.yaml"
        path.write_text(text, encoding="utf-8")
        sweeps = []
        for mode in ("shared", "alone") if space in staged else ("shared",):
            with console.step(f"{space}: {trials} trials, {mode}"):
                times = _run_sweep(
                    folder,
                    task=request.task,
                    data_dir=request.data_dir and request.data_dir.resolve(),
                    teacher=request.teacher,
                    space=path,
                    trials=trials,
                    name=f"{number}-{mode}",
                    no_share=mode == "alone",
                )
            sweep = folder / "outputs" / f"{number}-{mode}"
            sweeps.append((read_trials(sweep), times["ends"][-1][0] - times["started"]))
            shutil.rmtree(folder / "outputs" / "cache" / STAGES, ignore_errors=True)
        yield _compare(space, read_sweep(sweep).settings["foreseen"], *sweeps)


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
    epochs, epochs_alone = epochs_frame(trials), epochs_frame(trials_alone)
    costs = epochs_alone["time/epoch_s"] + epochs_alone["time/evaluation_s"]
    predicted = seconds_alone * costs[~epochs["reused"].to_numpy()].sum() / costs.sum()
    measured = epochs.columns[~epochs.columns.str.contains("^time/|_epochs|^reused$")]
    same_params = [trial.params for trial in trials] == [trial.params for trial in trials_alone]
    return result | {
        "seconds_alone": seconds_alone,
        "times_faster": seconds_alone / seconds,
        "seconds_predicted": predicted,
        "over_predicted": seconds / predicted,
        "same_numbers": same_params and epochs[measured].equals(epochs_alone[measured]),
    }


def _run_sweep(folder: Path, distillation: type[Distillation] | None = None, **flags: Any) -> dict[str, Any]:
    """Run a sweep in a process of its own, and return what its `TimingConsole` recorded."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    config = SweepConfig(output=folder / "outputs", tracking_uri=store, **flags)
    log = folder / f"{config.name}.log"
    log.touch()
    with patch.dict(os.environ):  # read by libraries when the process imports them
        for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):  # the user's must not be measured
            os.environ.pop(name, None)
        if distillation is SyntheticDistillation:
            os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            return run_alone(_time_sweep, config, folder, log, distillation)
        except Exception as error:  # the sweep's own, or the end of its process
            written = log.read_text(encoding="utf-8")
            raise RuntimeError(f"{first_line(error)}: {written[-2000:]}") from error


def _time_sweep(
    config: SweepConfig, folder: Path, log: Path, distillation: type[Distillation] | None
) -> dict[str, Any]:
    """Run a sweep in this process, in `folder`, with all output in the log."""
    os.chdir(folder)
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    from ikd_ray.sweep.request import validate

    console = TimingConsole()
    request = validate(config)
    from ikd_ray.sweep import runner  # imported late, as `ikd run` does

    end = runner.run(request, "bench", console, distillation=distillation)
    if end.status:
        raise RuntimeError(f"status {end.status}: {end.reason}")
    return console.times | {"concluded": time.time()}


class TimingConsole(Console):
    """A console that records when trials start, report and end, and what the driver uses by then."""

    def __init__(self) -> None:
        super().__init__()
        self.times: dict[str, Any] = {"ends": []}

    def trial_started(self, *arguments: Any, **facts: Any) -> None:
        """Record the first start."""
        self.times.setdefault("started", time.time())
        super().trial_started(*arguments, **facts)

    def trial_epoch(self, *arguments: Any, **facts: Any) -> None:
        """Record the first report."""
        self.times.setdefault("first_epoch", time.time())
        super().trial_epoch(*arguments, **facts)

    def trial_finished(self, *arguments: Any, **facts: Any) -> None:
        """Record an end: the time, and the CPU seconds and resident MB of the driver by then."""
        super().trial_finished(*arguments, **facts)
        self.times["ends"].append((time.time(), time.process_time(), machine.memory_bytes("VmRSS") / 1e6))


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
        dev += ["attention_kl", "teacher_agreement", *self.data.task.metrics, *PROBABILITY_METRICS]
        return [f"train/{name}" for name in train] + [f"dev/{name}" for name in dev]

    def _value(self, name: str, epoch: int) -> float:
        text = json.dumps([self.trial.params(), name, epoch], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def write_inputs(folder: Path) -> None:
    """Write `glue`, a little of the embedded corpus in GLUE's layout, and `teacher`, a tiny BERT with a classifier."""
    from transformers import (  # type: ignore[attr-defined]  # the tokenizer is a lazy attribute
        AutoConfig,
        AutoModelForSequenceClassification,
        BertTokenizerFast,
    )

    data, teacher = folder / "glue" / "CoLA", folder / "teacher"
    data.mkdir(parents=True)
    teacher.mkdir()
    words = set()
    for name, judgements in zip(("train", "dev"), generate(train=SENTENCES, dev=SENTENCES), strict=True):
        rows = (f"x\t{judgement.label}\t\t{judgement.sentence}\n" for judgement in judgements)
        (data / f"{name}.tsv").write_text("".join(rows), encoding="utf-8")
        words |= {word.strip(".,?!'").lower() for row in judgements for word in row.sentence.split()}
    vocabulary = [*SPECIAL_TOKENS, *".,?!'", *sorted(words)]
    (teacher / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(teacher / "vocab.txt")).save_pretrained(teacher)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_labels=2,
        id2label={0: "unacceptable", 1: "acceptable"},
        label2id={"unacceptable": 0, "acceptable": 1},
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(teacher)
