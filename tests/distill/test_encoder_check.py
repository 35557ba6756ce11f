"""The comparison of encoders with their models' own forward pass, which every teacher goes through."""

from __future__ import annotations

import pytest
from sentencepiece import SentencePieceTrainer

from ikd_ray.distill import encoder, teacher
from ikd_ray.distill.cls_pass import CLS_FAMILIES
from ikd_ray.distill.encoder_check import check_students, checked_encoder
from ikd_ray.distill.families import FAMILIES
from ikd_ray.distill.model_pass import ModelPass
from ikd_ray.distill.processor import HAS_ONEDNN
from ikd_ray.distill.student import build_student
from ikd_ray.errors import UsageError
from ikd_ray.tasks import get_task
from tests.helpers.tiny_models import make_classifier, write_teacher

TOKENS = 60


def check(model, tokens=TOKENS):
    found = checked_encoder(model, "given", model.config.pad_token_id, tokens)
    check_students(found, "given", model.config.pad_token_id, tokens)
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 5])
def test_every_family_is_run_exactly(family, layers):
    found = check(make_classifier(family, layers, labels=3))
    assert len(found.layers) == layers
    assert not found.model.training


@pytest.mark.parametrize(("pooling", "cls_only"), [("cls", True), ("mean", False)])
def test_the_head_reads_what_its_model_says(pooling, cls_only):
    found = check(make_classifier("modernbert", settings={"classifier_pooling": pooling}))
    assert found.reads_cls_only is cls_only


def test_a_pass_that_is_not_the_models_own_is_refused(monkeypatch):
    """As BERT's passes would be for a family with its norms before attention."""
    monkeypatch.setattr(encoder, "CLS_FAMILIES", (*CLS_FAMILIES, "roberta-prelayernorm"))
    with pytest.raises(
        UsageError, match=r"--teacher given: its logits differ by [0-9.]+ from those of its own"
    ):
        check(make_classifier("roberta-prelayernorm"))


@pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN all linear layers are PyTorch's")
def test_a_pass_that_cannot_be_trained_is_refused(monkeypatch):
    """DeBERTa changes views of its linear layers' outputs in place."""
    monkeypatch.setattr(encoder, "ONEDNN", HAS_ONEDNN)
    monkeypatch.setattr(encoder, "IN_PLACE_FAMILIES", ())
    with pytest.raises(
        UsageError, match=r"a 'deberta' model like this one cannot teach: it cannot be trained"
    ):
        check(make_classifier("deberta"))


@pytest.mark.parametrize("difference", [r"[0-9.]+", "inf"])
def test_a_pass_with_other_gradients_is_refused(difference, monkeypatch):
    model = make_classifier("modernbert")
    weight = model.get_parameter("model.layers.1.mlp.Wo.weight")
    original = ModelPass.forward

    def change_gradient(*args):
        if difference == "inf":
            weight.requires_grad_(False)
        elif weight.requires_grad:
            weight.register_hook(lambda gradient: 1.001 * gradient)
        return original(*args)

    monkeypatch.setattr(ModelPass, "forward", change_gradient)
    message = rf"its gradients of model.layers.1.mlp.Wo.weight differ by {difference} from .* \(a step of training\)"
    with pytest.raises(UsageError, match=message):
        check(model)


def test_a_student_that_transformers_builds_otherwise_is_refused(monkeypatch):
    """As one of ModernBERT would be whose first layer kept a norm."""
    model = make_classifier("modernbert")
    monkeypatch.setattr("ikd_ray.distill.student._fit_to_layers", forget_norm)
    with pytest.raises(UsageError, match=r"its logits differ by .* \(a student that was saved and loaded\)"):
        check(model)


def forget_norm(config, layers, matched):
    config.num_hidden_layers = len(layers)
    config.layer_types = [config.layer_types[number - 1] for number in matched]


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("bert", {"is_decoder": True}, "causal"),
        ("albert", {}, "no list of its 4 layers"),
        ("xlm", {}, "4 lists of 4 modules"),
        ("fnet", {}, "no attention"),
    ],
)
def test_models_without_layers_and_attention_of_their_own_are_refused(family, settings, reason):
    with pytest.raises(UsageError, match=f"a '{family}' model like this one cannot teach: .*{reason}"):
        check(make_classifier(family, settings=settings))


def test_students_of_local_and_global_layers_are_matched_with_their_kind():
    whole = check(make_classifier("modernbert", 6))
    kinds = whole.config.layer_types
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention"] * 2
    for init in ("mapped", "first"):
        student = build_student(whole, 4, init)
        assert student.config.layer_types == [kinds[layer - 1] for layer in (2, 3, 5, 6)]
        assert [layer.attention_type for layer in student.layers] == student.config.layer_types


def test_a_sentencepiece_model_is_read_without_a_tokenizer_file(tmp_path):
    """As DeBERTa v3's on the hub have it."""
    write_teacher(tmp_path, family="deberta-v2", vocab_size=96)
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(UsageError, match="tokenizer"):
        teacher.find_teacher(str(tmp_path), get_task("cola"))
    sentences = iter(f"the quick brown fox {number} jumps over {number % 52} dogs" for number in range(500))
    pieces = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    options = {f"{name}_id": number for number, name in enumerate(pieces)}
    options |= {f"{name}_piece": piece for name, piece in pieces.items()}
    with (tmp_path / "spm.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=file, vocab_size=80, minloglevel=2, **options
        )
    source = teacher.find_teacher(str(tmp_path), get_task("cola"))
    ids = teacher.load_tokenizer(source)("the quick fox")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert len(ids) > 4


def test_feed_forward_chunks_are_not_made(tmp_path):
    """They fit some lengths only, and change no number."""
    write_teacher(tmp_path, chunk_size_feed_forward=7)
    task = get_task("cola")
    source = teacher.find_teacher(str(tmp_path), task)
    loaded = teacher.load_source(source, task, seed=0)
    assert loaded.config.chunk_size_feed_forward == 0
