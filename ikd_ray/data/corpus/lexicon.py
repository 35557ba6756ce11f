"""The words of the embedded corpus, read from `lexicon.yaml`.

A class has entries, and each entry maps its forms to their spellings.
"""

from pathlib import Path
from typing import Any

import yaml

Entry = dict[str, str]


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _noun(singular: str, plural: str = "") -> Entry:
    return {"sg": singular, "pl": plural or _plural(singular)}


def _verb(base: str, past: str = "", participle: str = "", ing: str = "") -> Entry:
    stem = base[:-1] if base.endswith("e") else base
    regular = base[:-1] + "ied" if base.endswith("y") and base[-2] not in "aeiou" else stem + "ed"
    past = past or regular
    forms = {"base": base, "sg": _plural(base), "pl": base, "past": past}
    return forms | {"pp": participle or past, "ing": ing or stem + "ing"}


def _gendered(nouns: list[Entry]) -> list[Entry]:
    return [
        {f"{'mf'[index % 2]}.{number}": spelling for number, spelling in noun.items()}
        for index, noun in enumerate(nouns)
    ]


def _governed(row: str) -> Entry:
    *head, right, wrong, worse = row.split()
    forms = {"right": right, "wrong": wrong, "worse": worse}
    return {form: " ".join([*head, preposition]) for form, preposition in forms.items()}


def _entries(words: Any) -> list[Entry]:
    """Return the entries of a class, written as `lexicon.yaml` says."""
    match words:
        case str():
            return [{"": word} for word in words.split()]
        case list():
            return [{"": phrase} for phrase in words]
        case {"nouns": nouns}:
            return [_noun(*noun.split("/")) for noun in nouns.split()]
        case {"gendered": nouns}:
            return _gendered(_entries({"nouns": nouns}))
        case {"verbs": verbs}:
            return [_verb(*verb.split("/")) for verb in verbs.split()]
        case {"graded": adjectives}:
            return [dict(zip(("", "er"), word.split("/"), strict=True)) for word in adjectives.split()]
        case {"governed": rows}:
            return [_governed(row) for row in rows]
    return [
        {form: entry[""]} | (entry if isinstance(text, list) else {})
        for form, text in words.items()
        for entry in _entries(text)
    ]


_TABLE = yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8"))
OPEN: dict[str, list[Entry]] = {name: _entries(words) for name, words in _TABLE["open"].items()}
CLOSED: dict[str, list[Entry]] = {name: _entries(words) for name, words in _TABLE["closed"].items()}
