"""What a sweep costs besides its epochs: the whole machinery, run with trials that do no work."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ikd_ray.bench.inputs import DEFAULT_SPACE
from ikd_ray.bench.processes import RESULT, sweep_alone
from ikd_ray.config import SweepConfig
from ikd_ray.data.corpus import generate
from ikd_ray.distill.loop import Distillation, Epoch
from ikd_ray.terminal.console import Console

SENTENCES = 64  # of each split
EPOCHS = 3  # reports of each trial, the default space's `epochs`
LAYERS, HIDDEN, HEADS = (
    6,
    32,
    4,
)  # of the teacher: as deep as the default space needs, else as small as can be
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Overhead:
    """What `measure` found. Seconds are wall time unless they say CPU; MB are 10^6 bytes of resident memory."""

    trials: int
    """Those that finished."""
    concurrent: int
    seconds_to_first_step: float
    """From the command to the first trial's first report, with imports, Ray's start and a fresh MLflow store."""
    seconds_a_trial: float
    """After the first trial: wall time x `concurrent` / trials."""
    seconds_a_trial_at_end: float
    """The same over the last tenth of the trials: what growth there was."""
    driver_cpu_seconds_a_trial: float
    driver_cpu_seconds_a_trial_at_end: float
    seconds_to_conclude: float
    """After the last trial: actors stopped, Tune's snapshot, the rest of MLflow, Pareto front, plot, tables, Ray."""
    driver_mb_at_start: float
    """When the first trial ends."""
    driver_mb_at_end: float
    """When the last one has."""


def measure(trials: int, folder: Path, concurrent: int = 2) -> Overhead:
    """Run a sweep of `trials` trials that train nothing, in a process of its own, and time everything else.

    Real: the command's imports, the search of `search_spaces/default.yaml` and its study on disk, Ray, Tune and
    its actors, each trial's student (of a teacher with 6 layers, hidden size 32 and random weights) and its
    folder, a fresh SQLite store of MLflow, the terminal's lines (in `folder/sweep.log`), Pareto front, plot and
    tables. Made up: the epochs. Each trial reports three at once, with every metric that a real one of its regime
    has. So `seconds_a_trial` is what a trial costs besides training and evaluation, less what it costs to find and
    to save epochs, and what grows with the model: to copy, save and checksum a student.

    Args:
        trials: at least two.
        folder: where all of it goes; made if need be. Must hold no earlier measurement.
        concurrent: trials at once.

    Raises:
        RuntimeError: the sweep did not end well; the message has the end of what it wrote.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(trials), str(concurrent), str(folder.resolve()), repr(time.time())]
    offline = {"HF_HUB_OFFLINE": "1"}
    return Overhead(**sweep_alone("ikd_ray.bench.overhead", arguments, folder, "sweep.log", offline))


def child() -> None:
    """The measured process."""
    trials, concurrent, folder, launched = sys.argv[1:]
    overhead = _sweep(int(trials), int(concurrent), Path(folder), float(launched))
    (Path(folder) / RESULT).write_text(json.dumps(asdict(overhead)))


def _sweep(trials: int, concurrent: int, folder: Path, launched: float) -> Overhead:
    from ikd_ray.sweep.request import validate

    write_inputs(folder)
    console = _Watch()
    request = validate(
        SweepConfig(
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
    )
    from ikd_ray.sweep import runner  # imported late, as `sweeps/run.py` does

    status = runner.run(request, "overhead", console, distillation=MadeUp)
    if status:
        raise SystemExit(status)
    return console.overhead(concurrent, launched)


class MadeUp(Distillation):
    """A trial whose epochs are made up: their names are a real trial's, their values a hash of its parameters."""

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
        """Every loss of every stage, and every measure on dev."""
        train = {"loss": None}
        for stage in self.stages:
            losses = [name for name in ("kl", "cos") if name == "cos" or stage.kl]
            train |= {f"layer_{layer}/{loss}": None for layer in stage.layers for loss in losses}
            train |= {name: None for name in ("soft", "hard") if getattr(stage, name)}
        layers = range(1, len(self.matched) + 1)
        dev = [f"layer_{layer}/{loss}" for layer in layers for loss in ("kl", "cos")]
        dev += ["attention_kl", "teacher_agreement", *self.data.task.metrics]
        return [f"train/{name}" for name in train] + [f"dev/{name}" for name in dev]

    def _value(self, name: str, epoch: int) -> float:
        text = json.dumps([self.trial.params(), name, epoch], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


class _Watch(Console):
    """A console that also notes when trials report and end, and what the driver has used by then."""

    def __init__(self) -> None:
        super().__init__()
        self._first_step = math.nan
        # At each trial's end: time, CPU seconds, memory.
        self._ends: list[float] = []
        self._cpu: list[float] = []
        self._mb: list[float] = []

    def trial_epoch(self, *arguments: Any, **facts: Any) -> None:
        if math.isnan(self._first_step):
            self._first_step = time.time()
        super().trial_epoch(*arguments, **facts)

    def trial_finished(self, id: str, metrics: dict[str, float]) -> None:
        super().trial_finished(id, metrics)
        self._ends.append(time.time())
        self._cpu.append(time.process_time())
        self._mb.append(_resident_mb())

    def overhead(self, concurrent: int, launched: float) -> Overhead:
        last = max(2, len(self._ends) // 10)
        return Overhead(
            trials=len(self._ends),
            concurrent=concurrent,
            seconds_to_first_step=self._first_step - launched,
            seconds_a_trial=_mean_step(self._ends) * concurrent,
            seconds_a_trial_at_end=_mean_step(self._ends[-last:]) * concurrent,
            driver_cpu_seconds_a_trial=_mean_step(self._cpu),
            driver_cpu_seconds_a_trial_at_end=_mean_step(self._cpu[-last:]),
            seconds_to_conclude=time.time() - self._ends[-1],
            driver_mb_at_start=self._mb[0],
            driver_mb_at_end=self._mb[-1],
        )


def _mean_step(values: list[float]) -> float:
    return (values[-1] - values[0]) / (len(values) - 1)


def _resident_mb() -> float:
    """This process's resident memory; its peak where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        import resource  # not on every system

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes


def write_inputs(folder: Path) -> None:
    """`glue`: a little of the embedded corpus in GLUE's layout. `teacher`: a BERT for it, with a head."""
    from transformers import (  # type: ignore[attr-defined]  # the tokenizer is made when it is asked for
        BertConfig,
        BertForSequenceClassification,
        BertTokenizerFast,
    )

    (folder / "glue" / "CoLA").mkdir(parents=True)
    words = set()
    for name, judgements in zip(("train", "dev"), generate(train=SENTENCES, dev=SENTENCES), strict=True):
        rows = (f"x\t{judgement.label}\t\t{judgement.sentence}\n" for judgement in judgements)
        (folder / "glue" / "CoLA" / f"{name}.tsv").write_text("".join(rows))
        words |= {
            word.strip(".,?!'").lower() for judgement in judgements for word in judgement.sentence.split()
        }
    vocabulary = [*WORDS, *".,?!'", *sorted(words)]
    (folder / "teacher").mkdir()
    (folder / "teacher" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "teacher" / "vocab.txt")).save_pretrained(folder / "teacher")
    config = BertConfig(  # type: ignore[call-arg]  # what every family takes it hands on
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_labels=2,
        id2label={0: "unacceptable", 1: "acceptable"},
        label2id={"unacceptable": 0, "acceptable": 1},
    )
    BertForSequenceClassification(config).save_pretrained(folder / "teacher")
