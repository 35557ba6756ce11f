"""The frame language, in which each phenomenon is a handful of lines.

    "the {person:a} near the {person:b} [{is:a}|{is:!a}] {adjp}."

`{class:form}` is a word of the lexicon. In a form, one-letter features are variables, drawn once per sentence
(a-c a number, g-h a gender), and `!a` is the other value; features are joined by a dot: `{self:g.sg}`.
`[good|bad|bad]` is where the members of a minimal set part: the first alternative makes the acceptable
sentence, each other one an unacceptable one; several brackets in a frame move together.

To keep single words from giving the label away, a frame should make its members of the same words, or come
with a second frame in which the same words are right and wrong the other way round.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ikd_ray.data.corpus.lexicon import CLOSED, OPEN, Entry

T = TypeVar("T")
OPPOSITE = {"sg": "pl", "pl": "sg", "m": "f", "f": "m"}
VARIABLES = dict.fromkeys("abc", ("sg", "sg", "pl")) | dict.fromkeys("gh", ("m", "f"))
_BRACKET = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::([\w.!]+))?\}")
_A_BEFORE_VOWEL = re.compile(r"\ba(?= [aeiou])", re.IGNORECASE)


@dataclass(frozen=True)
class Phenomenon:
    """What is judged, the frames that show it, frames that are kept for dev, and its weight in a split.

    A phenomenon of weight 2 gets twice the sentences: those whose errors neighbouring words mostly show.
    """

    name: str
    frames: Sequence[str]
    unseen: Sequence[str] = ()
    weight: int = 1


def members(frame: str) -> int:
    """How many sentences the frame's minimal set has, the acceptable one included."""
    counts = {len(alternatives.split("|")) for alternatives in _BRACKET.findall(frame)}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(f"brackets need the same number of alternatives, two or more: {frame!r}")
    return counts.pop()


class Writer:
    """Turns frames into sentences with the words that are not held out."""

    def __init__(self, held_out: frozenset[str] = frozenset()) -> None:
        self.held_out = held_out
        self._lexicon = CLOSED | {
            name: [entry for entry in entries if lemma(entry) not in held_out]
            for name, entries in OPEN.items()
        }

    def write(self, frame: str, label: int, seed: int) -> str:
        """The frame's sentence of that label; the same seed picks the same words for the other label."""
        wrong = _draw(seed, "member", range(1, members(frame)))
        text = _BRACKET.sub(lambda match: match[1].split("|")[0 if label else wrong], frame)
        chosen: dict[str, list[Entry]] = {}
        while slot := _SLOT.search(text):  # a phrase brings slots of its own, hence one at a time
            word = self._word(slot[1], slot[2] or "", seed, chosen.setdefault(slot[1], []))
            text = text[: slot.start()] + word + text[slot.end() :]
        text = _A_BEFORE_VOWEL.sub(lambda match: match[0] + "n", " ".join(text.split()))
        text = re.sub(r" (?=[.?,])", "", text)
        return text[0].upper() + text[1:]

    def _word(self, name: str, form: str, seed: int, chosen: list[Entry]) -> str:
        key = ".".join(_value(feature, seed) for feature in form.split("."))
        fitting = [entry for entry in self._lexicon[name] if key in entry]
        if name in OPEN:  # no word twice in a sentence
            fitting = [entry for entry in fitting if entry not in chosen]
        # By class and turn, not from one stream: members of a set differ in the order of their slots.
        entry = _draw(seed, f"{name} {len(chosen)}", fitting)
        chosen.append(entry)
        return entry[key]


def _draw(seed: int, what: str, options: Sequence[T]) -> T:
    return random.Random(f"{seed} {what}").choice(options)


def _value(feature: str, seed: int) -> str:
    variable = feature.lstrip("!")
    if variable not in VARIABLES:
        return feature
    value = _draw(seed, variable, VARIABLES[variable])
    return OPPOSITE[value] if feature.startswith("!") else value


def lemma(entry: Entry) -> str:
    """An entry's name: the first word of its first form (two classes may list the same verb)."""
    return next(iter(entry.values())).split()[0]
