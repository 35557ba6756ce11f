"""A sweep's plan in words, and what it will cost, before anything is paid or written."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
import torch

from ikd_ray.config import Trial, make_trial
from ikd_ray.data.tokens import TaskData, tokenize
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.student import matched_layers
from ikd_ray.distill.targets import should_store_attention, size_gb
from ikd_ray.distill.teacher import load_source, load_tokenizer
from ikd_ray.formatting import duration
from ikd_ray.search.budget import Budget
from ikd_ray.search.parameters import Fixed, FloatRange, IntRange, Param
from ikd_ray.search.space import Space
from ikd_ray.sweep.prepare import Note
from ikd_ray.sweep.probe import Costs, Probe, sampled
from ikd_ray.sweep.ray_internals import count_cpus
from ikd_ray.sweep.request import Request
from ikd_ray.sweep.resources import Node, TrialResources, allocate

DRAWS = 500  # trials that stand for what a sampler may suggest
SIZED = 4096  # examples of each split whose lengths stand for all
START_S = 15  # of Ray, MLflow and the first trial


def dry_run(request: Request) -> Iterator[Note]:
    """The plan, fact by fact; the last ones after a probe of about ten seconds. All it writes is temporary.

    Raises:
        UsageError: more workers or GPUs are asked for than the machine has.
    """
    space, resources = request.space, _resources(request)
    yield Note("data", request.dataset.description)
    yield Note("teacher", _teacher(request))
    for recipe in _assistants(request):
        yield Note(
            "assistant",
            f"{recipe.student_layers} layers, {recipe.regime}, at most {_epochs(recipe)} epochs, once; "
            f"for students of depth {_or(request.assistant_students[recipe.student_layers])}",
        )
    yield Note("objectives", ", ".join(f"{name} ({way})" for name, way in request.objectives.items()))
    for name, param in space.params.items():
        yield Note("searched" if not isinstance(param.domain, Fixed) else "fixed", _dimension(name, param))
    for method, fixed in space.methods.items():
        if method:
            yield Note("compared", f"{method}: {_all(fixed)}")
    for method, own in request.budget.spaces.items():
        for regime in own.possible_values("regime"):
            yield Note("stages", (f"{method}: " if method else "") + _stages(regime, own))
    trials = draws(request.budget)
    yield Note("trials", _trials(request, trials))
    with tempfile.TemporaryDirectory(prefix="ikd-dry-run-") as room:
        teacher = load_source(request.teacher_source, request.task, seed=0)
        sample = sampled(request.dataset, SIZED)
        tokenizer, key = load_tokenizer(request.teacher_source), request.teacher_source.key
        data = tokenize(sample, tokenizer, key, request.max_length, Path(room) / "tokens")
        yield Note("targets", _targets(request, teacher, data))
        batch_size = min(space.possible_values("batch_size"), key=lambda size: abs(size - 32))
        depth, threads = (
            max((*request.depths, *request.assistant_students)),
            resources.cpus * resources.workers,
        )
        probe = Probe(
            request.teacher_source, teacher, request.max_length, depth, batch_size, threads, Path(room)
        )
        costs = probe.measure(sample, {name: split.lengths for name, split in data.splits.items()})
    yield from _time(request, trials, costs, resources)


def _resources(request: Request) -> TrialResources:
    """What a trial gets of this machine; of a cluster that may be elsewhere as if it were this machine alone."""
    config = request.config
    if "RAY_ADDRESS" in os.environ:
        asked = {"concurrent": None, "workers_per_trial": 1, "gpus_per_worker": None}
        config = config.model_copy(update=asked)
    return allocate(
        [Node(count_cpus(), torch.cuda.device_count())],
        trials=request.trials,
        concurrent=config.concurrent,
        workers=config.workers_per_trial,
        gpus_per_worker=config.gpus_per_worker,
    )


def draws(budget: Budget) -> list[Trial]:
    """Trials as they may be suggested, of every method alike: of a grid its own, else random ones."""
    if budget.grids:
        specs = map(budget.spec, range(0, budget.search_trials, budget.seeds))
        return [make_trial(budget.grids[spec.method][spec.configuration]) for spec in specs]
    return [trial for space in budget.spaces.values() for trial in _draws(space, DRAWS)]


def _draws(space: Space, count: int) -> list[Trial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        suggested = study.ask()
        constants = space.suggest(suggested)
        found.append(make_trial(constants | suggested.params))
    return found


def _teacher(request: Request) -> str:
    about = f"{request.teacher_source.name}, {request.teacher_source.layers} layers"
    if request.teacher_source.has_head:
        return f"{about}, used as it is"
    return (
        f"{about}, fine-tuned on {request.task.name} for at most {request.space.teacher.epochs} epochs, once"
    )


def _assistants(request: Request) -> list[Trial]:
    """How each is distilled."""
    recipe = request.space.assistant
    return [recipe.model_copy(update={"student_layers": layers}) for layers in request.assistant_students]


def _dimension(name: str, param: Param) -> str:
    domain = param.domain
    if isinstance(domain, (IntRange, FloatRange)):
        values = f"{domain.low:g} to {domain.high:g}"
        step = f" in steps of {domain.step}" if isinstance(domain, IntRange) and domain.step > 1 else ""
        values += step + (", evenly on a logarithmic scale" if domain.log else "")
    else:
        values = ", ".join(map(str, domain.values))
    when = " and ".join(f"{parent} is {_or(allowed)}" for parent, allowed in param.when.items())
    return f"{name}: {values}" + (f"; where {when}" if when else "")


def _all(fixed: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in fixed.items()) or "nothing but defaults"


def _or(values: tuple[Any, ...]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def _stages(regime: str, space: Space) -> str:
    """Of the deepest student. What the space does not fix stands at its default."""
    fixed: Mapping[str, Any] = {
        name: param.domain.value for name, param in space.params.items() if isinstance(param.domain, Fixed)
    }
    depth = max(space.possible_values("student_layers"))
    trial = make_trial({**fixed, "regime": regime, "student_layers": depth})
    return f"{regime}, {depth} layers: {', then '.join(stage.name for stage in REGIMES[regime](trial))}"


def _trials(request: Request, trials: list[Trial]) -> str:
    epochs = [_epochs(trial) for trial in trials]
    mean = statistics.mean(epochs)
    how, space = "of the grid", request.space
    if space.sampler != "grid":
        how = "suggested by Optuna's TPE sampler"
    if len(space.methods) > 1:
        each = [len(list(request.budget.configurations(method))) for method in space.methods]
        much = f"{each[0]} each" if len(set(each)) == 1 else ", ".join(map(str, each))
        how += f"; configurations of the {len(each)} methods: {much}"
    if space.seeds > 1:
        how += f", each configuration with {space.seeds} seeds"
    if again := request.trials - request.budget.search_trials:
        how += f"; {again} of them the best configurations again, with {space.best_seeds} further seeds each"
    return (
        f"{request.trials}, {how}; at most {mean:.3g} epochs each on average ({min(epochs)} to {max(epochs)}), "
        f"about {mean * request.trials:,.0f} in all"
    )


def _epochs(trial: Trial) -> int:
    return sum(stage.epochs for stage in REGIMES[trial.regime](trial))


def _targets(request: Request, teacher: Encoder, data: TaskData) -> str:
    """Their size, by the tokens of a sample."""
    share = sum(map(len, data.splits.values())) / sum(map(len, request.dataset.splits.values()))
    depths, source = {*request.depths, *request.assistant_students}, request.teacher_source.layers
    layers = matched_layers(depths, source)
    told = [_stored(request, data, teacher, layers, share, "teacher")]
    for (
        assistant,
        students,
    ) in request.assistant_students.items():  # of the teacher's width, so as large a layer
        layers = matched_layers(students, assistant)
        told.append(_stored(request, data, teacher, layers, share, f"{assistant}-layer assistant"))
    return "; ".join(told)


def _stored(
    request: Request, data: TaskData, teacher: Encoder, layers: list[int], share: float, who: str
) -> str:
    size = size_gb(data, teacher, layers) / share
    if should_store_attention(size, float("inf"), request.space.targets):
        return f"{size:.2g} GB of {who} layers {', '.join(map(str, layers))}"
    size = size_gb(data, teacher, layers, attention=False) / share
    whose = "" if who == "teacher" else f" of the {who}"
    return f"{size:.2g} GB{whose} without attention, which is computed for each batch"


def _time(request: Request, trials: list[Trial], costs: Costs, resources: TrialResources) -> Iterator[Note]:
    train = len(request.dataset.splits["train"])
    dev = sum(len(split) for name, split in request.dataset.splits.items() if name != "train")
    teacher = 0.0
    if not request.teacher_source.has_head:
        teacher = request.space.teacher.epochs * costs.teacher_s(request.teacher_source.layers, train, dev)
    targets = (train + dev) * costs.target
    # A pass of an assistant takes its share of the teacher's.
    passes = sum(request.assistant_students) / request.teacher_source.layers * targets
    recipes = [trial_s(recipe, costs, train, dev) for recipe in _assistants(request)]
    assistants = costs.together * sum(recipes) + passes
    mean = statistics.mean(trial_s(trial, costs, train, dev) for trial in trials)
    in_turn = -(-request.trials // resources.concurrent)
    in_all = START_S + teacher + targets + assistants + mean * in_turn
    many = (resources.gpus or resources.cpus) * resources.workers
    where = f"{many:g} {'GPU' if resources.gpus else 'CPU thread'}{'s' * (many > 1)} each"
    if "RAY_ADDRESS" in os.environ:
        where += ", as if there were this machine alone"
    yield Note("probe", f"{costs.seconds:.0f} s of training on {costs.examples} examples")
    yield Note(
        "time",
        f"at most about {duration(in_all)}: teacher {duration(teacher)}, its targets {duration(targets)}, "
        f"{f'assistants and theirs {duration(assistants)}, ' if request.assistant_students else ''}"
        f"{request.trials} trials of {duration(mean)} on average, {resources.concurrent} at a time with {where}",
    )
    yield Note("less", "where a teacher is kept, thresholds end stages, or trials share epochs")


def trial_s(trial: Trial, costs: Costs, train: int, dev: int) -> float:
    """Seconds of all of a trial's epochs, if none of its stages ends early."""
    total, seen = 0.0, round(trial.train_fraction * train)
    for stage in REGIMES[trial.regime](trial):
        once, epoch = costs.stage_s(stage, trial.student_layers, seen, dev)
        total += once + epoch * stage.epochs
    return total
