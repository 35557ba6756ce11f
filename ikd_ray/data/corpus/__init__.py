"""The embedded corpus: English acceptability judgements in the manner of CoLA, from a grammar of our own.

Every sentence comes from a frame of a phenomenon (`phenomena.py`) and words of the lexicon. Dev also has
words and frames that training never shows, so that a model which only remembers is found out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ikd_ray.data.corpus.frames import Phenomenon, Writer, lemma
from ikd_ray.data.corpus.lexicon import OPEN
from ikd_ray.data.corpus.phenomena import PHENOMENA

ACCEPTABLE = 0.7  # CoLA's own share
HELD_OUT_WORDS = 0.1  # of each open class
UNSEEN_FRAMES = 0.2  # of dev's sentences
PATIENCE = 1000  # tries for a sentence that is new, before a phenomenon counts as used up


@dataclass(frozen=True)
class Judgement:
    sentence: str
    label: int
    phenomenon: str


def generate(seed: int = 0, train: int = 8200, dev: int = 1040) -> tuple[list[Judgement], list[Judgement]]:
    """The training and the dev split; the same seed gives the same corpus, everywhere."""
    taken: set[str] = set()
    training = _Split(Writer(held_out_words(seed)), random.Random(f"{seed} train"), 0.0, taken).draw(train)
    return training, _Split(Writer(), random.Random(f"{seed} dev"), UNSEEN_FRAMES, taken).draw(dev)


def held_out_words(seed: int) -> frozenset[str]:
    """Lemmas that training never uses: a share of every class that is large enough to spare some."""
    rng = random.Random(f"{seed} words")
    return frozenset(
        lemma(entry)
        for entries in OPEN.values()
        for entry in rng.sample(entries, int(len(entries) * HELD_OUT_WORDS))
    )


def _shares(size: int) -> list[int]:
    """How many of `size` sentences fall to each phenomenon; they add up whatever the rounding."""
    weights = [phenomenon.weight for phenomenon in PHENOMENA]
    ends = [size * sum(weights[:i]) // sum(weights) for i in range(len(weights) + 1)]
    return [end - start for start, end in pairwise(ends)]


@dataclass
class _Split:
    """A split in the making: who writes it, its share of unseen frames, the sentences gone so far."""

    writer: Writer
    rng: random.Random
    unseen: float
    taken: set[str]

    def draw(self, size: int) -> list[Judgement]:
        """`size` judgements shared among the phenomena by weight.

        Every unacceptable sentence comes with its acceptable twin, so that what differs is what is judged.
        """
        judgements: list[Judgement] = []
        for phenomenon, share in zip(PHENOMENA, _shares(size), strict=True):
            twins = share - round(share * ACCEPTABLE)
            for labels in [(1, 0)] * twins + [(1,)] * (share - 2 * twins):
                judgements += self._minimal_set(phenomenon, labels)
        self.rng.shuffle(judgements)
        return judgements

    def _minimal_set(self, phenomenon: Phenomenon, labels: Sequence[int]) -> list[Judgement]:
        """A new sentence for each label, all of one frame and the same words."""
        for _ in range(PATIENCE):
            frames = phenomenon.unseen if self.rng.random() < self.unseen else ()
            frame = self.rng.choice(frames or phenomenon.frames)
            seed = self.rng.getrandbits(64)
            sentences = [self.writer.write(frame, label, seed) for label in labels]
            if self.taken.isdisjoint(sentences):
                self.taken.update(sentences)
                pairs = zip(sentences, labels, strict=True)
                return [Judgement(sentence, label, phenomenon.name) for sentence, label in pairs]
        raise ValueError(f"the frames of {phenomenon.name!r} have no more new sentences; ask for fewer")
