"""Comparison of a sweep's methods, or else of its regimes, over seeds: group-bys on its frame of trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from ikd_ray.analysis.dataframes import eligible_runs, has_several_seeds, one_per_seed
from ikd_ray.analysis.intervals import Interval, paired_t_interval, t_interval
from ikd_ray.analysis.sweep_analysis import SweepAnalysis
from ikd_ray.config import sort_regimes
from ikd_ray.records import Direction


def has_comparison(analysis: SweepAnalysis) -> bool:
    """Return whether the sweep compares methods, or runs a configuration with several seeds."""
    return analysis.has_methods or has_several_seeds(analysis.finished_frame)


def group_names(analysis: SweepAnalysis, frame: pd.DataFrame) -> list[str]:
    """Return the methods in the order they were started in; without methods, the regimes in their usual order."""
    names = list(frame["group"].unique())
    return [name for name in names if name] if analysis.has_methods else sort_regimes(names)


def by_seed(runs: pd.DataFrame, metric: str) -> pd.Series:
    """Return a metric indexed by seed; nan where a run lacks it."""
    return runs.set_index("seed").reindex(columns=[metric])[metric]


def best_group(groups: Mapping[str, pd.Series], direction: Direction = "max") -> str | None:
    """Return the group with the best mean if it is significantly better than every other group, else None.

    Significantly: the paired 95% interval of the difference to each other group excludes 0. `groups` holds values
    indexed by seed; a group without a finite value is not compared.
    """
    sign = 1 if direction == "max" else -1
    means = {name: t_interval(values).mean for name, values in groups.items()}
    compared = [name for name, mean in means.items() if math.isfinite(mean)]
    if len(compared) < 2:
        return None
    best = max(compared, key=lambda name: sign * means[name])
    differences = [paired_t_interval(groups[best], groups[name]) for name in compared if name != best]
    return best if all(it.excludes_zero and sign * it.mean > 0 for it in differences) else None


@dataclass(frozen=True)
class Comparison:
    """The best configuration of each method, or else of each regime.

    It has the best mean selection metric over its seeds, of those that `eligible_runs` admits; of equals it is the one
    that was suggested first.
    """

    analysis: SweepAnalysis
    trials: pd.DataFrame  # rows of the analysis' frame, those of failed trials included

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Rows of `trials`: one per group and seed; none of a group without a finished trial."""
        runs = one_per_seed(eligible_runs(self.trials, self.trials["finished"], ["group"]), ["group"])
        keys = ["group", "configuration"]
        means = runs.groupby(keys, sort=False)[self.analysis.selection_metric].mean()
        if self.analysis.direction(self.analysis.selection_metric) == "min":
            means = -means
        best = means.groupby(level="group", sort=False).idxmax()
        return runs[pd.MultiIndex.from_frame(runs[keys]).isin(list(best))]

    @cached_property
    def groups(self) -> pd.DataFrame:
        """One row per group that has a finished trial, indexed by the group's name.

        Columns: `depth`, `train_fraction`, `assistant_layers` and `retrained` of its best configuration;
        `epochs`, the mean over seeds; `seeds`, those that finished; `missing`, those that failed or have not ended;
        `tuned`, the trials of the search; `configurations`, the distinct ones among them; `is_standard`, as in the
        analysis' frame.
        """
        own = self.runs.groupby("group", sort=False)
        first = ["depth", "train_fraction", "assistant_layers", "retrained", "configuration", "is_standard"]
        groups = own[first].first().assign(epochs=own["epochs"].mean(), seeds=own.size())
        searched = self.trials[~self.trials["retrained"]].groupby("group")["configuration"]
        keys = ["group", "retrained", "configuration"]
        index = pd.MultiIndex.from_frame(groups.reset_index()[keys])
        tried = self.trials.groupby(keys)["seed"].nunique().reindex(index)
        planned = own["seeds"].first().clip(lower=tried.to_numpy())
        groups = groups.assign(
            missing=planned - groups["seeds"],
            tuned=searched.size().reindex(groups.index, fill_value=0),
            configurations=searched.nunique().reindex(groups.index, fill_value=0),
        )
        names = group_names(self.analysis, self.trials)
        return groups.loc[[name for name in names if name in groups.index]]

    @property
    def unfinished(self) -> list[str]:
        """Groups without a finished trial."""
        names = group_names(self.analysis, self.trials)
        return [name for name in names if name not in self.groups.index]

    @cached_property
    def metrics(self) -> list[str]:
        """The task's metrics on the dev split, its main one first."""
        names = (f"dev/{name}" for name in self.analysis.task.metrics)
        return list(dict.fromkeys([self.analysis.metric, *names]))

    @property
    def baseline(self) -> str | None:
        """The first group of standard distillation by the teacher itself."""
        return next(iter(self.groups.index[self.groups["is_standard"]]), None)

    @property
    def has_fractions(self) -> bool:
        """True if the groups were trained on different shares of the training set."""
        return self.groups["train_fraction"].nunique() > 1

    @cached_property
    def best(self) -> dict[str, str | None]:
        """For each metric, the group that is significantly better than every other one."""
        return {
            metric: best_group(
                {name: self.values(name, metric) for name in self.groups.index},
                self.analysis.direction(metric),
            )
            for metric in self.metrics
        }

    def of_group(self, name: str) -> pd.DataFrame:
        """Return the runs of a group."""
        return self.runs[self.runs["group"] == name]

    def values(self, name: str, metric: str) -> pd.Series:
        """Return a group's metric indexed by seed."""
        return by_seed(self.of_group(name), metric)

    def interval(self, name: str, metric: str) -> Interval:
        """Return the mean of a group's metric over seeds, with its 95% interval."""
        return t_interval(self.values(name, metric))

    def difference(self, name: str, other: str, metric: str) -> Interval:
        """Return the mean difference of two groups' metric, paired by seed, with its 95% interval."""
        return paired_t_interval(self.values(name, metric), self.values(other, metric))


@dataclass(frozen=True)
class Curve:
    """Comparisons at each value of one parameter, all other things equal."""

    comparisons: dict[float, Comparison]  # by value of the parameter
    fixed: float  # value that another parameter has in all runs
    is_only_fixed: bool  # whether every finished trial has that value

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs of all comparisons, in the order of the trials' numbers."""
        return pd.concat([comparison.runs for comparison in self.comparisons.values()]).sort_values("number")

    @property
    def baseline(self) -> str | None:
        """The first group that is standard distillation by the teacher itself at every value."""
        is_standard = self.runs.groupby("group", sort=False)["is_standard"].all()
        return next(iter(is_standard.index[is_standard]), None)

    def comparisons_of(self, name: str) -> dict[float, Comparison]:
        """Return the comparisons in which a group has runs, by value."""
        return {value: found for value, found in self.comparisons.items() if len(found.of_group(name))}


def curve_over(analysis: SweepAnalysis, column: str, fixed: str, most_values: int) -> Curve | None:
    """Compare the groups at each value of `column`, `depth` or `train_fraction`, with the value of `fixed` held fixed.

    The fixed value is the one that occurs with most values of `column`; of equals the greatest. None if `column` has a
    single value, or more than `most_values`: then it was searched, not compared.
    """
    finished = analysis.finished_frame
    coverage = finished.groupby(fixed)[column].nunique()
    value = coverage.index[coverage == coverage.max()].max()
    # Failed trials are needed as well: a configuration that lost a seed may not be the best.
    trials = analysis.frame[analysis.frame[fixed] == value]
    searched = trials[~trials["retrained"]]  # a method was retrained at one value alone
    trials = trials if searched.empty else searched
    values = sorted(trials.loc[trials["finished"], column].unique())
    if not 1 < len(values) <= most_values:
        return None
    comparisons = {at: Comparison(analysis, trials[trials[column] == at]) for at in values}
    return Curve(comparisons, value, finished[fixed].nunique() == 1)


@dataclass(frozen=True)
class RegimeCell:
    """The runs of a regime at a depth."""

    runs: pd.DataFrame
    same_configuration: bool  # the runs differ in nothing but their seeds

    def values(self, metric: str) -> list[float]:
        """Return the finite values of a metric."""
        return [value for value in by_seed(self.runs, metric) if math.isfinite(value)]

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric, and the half width of its 95% interval over seeds.

        Where the runs are not seeds of one configuration, the sample's standard deviation is in the half width's place.
        """
        values = self.values(metric)
        interval = t_interval(values)
        if self.same_configuration or len(values) < 2:
            return interval
        return replace(interval, half_width=statistics.stdev(values))


def regime_cells(analysis: SweepAnalysis) -> dict[tuple[int, str], RegimeCell]:
    """Return the finished trials of each depth and regime, sorted by depth.

    Where they are one configuration and some were retrained, these alone are kept.
    """
    cells = {}
    for key, trials in analysis.finished_frame.groupby(["depth", "regime"]):
        same = trials["configuration"].nunique() == 1
        runs = one_per_seed(eligible_runs(trials, trials["finished"], ["method"])) if same else trials
        cells[key] = RegimeCell(runs, same)
    return cells
