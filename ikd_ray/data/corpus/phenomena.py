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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ikd_ray.data.corpus.lexicon import CLOSED, OPEN, Entry

OPPOSITE = {"sg": "pl", "pl": "sg", "m": "f", "f": "m"}
VARIABLES = dict.fromkeys("abc", ("sg", "pl")) | dict.fromkeys("gh", ("m", "f"))
_BRACKET = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)(?::([\w.!]+))?\}")
_A_BEFORE_VOWEL = re.compile(r"\ba(?= [aeiou])", re.IGNORECASE)


@dataclass(frozen=True)
class Phenomenon:
    """What is judged, the frames that show it, and frames that are kept for dev."""

    name: str
    frames: Sequence[str]
    unseen: Sequence[str] = ()


def members(frame: str) -> int:
    """How many sentences the frame's minimal set has, the acceptable one included."""
    counts = {len(alternatives.split("|")) for alternatives in _BRACKET.findall(frame)}
    if len(counts) != 1 or min(counts) < 2:
        raise ValueError(f"brackets need the same number of alternatives, two or more: {frame!r}")
    return counts.pop()


@dataclass
class Writer:
    """Turns frames into sentences with the words it was given."""

    rng: random.Random
    held_out: frozenset[str] = frozenset()
    _open: Mapping[str, list[Entry]] = field(init=False)

    def __post_init__(self) -> None:
        self._open = {
            name: [entry for entry in entries if lemma(entry) not in self.held_out]
            for name, entries in OPEN.items()
        }

    def write(self, frame: str, label: int) -> str:
        wrong = self.rng.randrange(1, members(frame))  # drawn for both labels: pairs then share their words
        text = _BRACKET.sub(lambda match: match[1].split("|")[0 if label else wrong], frame)
        features: dict[str, str] = {}
        used: set[str] = set()
        while slot := _SLOT.search(text):  # a phrase brings slots of its own, hence one at a time
            word = self._word(slot[1], slot[2] or "", features, used)
            text = text[: slot.start()] + word + text[slot.end() :]
        text = _A_BEFORE_VOWEL.sub(lambda match: match[0] + "n", " ".join(text.split()))
        text = re.sub(r" (?=[.?,])", "", text)
        return text[0].upper() + text[1:]

    def _word(self, name: str, form: str, features: dict[str, str], used: set[str]) -> str:
        key = ".".join(self._value(feature, features) for feature in form.split("."))
        if name in CLOSED:
            return self.rng.choice([entry[key] for entry in CLOSED[name] if key in entry])
        fitting = [e for e in self._open[name] if key in e and lemma(e) not in used]
        entry = self.rng.choice(fitting)
        used.add(lemma(entry))
        return entry[key]

    def _value(self, feature: str, features: dict[str, str]) -> str:
        variable = feature.lstrip("!")
        if variable not in VARIABLES:
            return feature
        value = features.setdefault(variable, self.rng.choice(VARIABLES[variable]))
        return OPPOSITE[value] if feature.startswith("!") else value


def lemma(entry: Entry) -> str:
    """An entry's name: its first form (two classes may list the same verb)."""
    return next(iter(entry.values()))
