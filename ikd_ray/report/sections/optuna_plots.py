"""Figures of the sweep's study that Optuna draws: the importance of parameters, and parallel coordinates."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import optuna
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.errors import UnavailableError, first_line
from ikd_ray.formatting import clean
from ikd_ray.records import STUDY_FILE
from ikd_ray.report.components import Picture
from ikd_ray.report.style import BLUE, GRID, INK, number_axis, png
from ikd_ray.search.study import load_study, open_database

MAX_PARAMS = 12  # of parallel coordinates
MAX_FOREST = 1000  # trials that fANOVA models: the time that it takes grows with the square of their number
MAX_LINES = 250  # evenly spaced trials of parallel coordinates: there are 256 colors for their Pareto ranks
NUMBER = "number"  # attribute of a copied trial: its number in the sweep


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_no_warnings()
def open_study(analysis: SweepAnalysis) -> optuna.Study:
    """Copy the complete trials of the sweep's study into memory, and name its objectives.

    Raises:
        UnavailableError: the study is missing or cannot be read.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = (analysis.folder / STUDY_FILE).resolve()
    if not path.is_file():
        raise UnavailableError(f"Optuna's study is not there any more ({path}).")
    try:
        stored = load_study(analysis.folder.name, open_database(path))
        if stored is None:
            raise UnavailableError(f"Optuna's study {path} is empty.")
        complete = stored.get_trials(states=(TrialState.COMPLETE,))
        study = optuna.create_study(directions=stored.directions)
        for trial in complete:  # the copies are numbered anew
            trial.user_attrs[NUMBER] = trial.number
    except UnavailableError:
        raise
    except Exception as error:  # SQLAlchemy's, SQLite's and Optuna's own
        raise UnavailableError(f"Optuna's study {path} cannot be read ({first_line(error)}).") from None
    study.add_trials(complete)
    if len(analysis.sweep.objectives) == len(study.directions):
        study.set_metric_names([clean(name) for name in analysis.sweep.objectives])
    return study


@_no_warnings()
def importances_picture(analysis: SweepAnalysis, study: optuna.Study) -> Picture:
    """Draw the importance of the parameters that all trials have, by fANOVA.

    Raises:
        UnavailableError: there is no parameter, or no difference, to compare.
    """
    metric = clean(analysis.metric)
    scores = {trial.number: trial.metrics[analysis.metric] for trial in analysis.finished}
    total = len(study.get_trials(deepcopy=False))
    study = _thin_out(study, MAX_FOREST)
    trials = study.get_trials(deepcopy=False)
    if len({scores[trial.user_attrs[NUMBER]] for trial in trials if trial.user_attrs[NUMBER] in scores}) < 2:
        raise UnavailableError(f"All trials have the same {metric}: no parameter made a difference.")
    options: dict[str, Any] = {
        "evaluator": _KnownImportances(FanovaImportanceEvaluator(seed=analysis.sweep.seed)),
        # The metric need not be an objective.
        "target": lambda trial: scores.get(trial.user_attrs[NUMBER], math.nan),
    }
    importances = get_param_importances(study, **options)
    if not importances:
        raise UnavailableError(
            "No parameter was searched in every trial: there is nothing to compare across all of them."
        )
    options["target_name"] = metric
    plot = optuna.visualization.plot_param_importances(study, **options)
    image = _png_by_optuna(
        lambda: optuna.visualization.matplotlib.plot_param_importances(study, **options),
        height=1.2 + 0.36 * len(importances),
    )
    plot.update_traces(marker_color=BLUE)
    plot.update_layout(xaxis_title="Share of the variance", yaxis_title=None)
    _restyle(plot, 130 + 34 * len(importances))
    shares = ", ".join(f"{clean(name)} {share:.2f}" for name, share in importances.items())
    caption = (
        f"Optuna's fANOVA over {_count(len(trials), total)}: the share of the variance of {metric} that a forest of "
        f"trees lays to each parameter: {shares}. It says how much a parameter matters in the space searched, not "
        "which value is good."
    )
    left = [name for name in _searched_params(study) if name not in importances]
    if left:
        caption += (
            f" Left out: {', '.join(map(clean, left))}; only some regimes have them, and fANOVA compares what every "
            "trial has."
        )
    return Picture("importances", "Which parameters matter", caption, f"Bars. {caption}", image, plot)


@_no_warnings()
def combinations_picture(analysis: SweepAnalysis, study: optuna.Study) -> Picture:
    """Draw the objectives and parameters of all trials as parallel coordinates; of many, some and the front."""
    total, params = len(study.get_trials(deepcopy=False)), _searched_params(study)
    study = _thin_out(study, MAX_LINES, with_front=True)
    trials = _count(len(study.get_trials(deepcopy=False)), total, " and the front")
    shown, left = params[:MAX_PARAMS], params[MAX_PARAMS:]
    plot = optuna.visualization.plot_parallel_coordinate(study, shown)
    image = _png_by_optuna(
        lambda: optuna.visualization.matplotlib.plot_parallel_coordinate(study, shown),
        height=4.6,
        width=1.15 * len(shown),
    )
    _restyle(plot, 460)
    better = "better" if len(study.directions) == 1 else "nearer to the front (Pareto rank 0)"
    caption = (
        f"A line is one of {trials}, from the sweep's objectives through its parameters' values; "
        f"darker is {better}. None: the trial's regime does not have that parameter."
    )
    if left:
        caption += f" Left out for want of room: {', '.join(map(clean, left))}."
    alt = f"Parallel coordinates of the objectives and {', '.join(map(clean, shown))}."
    title = "Which combinations were tried"
    return Picture("combinations", title, caption, alt, image, plot, wide=True)


class _KnownImportances(BaseImportanceEvaluator):
    """Another evaluator's importances of one study, computed once for all figures."""

    def __init__(self, evaluator: BaseImportanceEvaluator) -> None:
        self._evaluator = evaluator
        self._importances: dict[str, float] | None = None

    def evaluate(self, study: optuna.Study, *arguments: Any, **options: Any) -> dict[str, float]:
        """Return the importance of each parameter."""
        if self._importances is None:
            self._importances = self._evaluator.evaluate(study, *arguments, **options)
        return self._importances


def _thin_out(study: optuna.Study, most: int, with_front: bool = False) -> optuna.Study:
    """Return a study of at most so many of the trials, evenly spaced from the first to the last, and of the front."""
    trials = study.get_trials(deepcopy=False)
    if len(trials) <= most:
        return study
    step = (len(trials) - 1) / (most - 1)
    numbers = {round(step * place) for place in range(most)}
    if with_front:
        numbers |= {trial.number for trial in study.best_trials}
    few = optuna.create_study(directions=study.directions)
    few.add_trials([trials[number] for number in sorted(numbers)])
    if study.metric_names:
        few.set_metric_names(study.metric_names)
    return few


def _count(trials: int, total: int, more: str = "") -> str:
    return f"{trials} trials" if trials == total else f"{trials} of {total} trials, evenly spaced{more}"


def _searched_params(study: optuna.Study) -> list[str]:
    """Return the parameters of any trial, those of most trials first."""
    counts = Counter(name for trial in study.get_trials(deepcopy=False) for name in trial.params)
    return sorted(counts, key=lambda name: -counts[name])


def _restyle(plot: Any, height: int) -> None:
    plot.update_layout(
        template="none",
        title=None,
        height=height,
        font={"color": INK, "family": "system-ui, sans-serif"},
        margin={"l": 10, "r": 10, "t": 24, "b": 10},
    )
    plot.update_xaxes(automargin=True, gridcolor=GRID)
    plot.update_yaxes(automargin=True)


def _png_by_optuna(draw: Callable[[], Any], height: float, width: float = 8.8) -> bytes:
    """Return the PNG of what `draw` draws with Optuna in matplotlib's global state, and leave that state as it was.

    `draw` returns the axes. Height and width are in inches; a figure is at least 8.8 wide.
    """
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    with matplotlib.rc_context():  # Optuna sets a style for everything that is drawn after it
        pyplot.switch_backend("agg")
        try:
            axes = draw()
            axes.figure.set_size_inches(max(8.8, width), height)
            for side in ("left", "center"):
                axes.set_title("", loc=side)
            if axes.get_legend():
                axes.get_legend().remove()
            for panel in axes.figure.axes:
                panel.set_facecolor("white")
                panel.tick_params(labelsize=8.5)
                if panel.get_yscale() == "log":
                    number_axis(panel.yaxis, *panel.get_ylim())
            return png(axes.figure)
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
