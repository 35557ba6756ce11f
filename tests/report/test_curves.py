"""The report's curves over depth and data size: means over seeds, their bands, and the tables beside them."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.text import Text
from scipy import stats

from ikd_ray.analysis.sweep_analysis import open_analysis
from ikd_ray.report.sections.curves import DATA_SIZE, DEPTH, curve_parts
from ikd_ray.report.sections.search_results import search_section
from tests.helpers.sample_comparison import (
    METHODS,
    make_comparison,
    mean_and_interval,
    paired_difference,
)
from tests.helpers.sample_records import edit_trial_records


def test_the_depth_curve_has_means_and_bands_for_each_method(tmp_path):
    varied = [{"student_layers": n} for n in (1, 2, 3)]
    few = {name: METHODS[name] for name in ("KD", "ID", "SID")}
    analysis = open_analysis(make_comparison(tmp_path / "outputs", few, seeds=3, varied=varied))
    picture, table = curve_parts(analysis, DEPTH)
    assert list(table.header) == ["method", "1 layer", "2 layers", "3 layers"]
    groups = dict(table.groups)
    paired = "dev/mcc, difference to KD, paired by seed"
    assert list(groups) == ["dev/mcc", paired, "attention KL (nats)"]
    assert [row[0] for row in groups[paired]] == ["ID", "SID"]
    for method, *cells in groups[paired]:
        for layers, cell in enumerate(cells, 1):
            expected = paired_difference(analysis, method, "KD", lambda t, n=layers: len(t.layer_map) == n)
            assert cell == expected
    for method, *cells in groups["dev/mcc"]:
        for layers, cell in enumerate(cells, 1):
            trials = [t for t in analysis.finished if t.method == method and len(t.layer_map) == layers]
            assert cell == mean_and_interval([t.metrics["dev/mcc"] for t in trials])
    for axes, metric in zip(picture.views[0].wide.axes, ("dev/mcc", "dev/attention_kl"), strict=True):
        bands = [band for band in axes.collections if isinstance(band, PolyCollection)]
        lines = {line.get_label(): line for line in axes.lines}
        for band, method in zip(bands, few, strict=True):
            of_method = [t for t in analysis.finished if t.method == method and len(t.layer_map) == 2]
            values = [trial.metrics[metric] for trial in of_method]
            low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            heights = [y for x, y in band.get_paths()[0].vertices if x == 2]
            assert (min(heights), max(heights)) == pytest.approx((low, high))
            assert lines[method].get_ydata()[1] == pytest.approx(np.mean(values))


def test_the_data_size_curve_is_logarithmic_in_percent(tmp_path):
    varied = [{"student_layers": 2, "train_fraction": part} for part in (0.01, 0.1, 1.0)]
    varied += [{"student_layers": 1, "train_fraction": 1.0}]
    few = {name: METHODS[name] for name in ("KD", "PID")}
    analysis = open_analysis(make_comparison(tmp_path / "outputs", few, seeds=3, varied=varied))
    picture, table = curve_parts(analysis, DATA_SIZE)
    assert list(table.header) == ["method", "1 %", "10 %", "100 %"]
    assert table.caption.endswith("All with 2 layers.")
    assert picture.name == table.name == "data-size"
    figure = picture.views[0].wide
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "10", "100"]
    _, by_depth = curve_parts(analysis, DEPTH)
    assert by_depth.caption.endswith("All with 100 % of the training set.")
    full = [t for t in analysis.finished if t.method == "PID" and t.params["train_fraction"] == 1.0]
    two = [t.metrics["dev/mcc"] for t in full if len(t.layer_map) == 2]
    assert dict(by_depth.groups)["dev/mcc"][1][2] == mean_and_interval(two)


def test_a_configuration_that_lost_seeds_is_not_the_best(tmp_path):
    varied = [{"student_layers": n, "learning_rate": rate} for n in (1, 2) for rate in (1e-4, 4e-4)]
    sweep = make_comparison(tmp_path / "outputs", {"KD": METHODS["KD"]}, seeds=3, varied=varied)

    def change(record):
        if record["params"]["learning_rate"] == 4e-4:
            record["metrics"]["dev/mcc"] = 0.9
            if record["params"]["seed"]:
                record.update(status="failed", metrics={}, reason="loss became nan")

    edit_trial_records(sweep, change)
    analysis = open_analysis(sweep)
    _, table = curve_parts(analysis, DEPTH)
    complete = [t for t in analysis.finished if t.params["learning_rate"] == 1e-4]
    for layers in (1, 2):
        values = [t.metrics["dev/mcc"] for t in complete if len(t.layer_map) == layers]
        assert dict(table.groups)["dev/mcc"][0][layers] == mean_and_interval(values)


def test_a_parameter_that_does_not_vary_has_no_curve(tmp_path):
    analysis = open_analysis(make_comparison(tmp_path / "outputs", {"KD": METHODS["KD"]}, seeds=2))
    assert curve_parts(analysis, DEPTH) == curve_parts(analysis, DATA_SIZE) == []
    assert [part.name for part in search_section(analysis).parts] == ["agreement"]


def test_a_name_is_drawn_as_it_is_written(tmp_path):
    names = [r"$\nothing$", "_first", "a_b^c $1 and $2"]
    methods = dict(zip(names, list(METHODS.values())[:3], strict=True))
    varied = [{"student_layers": n} for n in (1, 2)]
    analysis = open_analysis(make_comparison(tmp_path / "outputs", methods, seeds=2, varied=varied))
    figure = curve_parts(analysis, DEPTH)[0].views[0].wide
    texts = figure.legends[0].get_texts()
    assert {text.get_text().strip() for text in texts} >= {*names}
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
