"""What the figures of a report show, from sweeps whose numbers are known."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ikd_ray.analysis.model_loader import ModelLoader
from ikd_ray.analysis.pareto import pareto_front
from ikd_ray.analysis.sweep_analysis import IDLE, open_analysis
from ikd_ray.config import make_trial
from ikd_ray.distill.losses import attention_kl
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.errors import UsageError
from ikd_ray.records import read_trials, trial_folder, write_json
from ikd_ray.report import style
from ikd_ray.report.components import Picture, Table
from ikd_ray.report.figures import attention, costs, errors, front, layers, regimes, search
from ikd_ray.storage.remote import SharedStorage
from tests.helpers.sample_sweep import make_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Fourteen trials with weights; nobody changes it."""
    return make_sweep(tmp_path_factory.mktemp("made") / "outputs", trials=14)


@pytest.fixture(scope="module")
def subject(sweep):
    return open_analysis(sweep)


@pytest.fixture
def weights(sweep, subject):
    return ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep)


def pictures(section) -> dict[str, Picture]:
    return {part.name: part for part in section.parts if isinstance(part, Picture)}


def tables(section) -> list[Table]:
    return [part for part in section.parts if isinstance(part, Table)]


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


# The front


def test_the_front_is_drawn_against_each_cost(subject):
    plot = front.plot(subject, {"student/params": 50_000.0})
    buttons = plot.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["parameters", "size", "latency"]
    for button, cost in zip(buttons, front.COSTS, strict=True):
        change, titles = button.args
        assert titles == {"xaxis.title.text": style.UNITS[cost][0]}
        shown = [trace for trace, visible in zip(plot.data, change["visible"], strict=True) if visible]
        trials = [trace for trace in shown if trace.name in style.STYLES]
        found = sorted((x, y) for trace in trials for x, y in zip(trace.x, trace.y, strict=True))
        unit = style.UNITS[cost][1]
        assert found == sorted((t.metrics[cost] / unit, t.metrics["dev/mcc"]) for t in subject.finished)
        steps = next(trace for trace in shown if trace.name == "front of these two")
        best = pareto_front(subject.finished, {cost: "min", "dev/mcc": "max"})
        assert list(steps.y) == sorted(trial.metrics["dev/mcc"] for trial in best)
        assert [trace.name for trace in shown if trace.name == "teacher"] == ["teacher"] * (
            cost == "student/params"
        )
        (ring,) = [trace for trace in shown if trace.name.startswith("baseline")]
        assert list(ring.y) == [subject.baseline.metrics["dev/mcc"]]
    assert [trace.visible for trace in plot.data] == list(buttons[0].args[0]["visible"])
    assert {shape.y0 for shape in plot.layout.shapes} == {0.41, subject.baseline.metrics["dev/mcc"]}


def test_a_trial_under_the_pointer_is_told(subject):
    plot = front.plot(subject, {})
    member = subject.front[0]
    (text,) = [t for trace in plot.data[:5] for t in trace.text or () if t.startswith(f"<b>{member.id}</b>")]
    assert "on the front" in text
    assert f"regime {member.params['regime']}, {len(member.layer_map)} layers" in text
    assert f"temperature {member.params['temperature']:.3g}" in text
    assert "seed" not in text
    told = {t.partition("regime ")[2][:2]: t for trace in plot.data[:5] for t in trace.text or ()}
    assert "internal_weight" in told["id"]
    assert "internal_weight" not in told["kd"]  # which does not read it


def test_the_front_s_table_has_its_numbers(subject):
    section = front.section(subject, {"student/params": 50_000.0})
    (table,) = tables(section)
    (_, others), (heading, members) = table.groups
    assert heading == "on the front"
    assert [row[0] for row in members] == [trial.id for trial in subject.front]
    assert [row[3] for row in members] == [f"{trial.metrics['dev/mcc']:.3f}" for trial in subject.front]
    assert [row[0] for row in others] == ["teacher", f"{subject.baseline.id} (baseline)"]
    assert others[0][4] == "0.05"
    assert (
        f"{subject.best.metrics['dev/mcc']:.3f}; the teacher has 0.410" in pictures(section)["pareto"].caption
    )


def test_the_teacher_s_size_is_its_file_s(weights):
    model = AutoModelForSequenceClassification.from_pretrained(weights.teacher.weights)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert weights.teacher_size() == {"student/params": count, "student/size_mb": 4 * count / 1e6}


# Regimes


def test_regimes_are_compared_at_equal_depth(subject):
    (table,) = tables(regimes.section(subject))
    groups = dict(table.groups)
    assert list(groups) == ["", "1 layer", "2 layers", "3 layers"]
    kd = [t for t in subject.finished if (t.params["regime"], len(t.layer_map)) == ("kd", 1)]
    assert len(kd) == 2
    values = np.array([trial.metrics["dev/mcc"] for trial in kd])
    row = next(row for row in groups["1 layer"] if row[0] == "kd")
    assert row[1] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
    assert row[-1] == "2 trials"
    single = next(row for row in groups["3 layers"] if row[0] == "pid")
    assert single[-1] in ("1", "2 trials")
    assert ("±" in single[1]) == (single[-1] != "1")


def test_spread_over_seeds_is_told_from_spread_over_the_search(subject):
    one, two = subject.finished[0], subject.finished[12]
    other = type(one)(**vars(one) | {"id": "s1", "params": one.params | {"seed": 8}})
    assert regimes.Cell([one, other]).count == "2 seeds"
    assert regimes.Cell([one, two]).count == "2 trials"
    assert regimes.Cell([one]).count == "1"
    assert math.isnan(regimes.Cell([one]).spread("dev/mcc"))


# Layers


def test_losses_by_layer_and_epoch(subject):
    trial = next(t for t in subject.finished if t.params["regime"] == "pid" and len(t.layer_map) == 3)
    dev, trained = layers.series(trial, "dev", "kl"), layers.series(trial, "train", "kl")
    assert dev.shape == trained.shape == (3, len(trial.history))
    assert dev[1, 3] == trial.history[3]["dev/layer_2/kl"]
    assert [bool(np.isfinite(row).any()) for row in trained] == [True] * 3
    assert np.isnan(trained[2, 0])  # the first stage has the first layer's losses alone
    assert layers.stages(trial) == [("1", 1, 2), ("2", 3, 4), ("3", 5, 6), ("C", 7, 8)]


def test_every_member_of_the_front_and_the_best_of_each_regime_have_a_figure(subject):
    section = layers.section(subject)
    assert list(pictures(section)) == [f"layers-{trial.number:04d}" for trial in subject.closely]
    assert {trial.params["regime"] for trial in subject.closely} == {"kd", "id", "pid", "sid"}
    last = subject.front[0].history[-1]["dev/layer_1/kl"]
    assert f"layer 1 {last:.3g}" in section.parts[0].caption


def test_a_trial_of_one_epoch_and_losses_of_nothing_draw(subject):
    trial = subject.finished[0]
    for history in ([{"stage": 1.0, "dev/layer_1/kl": 0.0}], [{"stage": 9.0, "dev/layer_1/cos": 1e-9}]):
        short = type(trial)(**vars(trial) | {"history": history})
        assert size(layers._picture(subject, short).png) > (800, 400)


# Attention


def eager(folder, inputs):
    """Attention probabilities of every layer, as transformers' own code computes them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(**inputs, output_attentions=True).attentions


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_attention_is_that_of_transformers(tmp_path, task):
    sweep = make_sweep(tmp_path / "outputs", trials=3, task=task)
    subject = open_analysis(sweep)
    weights = ModelLoader(SharedStorage(str(sweep.parent)), sweep, subject.sweep)
    texts = ["w1 w2 w3 .", "w9 w4s"][: len(subject.task.text_columns)]
    example = attention.from_texts(subject, weights, texts)
    pairs, answers = attention.look(subject.best, weights, example)
    tokenizer = AutoTokenizer.from_pretrained(weights.teacher.weights)
    inputs = tokenizer(*texts, return_tensors="pt")
    assert example.tokens[0] == "[CLS]"
    assert len(example.tokens) == inputs["input_ids"].shape[1]
    student = eager(weights.student(subject.best).weights, inputs)
    teacher = eager(weights.teacher.weights, inputs)
    assert [(pair.layer, pair.source) for pair in pairs] == list(enumerate(subject.best.layer_map, start=1))
    for pair in pairs:
        mine, theirs = student[pair.layer - 1], teacher[pair.source - 1]
        np.testing.assert_allclose(pair.student, mine[0], atol=1e-5)
        np.testing.assert_allclose(pair.teacher, theirs[0], atol=1e-5)
        for head, kl in enumerate(pair.kl):
            expected = attention_kl(mine[:, [head]], theirs[:, [head]], inputs["attention_mask"])
            assert kl == pytest.approx(float(expected), abs=1e-5)
    assert any(pair.kl.min() > 0.01 for pair in pairs)
    assert set(answers) == {"The teacher", "the student"}


def test_the_default_example_is_of_median_length_and_every_layer_is_drawn(subject, weights):
    example = attention.from_dev(subject, weights)
    assert len(example.tokens) == int(np.sort(weights.dev.lengths)[len(weights.dev) // 2])
    section = attention.section(subject, weights, ())
    shown = pictures(section)
    assert list(shown) == [
        "attention-kl",
        *(f"attention-layer-{n + 1:02d}" for n in range(len(subject.best.layer_map))),
    ]
    pairs, _ = attention.look(subject.best, weights, example)
    assert f"mean {pairs[0].kl.mean():.3f}" in shown["attention-layer-01"].caption
    assert " ".join(example.tokens) in section.words[0]
    assert f"the gold label is {example.gold}" in section.words[0]


@pytest.mark.parametrize(
    ("task", "texts", "told"),
    [
        ("cola", ["one", "two"], "give --sentence once"),
        ("mrpc", ["one"], "give --sentence twice"),
        ("cola", [" "], "nothing in it"),
    ],
)
def test_texts_that_are_no_example(task, texts, told):
    from ikd_ray.tasks import get_task

    with pytest.raises(UsageError, match=told):
        attention.check_texts(get_task(task), texts)


# The search


def test_depth_and_agreement_tell_their_numbers(subject):
    shown = pictures(search.section(subject))
    best = subject.best
    assert f"{best.params['regime']}: " in shown["depth"].caption
    assert f"{len(best.layer_map)} L {best.metrics['dev/mcc']:.3f}" in shown["depth"].caption
    assert f"{best.id} " in shown["agreement"].caption


def test_optuna_s_own_figures(subject):
    shown = pictures(search.section(subject))
    importances, combinations = shown["importances"], shown["combinations"]
    assert sorted(importances.plot.data[0].y) == ["lambda", "regime", "student_layers", "temperature"]
    assert sum(importances.plot.data[0].x) == pytest.approx(1)
    assert importances.plot.data[0].y[-1] == "student_layers"  # of which the metric is made
    assert "Left out: internal_weight" in importances.caption
    axes = list(combinations.plot.layout.xaxis.ticktext)
    assert axes[:2] == ["dev/mcc", "student/params"]
    assert {"internal_weight", "regime", "temperature"} < set(axes)
    assert size(combinations.png)[0] > 900


def test_drawing_with_optuna_leaves_no_state_of_matplotlib(subject):
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    search.section(subject)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_few_trials_and_no_study_are_said_in_words(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=4, weights=False)
    subject = open_analysis(sweep)
    section = search.section(subject)
    assert "The study has 4 complete trials" in section.words[0]
    assert list(pictures(section)) == ["depth", "agreement"]
    (sweep / "study.db").write_bytes(b"no database")
    assert "cannot be read" in search.section(subject).words[0]
    (sweep / "study.db").unlink()
    assert "is not there any more" in search.section(subject).words[0]
    assert not (sweep / "study.db").exists()


# Errors


def test_errors_are_those_of_the_models_own_forward_passes(subject, weights):
    section = errors.section(subject, weights)
    tokenizer = AutoTokenizer.from_pretrained(weights.teacher.weights)
    wrong = {}
    for name, folder in [("teacher", weights.teacher.weights)] + [
        (trial.id, weights.student(trial).weights) for trial in subject.closely
    ]:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        values, offsets = weights.dev.input_ids.values, weights.dev.input_ids.offsets
        ids = [values[start:end].tolist() for start, end in pairwise(offsets)]
        inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        with torch.inference_mode():
            wrong[name] = model(**inputs).logits.argmax(1).numpy() != weights.dev.labels
    (table,) = tables(section)
    for trial, row in zip(subject.closely, table.groups[0][1], strict=True):
        expected = errors.overlap(wrong[trial.id], wrong["teacher"])
        assert row[1:] == (
            str(expected.shared),
            f"{100 * expected.inherited:.0f} %",
            str(expected.own),
            str(expected.mended),
        )
    first = subject.front[0].id
    value = errors.jaccard(wrong["teacher"], wrong[first])
    assert f"teacher and {first} {value:.2f}" in pictures(section)["errors-jaccard"].caption


# Costs


def test_costs_add_up_to_what_the_record_says(subject):
    taker = subject.finished[2]
    found = costs.cost(taker)
    assert found.taken == 9.0
    assert found.training == 9.0 * (len(taker.history) - 1)
    assert found.spent == taker.metrics["time/spent_s"]
    section = costs.section(subject)
    (table,) = tables(section)
    rows = table.groups[0][1]
    assert [int(row[1]) == int(row[2]) + int(row[3]) for row in rows] == [True, True]
    assert "of work saved" in section.words[0]


def test_two_hundred_trials_are_still_legible(tmp_path):
    subject = open_analysis(make_sweep(tmp_path / "outputs", trials=70, weights=False))
    (picture,) = pictures(costs.section(subject)).values()
    assert "The 60 longest of 70 trials are shown" in picture.caption
    assert size(picture.png)[1] > 60 * 25  # pixels a bar


# The sweep


def test_a_sweep_without_a_usable_trial_is_refused(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=2, weights=False)
    for trial in read_trials(sweep):
        file = trial_folder(sweep, trial.id) / "trial.json"
        write_json(file, vars(trial) | {"metrics": trial.metrics | {"dev/mcc": math.nan}})
    with pytest.raises(UsageError, match="no trial of it has finished with a dev/mcc that is a number"):
        open_analysis(sweep)


@pytest.mark.parametrize("regime", ["hard", "kd", "id"])
def test_what_a_regime_is_said_not_to_read_changes_none_of_its_stages(regime):
    other = {
        "temperature": 5.0,
        "lambda": 0.7,
        "internal_losses": "kl",
        "internal_weight": 3.0,
        "train": "upto",
    }
    other |= {"soft_labels": "always", "epochs_per_layer": 4, "cosine_threshold": 0.3, "top_trains": "head"}
    usual = {"regime": regime, "student_layers": 2}
    stages = REGIMES[regime](make_trial(usual))
    idle = {name: value for name, value in other.items() if name in IDLE[regime]}
    found = REGIMES[regime](make_trial(usual | idle))
    ignored = {"temperature": 1.0} if regime == "hard" else {}  # softens labels that are not on
    assert [replace(s, **ignored) for s in found] == [replace(s, **ignored) for s in stages]
    for name in other.keys() - idle.keys():
        assert REGIMES[regime](make_trial(usual | {name: other[name]})) != stages, name
