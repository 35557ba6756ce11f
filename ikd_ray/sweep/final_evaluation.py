"""Evaluation on the test set at the end of a sweep, when nothing is left to choose."""

from __future__ import annotations

from dataclasses import replace

from ikd_ray.analysis.model_loader import Model, ModelLoader
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.distill.evaluate import score
from ikd_ray.distill.memory import StepMemory
from ikd_ray.errors import UnavailableError, first_line
from ikd_ray.records import SweepRecord, TrialRecord, metrics_on_test, write_sweep, write_test_metrics
from ikd_ray.sweep.preparation import tokenize_test_set
from ikd_ray.sweep.request import Request
from ikd_ray.terminal.console import Console


def evaluate_on_test(
    request: Request, sweep: SweepRecord, trials: list[TrialRecord], console: Console
) -> tuple[SweepRecord, list[TrialRecord]]:
    """Score the front's students and their teacher on the test set, each once, and record their metrics.

    What cannot be loaded is named in a warning, and scored when the sweep is resumed.

    Args:
        request: The sweep.
        sweep: Its record.
        trials: The records of all ended trials.
        console: Where the step is shown.

    Returns:
        The records, with metrics such as `test/accuracy` where there is a test set.
    """
    front = pareto_front(trials, sweep.objectives) if request.dataset.test else []
    students = [trial for trial in front if not metrics_on_test(trial.metrics)]
    teacher_metrics = sweep.teacher["metrics"]
    if not front or (not students and metrics_on_test(teacher_metrics)):
        return sweep, trials
    memory, problems = StepMemory(request.config.step_memory), list[str]()
    with console.step("scoring the front's students on the test set"):
        try:
            data = tokenize_test_set(request)
        except Exception as error:  # as below
            console.warn(f"the test set cannot be read: {type(error).__name__}: {first_line(error)}")
            return sweep, trials
        assert data is not None
        loader = ModelLoader(request.output, request.folder, sweep)

        def measure(model: Model) -> dict[str, float]:
            try:
                return score(loader.load(model), data, memory)
            except UnavailableError as error:
                problems.append(str(error))
            except Exception as error:  # a full disk or memory must not cost a finished sweep its summary
                problems.append(f"{model.name}: {type(error).__name__}: {first_line(error)}")
            return {}

        if not metrics_on_test(teacher_metrics):
            teacher_metrics = teacher_metrics | measure(loader.teacher)
        found = {trial.id: measure(loader.student(trial)) for trial in students}
    for problem in problems:
        console.warn(f"not scored on the test set: {problem}")
    trials = [replace(trial, metrics=trial.metrics | found.get(trial.id, {})) for trial in trials]
    sweep = replace(sweep, teacher=sweep.teacher | {"metrics": teacher_metrics})
    write_test_metrics(request.folder, trials)
    write_sweep(request.folder, sweep)
    return sweep, trials
