"""The sections of a report, on sweeps whose numbers are known."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import optuna
import pytest
import torch
from matplotlib import pyplot
from optuna.importance import FanovaImportanceEvaluator
from sklearn.metrics import jaccard_score
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ikd_ray.analysis.attention_maps import (
    compare_attention,
    example_from_dev,
    example_from_texts,
    validate_texts,
)
from ikd_ray.analysis.comparison import RegimeCell
from ikd_ray.analysis.dataframes import epochs_frame, trials_frame
from ikd_ray.analysis.error_overlap import ErrorOverlap, error_overlap
from ikd_ray.analysis.sweep_analysis import UNUSED_PARAMS, open_analysis
from ikd_ray.analysis.training_costs import trial_costs
from ikd_ray.config import make_trial
from ikd_ray.distill.losses import attention_kl
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.errors import UnavailableError, UsageError
from ikd_ray.records import STUDY_FILE, trial_folder
from ikd_ray.report.components import Picture
from ikd_ray.report.sections import optuna_plots
from ikd_ray.report.sections.attention import attention_section
from ikd_ray.report.sections.classes import classes_section
from ikd_ray.report.sections.costs import costs_section
from ikd_ray.report.sections.errors import errors_section
from ikd_ray.report.sections.layers import layer_losses, layers_picture, layers_section, stage_spans
from ikd_ray.report.sections.mistakes import mistakes_section
from ikd_ray.report.sections.regimes import regimes_section
from ikd_ray.report.sections.search_results import search_section
from ikd_ray.storage import store
from ikd_ray.tasks import get_task
from tests.helpers.report_parts import pictures, table
from tests.helpers.sample_records import edit_trial_records
from tests.helpers.sample_sweep import make_sweep, open_sweep


@pytest.fixture(scope="module")
def search(analysis):
    return search_section(analysis)


def png_size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


# Regimes


def test_regimes_are_compared_at_equal_depth(analysis):
    groups = dict(table(regimes_section(analysis)).groups)
    assert list(groups) == ["", "1 layer", "2 layers", "3 layers"]
    kd = [t for t in analysis.finished if (t.params["regime"], len(t.layer_map)) == ("kd", 1)]
    assert len(kd) == 2
    values = np.array([trial.metrics["dev/mcc"] for trial in kd])
    row = next(row for row in groups["1 layer"] if row[0] == "kd")
    assert row[1] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
    assert row[-1] == "2 trials"
    single = next(row for row in groups["3 layers"] if row[0] == "pid")
    assert single[-1] == "1"
    assert "±" not in single[1]


def test_a_single_trial_has_no_spread(analysis):
    cell = RegimeCell(trials_frame(analysis.finished[:1]), True)
    for one in (cell, replace(cell, same_configuration=False)):
        assert math.isnan(one.interval("dev/mcc").half_width)


# Layers


def test_losses_by_layer_and_epoch(analysis):
    trial = next(t for t in analysis.finished if t.params["regime"] == "pid" and len(t.layer_map) == 3)
    epochs = epochs_frame([trial])
    dev, train = layer_losses(epochs, 3, "dev", "kl"), layer_losses(epochs, 3, "train", "kl")
    assert dev.shape == train.shape == (3, len(trial.history))
    assert dev[1, 3] == trial.history[3]["dev/layer_2/kl"]
    assert [bool(np.isfinite(row).any()) for row in train] == [True] * 3
    assert np.isnan(train[2, 0])  # the first stage has the first layer's losses alone
    assert stage_spans(epochs) == [("1", 1, 2), ("2", 3, 4), ("3", 5, 6), ("C", 7, 8)]


def test_members_of_the_front_and_the_best_of_each_regime_have_a_figure(analysis):
    section = layers_section(analysis)
    assert list(pictures(section)) == [f"layers-{trial.number:04d}" for trial in analysis.highlighted]
    assert {trial.params["regime"] for trial in analysis.highlighted} == {"kd", "id", "pid", "sid"}
    last = analysis.front[0].history[-1]["dev/layer_1/kl"]
    assert f"layer 1 {last:.3g}" in section.parts[0].caption


@pytest.mark.parametrize(
    "history", [[{"stage": 1.0, "dev/layer_1/kl": 0.0}], [{"stage": 9.0, "dev/layer_1/cos": 1e-9}]]
)
def test_one_epoch_and_losses_of_zero_are_drawn(analysis, history):
    short = replace(analysis.finished[0], history=history)
    assert png_size(layers_picture(analysis, short).png) > (800, 400)


# Attention


def eager_attention(folder, inputs):
    """Return the attention probabilities of every layer as transformers' own code computes them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(**inputs, output_attentions=True).attentions


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_attention_is_that_of_transformers(tmp_path, task):
    analysis, loader = open_sweep(make_sweep(tmp_path / "outputs", trials=3, task=task))
    texts = ["w1 w2 w3 .", "w9 w4s"][: len(analysis.task.text_columns)]
    example = example_from_texts(analysis, loader, texts)
    layers, *_ = compare_attention(analysis.best, loader, example)
    inputs = AutoTokenizer.from_pretrained(loader.teacher.weights)(*texts, return_tensors="pt")
    assert example.tokens[0] == "[CLS]"
    assert len(example.tokens) == inputs["input_ids"].shape[1]
    student = eager_attention(loader.student(analysis.best).weights, inputs)
    teacher = eager_attention(loader.teacher.weights, inputs)
    matched = list(enumerate(analysis.best.layer_map, start=1))
    assert [(layer.layer, layer.teacher_layer) for layer in layers] == matched
    for layer in layers:
        of_student, of_teacher = student[layer.layer - 1], teacher[layer.teacher_layer - 1]
        np.testing.assert_allclose(layer.student, of_student[0], atol=1e-5)
        np.testing.assert_allclose(layer.teacher, of_teacher[0], atol=1e-5)
        for head, kl in enumerate(layer.kl):
            expected = attention_kl(of_student[:, [head]], of_teacher[:, [head]], inputs["attention_mask"])
            assert kl == pytest.approx(float(expected), abs=1e-5)
    assert any(layer.kl.min() > 0.01 for layer in layers)


def test_by_default_the_dev_example_of_median_length_is_drawn(analysis, loader):
    example = example_from_dev(analysis, loader)
    assert len(example.tokens) == int(np.sort(loader.dev.lengths)[len(loader.dev) // 2])
    section = attention_section(analysis, loader, ())
    shown = pictures(section)
    maps = [f"attention-layer-{layer + 1:02d}" for layer in range(len(analysis.best.layer_map))]
    assert list(shown) == ["attention-kl", *maps]
    assert [part.kind for part in section.parts] == ["picture", "fold"]  # the maps are folded away
    assert section.dev_rows == {example.row}
    layers, *_ = compare_attention(analysis.best, loader, example)
    assert f"mean {layers[0].kl.mean():.3f}" in shown["attention-layer-01"].caption
    assert " ".join(example.tokens) in section.paragraphs[0]
    assert f"the gold label is {example.gold}" in section.paragraphs[0]


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        ("cola", ["one", "two"], r"is one sentence: give --sentence once \(got 2\)"),
        ("mrpc", ["one"], "give --sentence twice"),
        ("cola", [" "], "nothing in it"),
    ],
)
def test_texts_that_are_no_example_are_refused(task, texts, message):
    with pytest.raises(UsageError, match=message):
        validate_texts(get_task(task), texts)


def test_sentence_without_a_token_is_refused(analysis, loader, monkeypatch):
    tokenizer = loader.tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1")
    monkeypatch.setattr(loader, "tokenizer", lambda: tokenizer)
    with pytest.raises(
        UsageError, match="--sentence: the tokenizer returns no tokens for it; give another text"
    ):
        example_from_texts(analysis, loader, ["\u200b"])


# The search


def test_the_captions_of_depth_and_agreement_have_their_numbers(analysis, search):
    shown, best = pictures(search), analysis.best
    assert f"{best.params['regime']}: " in shown["depth"].alt
    assert f"{len(best.layer_map)} L {best.metrics['dev/mcc']:.3f}" in shown["depth"].alt
    assert f"{best.id} " in shown["agreement"].alt


def bars(picture: Picture) -> tuple[list[str], list[float]]:
    """Return the names of horizontal bars, from the top, and their lengths."""
    (axes,) = picture.views[0].wide.axes
    return [text.get_text() for text in axes.get_yticklabels()], [bar.get_width() for bar in axes.patches]


def test_optuna_draws_importances_and_parallel_coordinates(search):
    importances, combinations = (pictures(search)[name] for name in ("importances", "combinations"))
    names, shares = bars(importances)
    assert sorted(names) == ["lambda", "regime", "student_layers", "temperature"]
    assert sum(shares) == pytest.approx(1)
    assert names[0] == "student_layers"  # of which the metric is made
    assert "Left out: internal_weight" in importances.caption
    axes = [text.get_text() for text in combinations.views[0].wide.axes[0].get_xticklabels()]
    assert axes[:2] == ["dev/mcc", "student/params"]
    assert {"internal_weight", "regime", "temperature"} < set(axes)
    assert png_size(combinations.png)[0] > 900


def test_importances_of_many_trials_are_computed_once_from_some_of_them(analysis, monkeypatch):
    """The time of fANOVA grows with the square of their number."""
    monkeypatch.setattr(optuna_plots, "MAX_FOREST", 10)
    evaluate, studies = FanovaImportanceEvaluator.evaluate, []
    monkeypatch.setattr(
        FanovaImportanceEvaluator,
        "evaluate",
        lambda self, study, **options: studies.append(study) or evaluate(self, study, **options),
    )
    study = optuna_plots.open_study(analysis)
    picture = optuna_plots.importances_picture(analysis, study)
    [few] = studies
    numbers = [trial.user_attrs["number"] for trial in few.trials]
    assert len(numbers) == 10
    assert (numbers[0], numbers[-1]) == (0, len(analysis.trials) - 1)
    assert f"over 10 of {len(analysis.trials)} trials, evenly spaced: " in picture.caption


def test_combinations_of_trials_with_more_pareto_ranks_than_colors(analysis):
    """Students of one size: each trial has a rank of its own, and Optuna draws at most 256."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    distributions = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study.add_trials(
        optuna.trial.create_trial(
            params={"x": number / 300}, distributions=distributions, values=[-abs(number - 150.4), 1.0]
        )
        for number in range(300)
    )
    caption = optuna_plots.combinations_picture(analysis, study).caption
    best = study.best_trials[0]
    few = optuna_plots._thin_out(study, 250, with_front=True)
    assert few.best_trials[0].params == best.params, "the front is shown"
    assert f"one of {len(few.trials)} of 300 trials, evenly spaced and the front, " in caption
    assert optuna_plots._thin_out(study, 300) is study


def test_importances_are_those_of_each_trials_own_metric_where_others_failed(tmp_path):
    """The complete trials are not numbered as in the sweep."""
    sweep = make_sweep(tmp_path / "outputs", trials=24, weights=False)
    analysis = open_analysis(sweep)
    expected = optuna_plots.importances_picture(analysis, optuna_plots.open_study(analysis))
    stored = optuna.load_study(study_name=sweep.name, storage=f"sqlite:///{sweep / STUDY_FILE}").trials
    (sweep / STUDY_FILE).unlink()
    study = optuna.create_study(
        study_name=sweep.name, storage=f"sqlite:///{sweep / STUDY_FILE}", directions=["maximize", "minimize"]
    )
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
    study.add_trials(stored)
    shifted = [
        replace(trial, id=f"t{trial.number + 1:03d}", number=trial.number + 1) for trial in analysis.finished
    ]
    analysis = replace(analysis, trials=shifted, finished=shifted)
    found = optuna_plots.importances_picture(analysis, optuna_plots.open_study(analysis))
    assert bars(found) == bars(expected)


def test_optunas_drawing_leaves_matplotlibs_global_state_alone(analysis):
    before = dict(matplotlib.rcParams)
    search_section(analysis)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_a_short_an_unreadable_and_a_missing_study_are_named(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=4, weights=False)
    analysis = open_analysis(sweep)
    section = search_section(analysis)
    assert "The study has 4 complete trials" in section.paragraphs[0]
    assert list(pictures(section)) == ["depth", "agreement"]
    (sweep / "study.db").write_bytes(b"no database")
    assert "cannot be read" in search_section(analysis).paragraphs[0]
    (sweep / "study.db").unlink()
    assert "is not there any more" in search_section(analysis).paragraphs[0]
    assert not (sweep / "study.db").exists()


# Errors


def test_overlap_of_errors():
    student, teacher = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    overlap = error_overlap(student, teacher)
    assert overlap == ErrorOverlap(both=2, student_only=1, teacher_only=1)
    assert overlap.shared_fraction == pytest.approx(2 / 3)
    none = np.zeros(5, bool)
    assert error_overlap(none, none).shared_fraction == 0.0


def test_errors_are_those_of_the_models_own_forward_passes(analysis, loader):
    section = errors_section(analysis, loader)
    tokenizer = AutoTokenizer.from_pretrained(loader.teacher.weights)
    values, offsets = loader.dev.input_ids.values, loader.dev.input_ids.offsets
    ids = [values[start:end].tolist() for start, end in pairwise(offsets)]
    inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    errors = {}
    for model in (loader.teacher, *map(loader.student, analysis.highlighted)):
        network = AutoModelForSequenceClassification.from_pretrained(model.weights).eval()
        with torch.inference_mode():
            errors[model.name] = network(**inputs).logits.argmax(1).numpy() != loader.dev.labels
    teacher = errors["the teacher"]
    for trial, row in zip(analysis.highlighted, table(section).groups[0][1], strict=True):
        overlap = error_overlap(errors[f"the student of {trial.id}"], teacher)
        both, share = str(overlap.both), f"{100 * overlap.shared_fraction:.0f} %"
        assert row[1:] == (both, share, str(overlap.student_only), str(overlap.teacher_only))
    first = analysis.front[0].id
    index = jaccard_score(teacher, errors[f"the student of {first}"])
    assert f"teacher and {first} {index:.2f}" in pictures(section)["errors-jaccard"].alt


def test_models_without_errors_have_a_jaccard_index_of_one(analysis, loader, monkeypatch):
    labels = loader.dev.labels
    monkeypatch.setattr(loader, "logits", lambda model: np.eye(2)[labels])
    caption = pictures(errors_section(analysis, loader))["errors-jaccard"].alt
    assert f"teacher and {analysis.front[0].id} 1.00" in caption


def test_predictions_are_computed_once_for_the_same_weights(tmp_path):
    messages: list[str] = []
    analysis, loader = open_sweep(make_sweep(tmp_path / "outputs", trials=1), messages.append)
    student = loader.student(analysis.best)
    first = loader.logits(student)
    assert np.array_equal(loader.logits(student), first)
    assert messages == [f"predictions of the student of {analysis.best.id} on 20 dev examples"]
    assert not np.array_equal(loader.logits(loader.teacher), first)
    assert len(messages) == 2


def test_missing_and_damaged_files_are_named(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=3)
    analysis, loader = open_sweep(sweep)
    (trial_folder(sweep, analysis.best.id) / "student" / "model.safetensors").write_bytes(b"other")
    for make in (errors_section, classes_section, mistakes_section):
        assert f"The student of {analysis.best.id} is damaged" in make(analysis, loader).paragraphs[1]
    with pytest.raises(UnavailableError, match="is damaged"):
        attention_section(analysis, loader, ())
    store.discard(sweep.parent / "cache" / "tokens" / loader.data.key)
    for make in (errors_section, classes_section, mistakes_section):
        with pytest.raises(UnavailableError, match="tokenized dev set is not there any more"):
            make(*open_sweep(sweep))


def test_a_regression_task_has_no_errors(tmp_path):
    analysis, loader = open_sweep(make_sweep(tmp_path / "outputs", trials=1, task="stsb"))
    with pytest.raises(UnavailableError, match="regression"):
        errors_section(analysis, loader)
    assert "The teacher says" in attention_section(analysis, loader, ()).paragraphs[0]


# Costs


def test_costs_add_up_to_the_recorded_time(analysis):
    trial = analysis.finished[2]
    costs = trial_costs(analysis.finished).loc[trial.id]
    assert costs["reused"] == 9.0
    assert costs["training"] == 9.0 * (len(trial.history) - 1)
    assert costs["spent"] == trial.metrics["time/spent_s"]
    section = costs_section(analysis)
    rows = table(section).groups[0][1]
    assert [int(row[1]) == int(row[2]) + int(row[3]) for row in rows] == [True, True]
    assert "of work saved" in section.paragraphs[0]


def test_of_many_trials_the_longest_are_drawn(tmp_path):
    analysis = open_analysis(make_sweep(tmp_path / "outputs", trials=3, weights=False))
    many = [replace(analysis.finished[n % 3], id=f"t{n}", number=n) for n in range(70)]
    (picture,) = pictures(costs_section(replace(analysis, finished=many))).values()
    assert "The 60 longest of 70 trials are shown" in picture.caption
    assert png_size(picture.png)[1] > 60 * 25  # pixels a bar


# The sweep


def test_a_sweep_without_a_usable_trial_is_refused(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=2, weights=False)
    edit_trial_records(sweep, lambda record: record["metrics"].update({"dev/mcc": math.nan}))
    with pytest.raises(UsageError, match="no trial of it has finished with a dev/mcc that is a number"):
        open_analysis(sweep)


@pytest.mark.parametrize("regime", ["hard", "kd", "id"])
def test_unused_parameters_change_no_stage_of_their_regime(regime):
    other = {
        "temperature": 5.0,
        "lambda": 0.7,
        "internal_losses": "kl",
        "internal_weight": 3.0,
        "train": "upto",
        "soft_labels": "always",
        "epochs_per_layer": 4,
        "cosine_threshold": 0.3,
        "top_trains": "head",
    }
    usual = {"regime": regime, "student_layers": 2}
    stages = REGIMES[regime](make_trial(usual))
    unused = {name: value for name, value in other.items() if name in UNUSED_PARAMS[regime]}
    changed = REGIMES[regime](make_trial(usual | unused))
    ignored = {"temperature": 1.0} if regime == "hard" else {}  # it has no soft labels to soften
    assert [replace(s, **ignored) for s in changed] == [replace(s, **ignored) for s in stages]
    for name in other.keys() - unused.keys():
        assert REGIMES[regime](make_trial(usual | {name: other[name]})) != stages, name
