"""Plan of a sweep and estimate of its cost, before anything is trained or written."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch

from ikd_ray.config import Trial, make_trial
from ikd_ray.data.tokens import TaskData, tokenize
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import matched_layers
from ikd_ray.distill.targets import should_store_attention, size_gb
from ikd_ray.distill.teacher import load_source, load_tokenizer
from ikd_ray.formatting import describe_truncated, duration
from ikd_ray.search.budget import Budget
from ikd_ray.search.planned_work import total_cost
from ikd_ray.search.space import Fixed, FloatRange, IntRange, Param, Space
from ikd_ray.sweep.epoch_costs import Costs, Probe, random_subset
from ikd_ray.sweep.memory_costs import MemoryCosts
from ikd_ray.sweep.placement import Placement
from ikd_ray.sweep.preparation import Note
from ikd_ray.sweep.ray_internals import count_cpus
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.resources import Node, TrialResources, allocate

SAMPLED_TRIALS = 500  # random trials that stand for what the sampler may suggest
SAMPLED_EXAMPLES = 4096  # of each split, whose lengths stand for all
STARTUP_SECONDS = 15  # of Ray, MLflow and the first trial
GPU_TRIALS = (2, 4)  # numbers of trials on one GPU that are compared with one
NOTABLE_GAIN = 1.1  # what another placement must gain to be advised; times vary by some percent


def plan_sweep(request: Request) -> Iterator[Note]:
    """Yield the plan as notes, the last ones after a probe of about half a minute; only temporary files are written.

    Raises:
        UsageError: More workers or GPUs are asked for than the machine has.
    """
    space, resources = request.space, _allocate_machine(request)
    yield Note("data", request.dataset.description)
    yield from (Note("warning", text) for text in request.warnings)
    yield Note("teacher", _describe_teacher(request))
    for assistant in _assistants(request):
        students = _join_or(request.assistant_students[assistant.student_layers])
        yield Note(
            "assistant",
            f"{assistant.student_layers} layers, {assistant.regime}, at most {_count_epochs(assistant)} epochs, "
            f"once; for students of depth {students}",
        )
    yield Note("objectives", ", ".join(f"{name} ({mode})" for name, mode in request.objectives.items()))
    for name, param in space.params.items():
        yield Note("fixed" if isinstance(param, Fixed) else "searched", _describe_param(name, param))
    for method, fixed in space.methods.items():
        if method:
            values = ", ".join(f"{name} {value}" for name, value in fixed.items()) or "nothing but defaults"
            yield Note("compared", f"{method}: {values}")
    for method, own in request.budget.spaces.items():
        for regime in own.possible_values("regime"):
            yield Note("stages", (f"{method}: " if method else "") + _describe_stages(regime, own))
    trials = sample_trials(request.budget)
    yield Note("trials", _describe_trials(request, trials))
    with tempfile.TemporaryDirectory(prefix="ikd-dry-run-") as folder:
        source = request.teacher_source
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        teacher = load_source(source, request.task, seed=0).to(device)
        sample = random_subset(request.dataset, SAMPLED_EXAMPLES)
        data = tokenize(
            sample, load_tokenizer(source), source.key, request.max_length, Path(folder) / "tokens"
        )
        if cut := describe_truncated(data.truncation):
            yield Note(
                "texts",
                f"of a random sample {cut} are longer than max_length {request.max_length}, and cut there",
            )
        yield Note("targets", _describe_targets(request, teacher, data))
        yield Note("memory", _describe_memory(request, trials, teacher, data, resources))
        probe = Probe(
            source,
            teacher,
            request.max_length,
            depth=min(max(2, *request.depths, *request.assistant_students), source.layers),
            batch_size=min(space.possible_values("batch_size"), key=lambda size: abs(size - 32)),
            placements=_placements(request, resources),
            folder=Path(folder),
            world=DistributedContext(device=device, precision=space.precision),
        )
        costs = probe.measure(sample, {name: split.lengths for name, split in data.splits.items()})
    yield from _describe_time(request, trials, costs, resources)


def _allocate_machine(request: Request) -> TrialResources:
    """Allocate this machine to the trials, also where RAY_ADDRESS names a cluster."""
    config = request.config
    if "RAY_ADDRESS" in os.environ:
        defaults = {"concurrent": None, "workers_per_trial": 1, "gpus_per_worker": None}
        config = config.model_copy(update=defaults)
    return allocate(
        [Node(count_cpus(), torch.cuda.device_count())],
        trials=request.trials,
        concurrent=config.concurrent,
        workers=config.workers_per_trial,
        gpus_per_worker=config.gpus_per_worker,
    )


def _placements(request: Request, resources: TrialResources) -> list[Placement]:
    """Return the planned placement, and others where no flag asks for it.

    Without GPUs these have fewer trials at once, with more threads each; with GPUs, several trials that share one.
    """
    threads = resources.cpus * resources.workers
    if resources.gpus:
        planned = Placement(max(int(1 / resources.gpus), 1), threads)
        if request.config.gpus_per_worker is not None or resources.workers > 1:
            return [planned]
        return [planned, *(Placement(trials, max(threads // trials, 1)) for trials in GPU_TRIALS)]
    planned = Placement(resources.concurrent, threads)
    if request.config.concurrent is not None or resources.workers > 1:
        return [planned]
    fewer = (2**power for power in range(resources.concurrent.bit_length()))
    return [planned, *(Placement(n, count_cpus() // n) for n in fewer if n < resources.concurrent)]


def sample_trials(budget: Budget) -> list[Trial]:
    """Return the trials of a grid, or random trials of every method's space."""
    if budget.grids:
        specs = map(budget.spec, range(0, budget.search_trials, budget.seeds))
        return [make_trial(budget.grids[spec.method][spec.configuration]) for spec in specs]
    return [trial for space in budget.spaces.values() for trial in _random_trials(space, SAMPLED_TRIALS)]


def _random_trials(space: Space, count: int) -> list[Trial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for _ in range(count):
        suggested = study.ask()
        constants = space.suggest(suggested)
        trials.append(make_trial(constants | suggested.params))
    return trials


def _assistants(request: Request) -> list[Trial]:
    """Return the configuration of each assistant."""
    config = request.space.assistant
    return [config.model_copy(update={"student_layers": layers}) for layers in request.assistant_students]


def _count_epochs(trial: Trial) -> int:
    return sum(stage.epochs for stage in REGIMES[trial.regime](trial))


def _describe_teacher(request: Request) -> str:
    text = f"{request.teacher_source.name}, {request.teacher_source.layers} layers"
    if request.teacher_source.has_head:
        return f"{text}, with its own head, whose outputs are matched with the task"
    epochs = request.space.teacher.epochs
    return f"{text}, fine-tuned on {request.task.name} for at most {epochs} epochs, once"


def _describe_param(name: str, param: Param) -> str:
    if isinstance(param, (IntRange, FloatRange)):
        values = f"{param.low:g} to {param.high:g}"
        if isinstance(param, IntRange) and param.step > 1:
            values += f" in steps of {param.step}"
        if param.log:
            values += ", evenly on a logarithmic scale"
    else:
        values = ", ".join(map(str, param.values))
    when = " and ".join(f"{parent} is {_join_or(allowed)}" for parent, allowed in param.when.items())
    return f"{name}: {values}" + (f"; where {when}" if when else "")


def _join_or(values: Sequence[Any]) -> str:
    return _join(values, "or")


def _join(values: Sequence[Any], word: str = "and") -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} {word} {last}" if others else last


def _describe_stages(regime: str, space: Space) -> str:
    """Describe the stages of the deepest student, with defaults for what the space does not fix."""
    fixed: Mapping[str, Any] = {
        name: param.values[0] for name, param in space.params.items() if isinstance(param, Fixed)
    }
    depth = max(space.possible_values("student_layers"))
    trial = make_trial({**fixed, "regime": regime, "student_layers": depth})
    return f"{regime}, {depth} layers: {', then '.join(stage.name for stage in REGIMES[regime](trial))}"


def _describe_trials(request: Request, trials: list[Trial]) -> str:
    space, budget = request.space, request.budget
    minutes = request.config.minutes
    count = f"as many as {minutes:g} minutes allow" if minutes else str(request.trials)
    text = {
        "grid": "of the grid",
        "tpe": "suggested by Optuna's TPE sampler",
        "cost_aware": "suggested by what each is expected to add to the front, per unit of its cost",
    }[space.sampler]
    if len(space.methods) > 1 and not request.is_open_ended:
        counts = [len(list(budget.configurations(method))) for method in space.methods]
        each = f"{counts[0]} each" if len(set(counts)) == 1 else ", ".join(map(str, counts))
        text += f"; configurations of the {len(counts)} methods: {each}"
    if first := min(len(space.start), budget.search_trials):
        text += f"; the first {first} as the space's start has them"
    if space.seeds > 1:
        text += f", each configuration with {space.seeds} seeds"
    if retrained := request.trials - budget.search_trials:
        text += (
            f"; {retrained} of them the best configurations again, with {space.best_seeds} further seeds each"
        )
    epochs = [_count_epochs(trial) for trial in trials]
    mean = statistics.mean(epochs)
    return f"{count}, {text}; at most {mean:.3g} epochs each on average ({min(epochs)} to {max(epochs)})" + (
        "" if minutes else f", about {mean * request.trials:,.0f} in all"
    )


def _describe_targets(request: Request, teacher: Encoder, data: TaskData) -> str:
    """Describe the size of all targets, estimated from the tokens of a sample."""
    fraction = _fraction(request, data)
    depths = {*request.depths, *request.assistant_students}
    targets = {"teacher": matched_layers(depths, request.teacher_source.layers)}
    for assistant, students in request.assistant_students.items():  # its layers have the teacher's width
        targets[f"{assistant}-layer assistant"] = matched_layers(students, assistant)
    return "; ".join(
        _describe_size(request, data, teacher, layers, fraction, model) for model, layers in targets.items()
    )


def _fraction(request: Request, sample: TaskData) -> float:
    """Return the share of all examples that are in a sample."""
    return sum(map(len, sample.splits.values())) / sum(map(len, request.dataset.splits.values()))


def _describe_size(
    request: Request, data: TaskData, teacher: Encoder, layers: list[int], fraction: float, model: str
) -> str:
    size = size_gb(data, teacher, layers) / fraction
    if should_store_attention(size, float("inf"), request.space.targets):
        return f"{size:.2g} GB of {model} layers {', '.join(map(str, layers))}"
    size = size_gb(data, teacher, layers, attention=False) / fraction
    owner = "" if model == "teacher" else f" of the {model}"
    return f"{size:.2g} GB{owner} without attention, which is computed for each batch"


def _describe_memory(
    request: Request, trials: list[Trial], teacher: Encoder, data: TaskData, resources: TrialResources
) -> str:
    """Describe the memory of each worker, and of the process that fine-tunes the teacher."""
    in_background = bool(resources.gpus or request.output.uri)
    bound = StepMemory(request.config.step_memory)
    costs = MemoryCosts(teacher, data, _fraction(request, data), bound, in_background)
    trained = [*trials, *_assistants(request)]
    step = costs.largest_step(trained, resources.workers)
    fixed = costs.fixed_gb(max(trial.student_layers for trial in trained))
    freezes = any(
        stage.frozen(trial.student_layers) > 0 for trial in trials for stage in REGIMES[trial.regime](trial)
    )
    frozen = costs.frozen_gb(request.space.prefix.memory_gb) if freezes else 0.0
    each, workers = fixed + frozen + step.gigabytes, resources.concurrent * resources.workers
    parts = f" in {step.parts} parts" if step.parts > 1 else ""
    text = (
        f"at most about {each:.1f} GB in each of {workers} worker{'s' * (workers > 1)}: "
        f"process and models {fixed:.1f}, {f'outputs of frozen layers {frozen:.1f}, ' if frozen else ''}"
        f"a step of {step.examples} examples of {costs.longest} tokens{parts} {step.gigabytes:.1f}, "
        f"where --step-memory allows {request.config.step_memory:g}"
    )
    if not request.teacher_source.has_head:
        text += f"; fine-tuning the teacher {costs.fine_tuning_gb(request.space.teacher.batch_size):.1f}"
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if each * workers > machine and not resources.gpus and "RAY_ADDRESS" not in os.environ:
        text += f"; more than this machine's {machine:.1f} GB: give a smaller --concurrent or --step-memory"
    return text


def _describe_time(
    request: Request, trials: list[Trial], costs: Costs, resources: TrialResources
) -> Iterator[Note]:
    size = request.data_size
    source, teacher = request.teacher_source, 0.0
    if not source.has_head:
        teacher = request.space.teacher.epochs * costs.teacher_seconds(source.layers, size)
    targets = (size.train + size.unlabelled + size.evaluation) * costs.target
    # A pass of an assistant costs its share of the teacher's layers.
    assistant_targets = sum(request.assistant_students) / source.layers * targets
    distillation = sum(total_cost(assistant, size, costs.epoch) for assistant in _assistants(request))
    assistants = costs.all_threads_ratio * distillation + assistant_targets
    mean = costs.slowdown * statistics.mean(total_cost(trial, size, costs.epoch) for trial in trials)
    rounds = -(-request.trials // resources.concurrent)
    minutes = request.config.minutes
    limit = 60 * minutes if minutes else math.inf
    total = STARTUP_SECONDS + teacher + targets + assistants + min(mean * rounds, limit)
    count = (resources.gpus or resources.cpus) * resources.workers
    each = f"{count:g} {'GPU' if resources.gpus else 'CPU thread'}{'s' * (count > 1)} each"
    if "RAY_ADDRESS" in os.environ:
        each += ", as if there were this machine alone"
    yield Note("probe", f"{costs.seconds:.0f} s of training on {costs.examples} examples")
    if len(costs.speeds) > 1:
        yield Note("at once", _describe_speeds(costs.speeds, shared_gpu=bool(resources.gpus)))
    yield Note(
        "time",
        f"at most about {duration(total)}: teacher {duration(teacher)}, its targets {duration(targets)}, "
        f"{f'assistants and theirs {duration(assistants)}, ' if request.assistant_students else ''}"
        f"{f'{minutes:g} minutes of' if minutes else request.trials} trials of {duration(mean)} on average, "
        f"{resources.concurrent} at a time with {each}",
    )
    yield Note("less", "where a teacher is kept, thresholds end stages, or trials share epochs")


def _describe_speeds(speeds: Mapping[Placement, float], shared_gpu: bool) -> str:
    """Compare the planned placement with the others, and name the flag for one that is clearly faster."""
    planned, *others = speeds
    on = " on a GPU" if shared_gpu else ""
    gains = [
        f"{speeds[planned] / speeds[other]:.2f} times as much as {_describe_placement(other)}"
        for other in others
    ]
    text = f"{_describe_placement(planned)} train{'s' * (planned.trials == 1)}{on} {_join(gains)}"
    fastest = max(speeds, key=lambda placement: speeds[placement])
    if speeds[fastest] < NOTABLE_GAIN * speeds[planned]:
        return text
    flag = f"--gpus-per-worker {1 / fastest.trials:g}" if shared_gpu else f"--concurrent {fastest.trials}"
    return f"{text}; {flag} would be faster"


def _describe_placement(placement: Placement) -> str:
    threads = f"{placement.threads} CPU thread{'s' * (placement.threads > 1)}"
    if placement.trials == 1:
        return f"1 trial at a time with {threads}"
    return f"{placement.trials} trials at once with {threads} each"
