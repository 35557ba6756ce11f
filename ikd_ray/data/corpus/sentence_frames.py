"""The frame language of `phenomena.yaml`.

    "the {person:a} near the {person:b} [{is:a}|{is:!a}] {adjp}."

`{class:form}` is a word of the lexicon. One-letter features of a form are variables, drawn once per sentence (a to c: a
number, g and h: a gender); `!a` is the opposite value. Features are joined by a dot: `{self:g.sg}`.
`[good|bad|bad]` holds the alternatives in which the members of a minimal set differ: the first makes the acceptable
sentence, each other one an unacceptable one. All brackets of a frame take the same alternative.

To keep single words from revealing the label, the members of a frame should consist of the same words, or a second
frame should use the same words with right and wrong exchanged.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from ikd_ray.data.corpus.lexicon import CLOSED, OPEN, Entry

T = TypeVar("T")
OPPOSITE = {"sg": "pl", "pl": "sg", "m": "f", "f": "m"}
VARIABLES = dict.fromkeys("abc", ("sg", "sg", "pl")) | dict.fromkeys("gh", ("m", "f"))
_BRACKET = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::([\w.!]+))?\}")
_A_BEFORE_VOWEL = re.compile(r"\ba(?= [aeiou])", re.IGNORECASE)


@dataclass(frozen=True)
class Phenomenon:
    """A phenomenon of grammar: its frames, the frames kept for dev (`unseen`), and its weight in a split."""

    name: str
    frames: Sequence[str]
    unseen: Sequence[str] = ()
    weight: int = 1


PHENOMENA = tuple(
    Phenomenon(name, fields["frames"].splitlines(), fields["unseen"].splitlines(), fields.get("weight", 1))
    for name, fields in yaml.safe_load(
        Path(__file__).with_name("phenomena.yaml").read_text(encoding="utf-8")
    ).items()
)


def members(frame: str) -> int:
    """Return the number of sentences in a frame's minimal set, the acceptable one included."""
    counts = {len(alternatives.split("|")) for alternatives in _BRACKET.findall(frame)}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(f"brackets need the same number of alternatives, two or more: {frame!r}")
    return counts.pop()


class Writer:
    """Makes sentences of frames, without the words that are held out."""

    def __init__(self, held_out: frozenset[str] = frozenset()) -> None:
        self.held_out = held_out
        self._lexicon = CLOSED | {
            name: [entry for entry in entries if lemma(entry) not in held_out]
            for name, entries in OPEN.items()
        }

    def write(self, frame: str, label: int, seed: int) -> str:
        """Return the sentence of a frame and label; one seed picks the same words for either label."""
        wrong = _draw(seed, "member", range(1, members(frame)))
        text = _BRACKET.sub(lambda match: match[1].split("|")[0 if label else wrong], frame)
        chosen: dict[str, list[Entry]] = {}
        while slot := _SLOT.search(text):  # one at a time: a phrase may contain slots
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
        # Seeded by class and turn: the members of a minimal set differ in the order of their slots.
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
    """Return an entry's lemma: the first word of its first form (two classes may list the same verb)."""
    return next(iter(entry.values())).split()[0]
