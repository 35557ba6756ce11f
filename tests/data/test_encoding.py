"""Pairs of long texts are tokenized as transformers does it, in memory and time that grow with their length."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ikd_ray.data import encoding
from ikd_ray.data.encoding import encode_texts
from tests.helpers.tiny_models import write_teacher

TEXT = st.lists(st.sampled_from(["the", "dog", "barks!", "наука", "猫", "🙂", "x" * 30]), max_size=40).map(
    " ".join
)


def byte_level() -> Tokenizer:
    """Return a tokenizer as RoBERTa has it: pairs are <s> a </s></s> b </s>."""
    found = Tokenizer(BPE())
    found.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=ByteLevel.alphabet(), vocab_size=300
    )
    found.train_from_iterator(["the dog barks!", "the cat"], trainer)
    found.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return found


def unigram() -> Tokenizer:
    """Return a tokenizer with SentencePiece's words, which adds nothing in front of a pair."""
    found = Tokenizer(
        Unigram([("<unk>", 0.0), ("\u2581", -2.0), *((c, -3.0) for c in "thedogbarks!"), ("the", -2.5)], 0)
    )
    found.pre_tokenizer = Metaspace()
    found.post_processor = TemplateProcessing(
        single="$A <unk>", pair="$A <unk> $B:1 <unk>:1", special_tokens=[("<unk>", 0)]
    )
    return found


@pytest.fixture(scope="module", params=["bert", byte_level, unigram])
def tokenizer(request, tmp_path_factory):
    if callable(request.param):
        return PreTrainedTokenizerFast(tokenizer_object=request.param(), pad_token="<pad>")
    folder = tmp_path_factory.mktemp("bert")
    write_teacher(folder / "teacher", 1)
    return AutoTokenizer.from_pretrained(folder / "teacher")


@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), max_length=st.integers(8, 40))
def test_long_and_short_pairs_have_the_ids_of_the_tokenizer(tokenizer, side, pairs, max_length):
    texts, others = map(list, zip(*pairs, strict=True))
    tokenizer.truncation_side = side
    expected = tokenizer(texts, others, truncation=True, max_length=max_length, return_token_type_ids=True)
    for limit in (0, 16):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoding, "MAX_COMBINATIONS", limit)
            found = encode_texts(tokenizer, texts, others, max_length)
        assert found.input_ids == expected["input_ids"]
        assert found.token_type_ids == expected["token_type_ids"]


def test_a_vocabulary_without_the_letter_is_left_to_its_tokenizer():
    plain = Tokenizer(BPE(vocab={"<pad>": 0, "b": 1}, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>")
    assert encode_texts(tokenizer, ["ab" * 500], ["b" * 500], 8).input_ids == [[1] * 8]


def test_a_pair_of_very_long_texts_takes_no_longer_than_its_texts(tokenizer):
    """Transformers' tokenizers take seconds, and gigabytes, for their square."""
    text = "the dog barks! " * 10_000
    started = time.process_time()
    found = encode_texts(tokenizer, [text, "the dog"], [text, "barks!"], 32)
    assert time.process_time() - started < 2
    assert [len(found.input_ids[0]), len(found.token_type_ids[0])] == [32, 32]
    assert found.input_ids[1] == tokenizer("the dog", "barks!")["input_ids"]
