"""The embedded corpus: English acceptability judgements in the manner of CoLA, from a grammar of our own.

Every sentence comes from a frame of a phenomenon (`phenomena_*.py`) and words of the lexicon. Dev also has
words and frames that training never shows, so that a model which only remembers is found out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ikd_ray.data.corpus import phenomena_agreement, phenomena_clause, phenomena_meaning, phenomena_predicate
from ikd_ray.data.corpus.lexicon import OPEN
from ikd_ray.data.corpus.phenomena import Phenomenon, Writer, lemma

PHENOMENA: tuple[Phenomenon, ...] = (
    *phenomena_agreement.PHENOMENA,
    *phenomena_predicate.PHENOMENA,
    *phenomena_clause.PHENOMENA,
    *phenomena_meaning.PHENOMENA,
)
ACCEPTABLE = 0.7  # CoLA's own share
HELD_OUT_WORDS = 0.1  # of each open class
UNSEEN_FRAMES = 0.15  # of dev's sentences
PATIENCE = 1000  # tries for a sentence that is new, before a phenomenon counts as used up


@dataclass(frozen=True)
class Judgement:
    sentence: str
    label: int
    phenomenon: str


def generate(seed: int = 0, train: int = 8200, dev: int = 1040) -> tuple[list[Judgement], list[Judgement]]:
    """The training and the dev split; the same seed gives the same corpus, everywhere."""
    held_out = held_out_words(seed)
    taken: set[str] = set()
    training = _split(Writer(random.Random(f"{seed} train"), held_out), train, 0.0, taken)
    return training, _split(Writer(random.Random(f"{seed} dev")), dev, UNSEEN_FRAMES, taken)


def held_out_words(seed: int) -> frozenset[str]:
    """Lemmas that training never uses: a share of every class that is large enough to spare some."""
    rng = random.Random(f"{seed} words")
    return frozenset(
        lemma(entry)
        for entries in OPEN.values()
        for entry in rng.sample(entries, int(len(entries) * HELD_OUT_WORDS))
    )


def _split(writer: Writer, size: int, unseen: float, taken: set[str]) -> list[Judgement]:
    """`size` sentences shared evenly among the phenomena, none of them `taken` before.

    Every unacceptable sentence comes with its acceptable twin, so that what differs is what is judged.
    """
    judgements: list[Judgement] = []
    for i, phenomenon in enumerate(PHENOMENA):
        share = size // len(PHENOMENA) + (i < size % len(PHENOMENA))
        pairs = share - round(share * ACCEPTABLE)
        for labels in [(1, 0)] * pairs + [(1,)] * (share - 2 * pairs):
            judgements += _minimal_set(writer, phenomenon, labels, unseen, taken)
    writer.rng.shuffle(judgements)
    return judgements


def _minimal_set(
    writer: Writer, phenomenon: Phenomenon, labels: Sequence[int], unseen: float, taken: set[str]
) -> list[Judgement]:
    """One sentence for each label, all of the same frame and words."""
    for _ in range(PATIENCE):
        frame = _frame(writer.rng, phenomenon, unseen)
        words = writer.rng.getrandbits(64)
        sentences = [writer.write(frame, label, words) for label in labels]
        if taken.isdisjoint(sentences):
            taken.update(sentences)
            return [
                Judgement(text, label, phenomenon.name) for text, label in zip(sentences, labels, strict=True)
            ]
    raise ValueError(f"the frames of {phenomenon.name!r} have no more new sentences; ask for fewer")


def _frame(rng: random.Random, phenomenon: Phenomenon, unseen: float) -> str:
    frames: Sequence[str] = phenomenon.unseen if rng.random() < unseen else phenomenon.frames
    return rng.choice(frames)
