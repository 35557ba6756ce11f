"""The embedded corpus: sizes, balance, words and frames of dev alone, and labels that no single word reveals."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import matthews_corrcoef

from ikd_ray.data import corpus
from ikd_ray.data.corpus import PHENOMENA, Judgement, generate, held_out_words
from ikd_ray.data.corpus.sentence_frames import Phenomenon, Writer, members

FRAMES = [(p.name, frame) for p in PHENOMENA for frame in (*p.frames, *p.unseen)]
WRITER = Writer()


@pytest.fixture(scope="module")
def splits() -> tuple[list[Judgement], list[Judgement]]:
    return generate()


def words(judgements: list[Judgement]) -> set[str]:
    return {word for j in judgements for word in re.findall(r"[\w']+", j.sentence.lower())}


def test_sizes_and_share_of_acceptable_sentences(splits):
    assert [len(split) for split in splits] == [8200, 1040]
    assert [len(split) for split in generate(train=57, dev=20)] == [57, 20]
    for split in splits:
        assert sum(j.label for j in split) / len(split) == pytest.approx(0.7, abs=0.01)


def test_every_phenomenon_has_both_labels_in_both_splits(splits):
    assert len({p.name for p in PHENOMENA}) == len(PHENOMENA) >= 12
    for split in splits:
        counts = Counter((j.phenomenon, j.label) for j in split)
        for phenomenon in PHENOMENA:
            good, bad = counts[phenomenon.name, 1], counts[phenomenon.name, 0]
            assert 0.2 < bad / (good + bad) < 0.4, phenomenon.name


def test_phenomena_are_shuffled(splits):
    for split in splits:
        assert sum(a.phenomenon == b.phenomenon for a, b in pairwise(split)) < len(split) / 8


def test_sentences_are_unique_short_and_well_formed(splits):
    sentences = [j.sentence for split in splits for j in split]
    assert len(sentences) == len(set(sentences))
    assert sum(len(s.split()) for s in sentences) / len(sentences) <= 8.5
    for sentence in sentences:
        assert re.fullmatch(r"[A-Z][A-Za-z']*(,? [A-Za-z']+)+[.?]", sentence), sentence
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", sentence, re.IGNORECASE), sentence


def test_corpus_is_the_same_in_every_process_and_release(splits):
    text = "\n".join(f"{j.label} {j.sentence}" for split in splits for j in split)
    expected = "8d77c33078bfbfc5aeb0d701bea39b8de956af9c3e8a479d346a39dca8a03d22"
    assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_seed_changes_the_corpus(splits):
    other = generate(seed=1)
    assert held_out_words(1) != held_out_words(0)
    for split, other_split in zip(splits, other, strict=True):
        shared = {j.sentence for j in split} & {j.sentence for j in other_split}
        assert len(shared) < len(split) / 5


def test_held_out_words_are_only_in_dev(splits):
    train, dev = splits
    unseen = words(dev) - words(train)
    held_out = {word.lower() for word in held_out_words(0)}
    assert not held_out & words(train)
    assert len(unseen & held_out) > len(held_out) / 2
    assert 0.1 < sum(bool(words([j]) & unseen) for j in dev) / len(dev) < 0.5


def test_some_frames_are_only_in_dev(monkeypatch):
    written: dict[bool, list[str]] = {True: [], False: []}
    write = Writer.write

    def recording(self: Writer, frame: str, label: int, seed: int) -> str:
        written[bool(self.held_out)].append(frame)  # training's writer has words held out
        return write(self, frame, label, seed)

    monkeypatch.setattr(Writer, "write", recording)
    generate()
    train, dev = written[True], written[False]
    unseen = {frame for phenomenon in PHENOMENA for frame in phenomenon.unseen}
    assert len(train) >= 8200
    assert not unseen & set(train)
    assert len(unseen & set(dev)) > 0.8 * len(unseen)
    assert 0.05 < sum(frame in unseen for frame in dev) / len(dev) < 0.3


@pytest.mark.parametrize(("name", "frame"), FRAMES)
def test_members_of_a_minimal_set_differ(name, frame):
    for seed in range(30):
        bad, good = (WRITER.write(frame, label, seed) for label in (0, 1))
        assert bad != good


def test_bag_of_words_model_learns_almost_nothing(splits):
    train, dev = splits
    vectorizer = CountVectorizer()
    counts = vectorizer.fit_transform([j.sentence for j in train])
    for weights in (None, "balanced"):
        model = LogisticRegression(max_iter=1000, class_weight=weights).fit(counts, [j.label for j in train])
        guesses = model.predict(vectorizer.transform([j.sentence for j in dev]))
        assert matthews_corrcoef([j.label for j in dev], guesses) < 0.25


def test_frame_without_a_minimal_set_is_refused():
    assert members("{np} [is|are|be] [tall|tall|tall].") == 3
    for frame in ("the {person:sg} slept.", "[a|b|c] [d|e].", "[a]."):
        with pytest.raises(ValueError, match="same number of alternatives"):
            members(frame)


def test_exhausted_phenomenon_is_an_error(monkeypatch):
    small = Phenomenon(
        "small", frames=("it [{is:sg}|{is:pl}] here.",), unseen=("it [{was:sg}|{was:pl}] here.",)
    )
    monkeypatch.setattr(corpus, "PHENOMENA", (small,))
    with pytest.raises(ValueError, match="'small' have no more new sentences"):
        generate(train=5, dev=1)
