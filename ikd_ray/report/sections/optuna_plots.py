"""Figures of the sweep's study that Optuna draws: the importance of parameters, and parallel coordinates."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
import optuna
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.errors import UnavailableError, first_line
from ikd_ray.formatting import clean, plural
from ikd_ray.records import STUDY_FILE
from ikd_ray.report.components import Picture, View
from ikd_ray.report.style import INK, MUTED, WIDE, decorate, new_figure, number_axis, stacked_bars
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
    importances = get_param_importances(
        study,
        evaluator=FanovaImportanceEvaluator(seed=analysis.sweep.seed),
        # The metric need not be an objective.
        target=lambda trial: scores.get(trial.user_attrs[NUMBER], math.nan),
    )
    if not importances:
        raise UnavailableError(
            "No parameter was searched in every trial: there is nothing to compare across all of them."
        )
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
    view = View.of(lambda width: _draw_importances(importances, width))
    return Picture("importances", "Which parameters matter", caption, f"Bars. {caption}", [view])


def _draw_importances(importances: Mapping[str, float], width: float) -> Figure:
    figure = new_figure(width, 1.0 + 0.32 * len(importances))
    axes = figure.subplots()
    decorate(axes, "Share of the variance")
    names = [clean(name, 24) for name in importances]
    (bars,) = stacked_bars(axes, names, {"share": list(importances.values())}, 0.7)
    labels = [f"{share:.2f}" for share in importances.values()]
    axes.bar_label(bars, labels, fontsize=8, color=MUTED, padding=3)
    axes.margins(x=0.12)
    return figure


@_no_warnings()
def combinations_picture(analysis: SweepAnalysis, study: optuna.Study) -> Picture:
    """Draw the objectives and parameters of all trials as parallel coordinates; of many, some and the front."""
    total, params = len(study.get_trials(deepcopy=False)), _searched_params(study)
    study = _thin_out(study, MAX_LINES, with_front=True)
    trials = _count(len(study.get_trials(deepcopy=False)), total, " and the front")
    shown, left = params[:MAX_PARAMS], params[MAX_PARAMS:]
    figure = _figure_by_optuna(
        lambda: optuna.visualization.matplotlib.plot_parallel_coordinate(study, shown),
        height=4.6,
        width=1.15 * len(shown),
    )
    better = "better" if len(study.directions) == 1 else "nearer to the front (Pareto rank 0)"
    caption = (
        f"A line is one of {trials}, from the sweep's objectives through its parameters' values; "
        f"a stronger blue is {better}. None: the trial's regime does not have that parameter."
    )
    if left:
        caption += f" Left out for want of room: {', '.join(map(clean, left))}."
    alt = f"Parallel coordinates of the objectives and {', '.join(map(clean, shown))}."
    title = "Which combinations were tried"
    return Picture("combinations", title, caption, alt, [View(figure)])


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
    return plural(trials, "trial") if trials == total else f"{trials} of {total} trials, evenly spaced{more}"


def _searched_params(study: optuna.Study) -> list[str]:
    """Return the parameters of any trial, those of most trials first."""
    counts = Counter(name for trial in study.get_trials(deepcopy=False) for name in trial.params)
    return sorted(counts, key=lambda name: -counts[name])


def _figure_by_optuna(draw: Callable[[], Any], height: float, width: float) -> Figure:
    """Return what `draw` draws with Optuna in matplotlib's global state, and leave that state as it was.

    `draw` returns the axes. Height and width are in inches; a figure is at least `WIDE`.
    """
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    with matplotlib.rc_context():  # Optuna sets a style for everything that is drawn after it
        pyplot.switch_backend("agg")
        try:
            axes = draw()
            figure: Figure = axes.figure
            figure.set_size_inches(max(WIDE, width), height)
            for side in ("left", "center"):
                axes.set_title("", loc=side)
            if axes.get_legend():
                axes.get_legend().remove()
            for panel in figure.axes:
                panel.set_facecolor("none")
                panel.tick_params(labelsize=8.5, colors=MUTED, labelcolor=INK)
                panel.xaxis.label.set_color(INK)
                panel.yaxis.label.set_color(INK)
                for image in panel.findobj(QuadMesh):
                    image.set_rasterized(True)  # the colour bar
                if panel.get_yscale() == "log":
                    number_axis(panel.yaxis, *panel.get_ylim())
            FigureCanvasAgg(figure)
            return figure
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
