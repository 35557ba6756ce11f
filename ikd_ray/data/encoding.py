"""Token ids of texts and pairs of texts, cut to a length.

Fast tokenizers keep what they cut off a pair as all combinations of the parts of both texts, which for two texts of
5,000 tokens takes gigabytes. Pairs of long texts are therefore tokenized one text at a time, and put together here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_COMBINATIONS = 16
"""Combinations of parts up to which a pair is left to the tokenizer."""


class EncodedTexts(NamedTuple):
    """Token ids and token type ids of texts, or pairs of texts, with special tokens."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> EncodedTexts:
    """Tokenize texts, or the pairs of them, and cut each to `max_length` tokens, from the longer text of a pair first.

    The result is that of `tokenizer(texts, pairs, truncation=True, max_length=max_length)`.
    """
    if pairs is None:
        return _encode_directly(tokenizer, texts, None, max_length)
    is_long = [_is_long(tokenizer, *pair, max_length) for pair in zip(texts, pairs, strict=True)]
    if not any(is_long):
        return _encode_directly(tokenizer, texts, pairs, max_length)
    is_short = [not long for long in is_long]
    short, long = (
        encode(tokenizer, list(compress(texts, chosen)), list(compress(pairs, chosen)), max_length)
        for encode, chosen in ((_encode_directly, is_short), (_encode_apart, is_long))
    )
    rows_of_long, rows_of_short = zip(*long, strict=True), zip(*short, strict=True)
    rows = [next(rows_of_long if long else rows_of_short) for long in is_long]
    return EncodedTexts(*map(list, zip(*rows, strict=True)))


def _encode_directly(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> EncodedTexts:
    if not texts:
        return EncodedTexts([], [])
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
        return_attention_mask=False,
    )
    return EncodedTexts(encoded["input_ids"], encoded["token_type_ids"])


def _is_long(tokenizer: PreTrainedTokenizerBase, text: str, pair: str, max_length: int) -> bool:
    """Return whether a fast tokenizer might make too many combinations; a token has at least a byte of a text."""
    if not tokenizer.is_fast or len(text) + len(pair) <= max_length:
        return False
    parts = [1 + 2 * len(part.encode()) // max_length for part in (text, pair)]
    return parts[0] * parts[1] > MAX_COMBINATIONS


class _PairLayout(NamedTuple):
    """Special tokens of a pair, and the token type ids, as a tokenizer sets them."""

    special: tuple[list[int], ...]
    """Token ids before the first text, between the two, and behind the second one."""
    special_types: tuple[list[int], ...]
    types: tuple[int, int]
    """Token type ids of the two texts."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _PairLayout | None:
        """Return a tokenizer's layout; None if its vocabulary has no token for the letter that shows it."""
        encoded = tokenizer("a", "a", return_token_type_ids=True)
        sequence = encoded.sequence_ids()
        if not {0, 1} <= set(sequence):
            return None
        first, second = sequence.index(0), sequence.index(1)
        ends = len(sequence) - sequence[::-1].index(0), len(sequence) - sequence[::-1].index(1)
        gaps = slice(0, first), slice(ends[0], second), slice(ends[1], len(sequence))
        ids, types = encoded["input_ids"], encoded["token_type_ids"]
        special, special_types = (tuple(values[gap] for gap in gaps) for values in (ids, types))
        return cls(special, special_types, (types[first], types[second]))


def _encode_apart(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str], max_length: int
) -> EncodedTexts:
    """Tokenize the texts of pairs by themselves, and put the special tokens around them."""
    if not texts or (layout := _PairLayout.of(tokenizer)) is None:
        return _encode_directly(tokenizer, texts, pairs, max_length)
    room = max_length - sum(map(len, layout.special))
    firsts, seconds = (
        tokenizer(list(part), add_special_tokens=False, verbose=False)["input_ids"] for part in (texts, pairs)
    )
    encoded = EncodedTexts([], [])
    for first, second in zip(firsts, seconds, strict=True):
        counts = _longest_first(len(first), len(second), room)
        kept = [
            _cut(ids, count, tokenizer.truncation_side)
            for ids, count in zip((first, second), counts, strict=True)
        ]
        types = [[kind] * count for kind, count in zip(layout.types, counts, strict=True)]
        encoded.input_ids.append(_interleave(layout.special, kept))
        encoded.token_type_ids.append(_interleave(layout.special_types, types))
    return encoded


def _cut(ids: list[int], count: int, side: str) -> list[int]:
    return ids[len(ids) - count :] if side == "left" else ids[:count]


def _interleave(special: Sequence[list[int]], parts: Sequence[list[int]]) -> list[int]:
    return [*special[0], *parts[0], *special[1], *parts[1], *special[2]]


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts fit into `room` if each next one is cut off the longer text."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)
