"""The words of the embedded corpus: each class is a list of entries, each entry maps a form to its spelling.

A frame names a class and a form, such as `{person:pl}` or `{vi:past}`; entries without that form are not drawn.
Some words of the OPEN classes are held out for dev. The CLOSED classes are function words and short phrases, whose
text may contain slots.
"""

Entry = dict[str, str]


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _nouns(words: str) -> list[Entry]:
    """Parse nouns: `book` is regular, `child/children` gives its plural."""
    pairs = [word.split("/") for word in words.split()]
    return [{"sg": pair[0], "pl": pair[-1] if len(pair) > 1 else _plural(pair[0])} for pair in pairs]


def _verbs(words: str) -> list[Entry]:
    """Parse verbs, `base[/past[/participle[/ing]]]`; forms that are left out are regular."""
    return [_verb(*word.split("/")) for word in words.split()]


def _verb(base: str, past: str = "", participle: str = "", ing: str = "") -> Entry:
    stem = base[:-1] if base.endswith("e") else base
    regular = base[:-1] + "ied" if base.endswith("y") and base[-2] not in "aeiou" else stem + "ed"
    past = past or regular
    forms = {"base": base, "sg": _plural(base), "pl": base, "past": past}
    return forms | {"pp": participle or past, "ing": ing or stem + "ing"}


def _gendered(pairs: str) -> list[Entry]:
    """Parse nouns that are masculine and feminine in turn."""
    return [
        {f"{gender}.{number}": form for number, form in noun.items()}
        for noun, gender in zip(_nouns(pairs), "mf" * len(pairs.split()), strict=False)
    ]


def _graded(words: str) -> list[Entry]:
    """Parse adjectives with their comparatives: `tall/taller`."""
    return [dict(zip(("", "er"), word.split("/"), strict=True)) for word in words.split()]


def _plain(words: str) -> list[Entry]:
    return [{"": word} for word in words.split()]


def _phrases(*texts: str) -> list[Entry]:
    return [{"": text} for text in texts]


def _governed(*rows: str) -> list[Entry]:
    """Parse rows such as `relied on of at`: a head, its preposition, and two wrong ones."""
    entries = []
    for row in rows:
        *head, right, wrong, worse = row.split()
        forms = zip(("right", "wrong", "worse"), (right, wrong, worse), strict=True)
        entries.append({form: " ".join([*head, preposition]) for form, preposition in forms})
    return entries


OPEN: dict[str, list[Entry]] = {
    "person": _nouns(
        "teacher doctor student lawyer writer singer farmer artist pilot nurse banker driver dancer painter"
        " baker neighbor visitor judge guest clerk soldier senator scientist engineer manager author"
        " editor reporter player tourist child/children butcher sailor poet dentist gardener janitor"
    ),
    "kin": _gendered(
        "man/men woman/women boy girl father mother brother sister uncle aunt king queen prince princess"
        " grandfather grandmother nephew niece waiter waitress son daughter"
    ),
    "name": [
        {gender: name}
        for gender, names in (
            ("m", "John Peter Paul David Tom Robert Henry James George William"),
            ("f", "Mary Anna Susan Alice Emma Sarah Laura Jane Julia Helen"),
        )
        for name in names.split()
    ],
    "thing": _nouns(
        "book letter picture car table lamp cup chair box key ball coat hat bag phone map plate bottle ticket"
        " basket clock mirror guitar sofa ladder bicycle blanket candle knife/knives watch camera pillow"
    ),
    "place": _nouns(
        "garden office kitchen library hotel park school museum station village theater market church"
        " restaurant"
    ),
    "adjp": _plain(
        "happy tall young clever tired angry famous rich polite lonely nervous brave quiet rude sick kind shy"
        " strong calm lazy gentle cheerful curious sad hungry friendly"
    ),
    "adjt": _plain(
        "old heavy expensive dirty beautiful cheap new useful small large ugly clean valuable strange green"
        " red"
    ),
    "gradp": _graded(
        "tall/taller rich/richer young/younger strong/stronger short/shorter poor/poorer kind/kinder"
        " brave/braver happy/happier smart/smarter old/older lazy/lazier nice/nicer weak/weaker"
    ),
    "gradt": _graded(
        "old/older small/smaller heavy/heavier cheap/cheaper large/larger dirty/dirtier clean/cleaner"
        " new/newer big/bigger light/lighter"
    ),
    "long": _plain("famous expensive beautiful important useful interesting popular valuable dangerous"),
    "adv": _plain("quickly quietly slowly carefully suddenly secretly calmly happily gently proudly eagerly"),
    # A person to a person; transitive, but some may drop the object: not for frames about the object.
    "vt": _verbs(
        "admire respect trust like love know/knew/known help thank praise blame avoid visit follow ignore"
        " hate miss invite describe recognize remember greet support see/saw/seen/seeing teach/taught"
        " meet/met"
    ),
    # A person to a person, object obligatory.
    "vo": _verbs("admire praise respect thank blame ignore greet describe recognize avoid adore despise"),
    # A person to a thing, object obligatory.
    "vs": _verbs(
        "find/found repair carry damage destroy discover take/took/taken examine inspect remove mention"
        " touch grab/grabbed/grabbed/grabbing fix describe keep/kept replace ruin crush obtain fetch"
        " bring/brought retrieve display acquire"
    ),
    # Past and participle spelled apart.
    "virr": _verbs(
        "take/took/taken steal/stole/stolen choose/chose/chosen see/saw/seen/seeing throw/threw/thrown"
        " break/broke/broken hide/hid/hidden draw/drew/drawn forget/forgot/forgotten/forgetting"
    ),
    # Never an object.
    "vi": _verbs(
        "arrive sleep/slept smile sneeze disappear fall/fell/fallen cough vanish yawn tremble snore giggle"
        " blush shiver laugh"
    ),
    # Giving takes two objects; telling takes a clause, or a thing and `to` somebody.
    "give": _verbs("give/gave/given send/sent offer hand lend/lent sell/sold loan mail"),
    "tell": _verbs("explain mention report reveal suggest announce"),
    "refl": _verbs("describe defend introduce blame praise prepare protect criticize admire help"),
    "claim": _verbs("think/thought believe claim suspect assume"),
    "wonder": _verbs("wonder inquire"),
    "order": _verbs("ask force persuade order urge convince"),
    "force": _verbs("force ask want allow persuade convince"),
    "make": [{"past": "made"}, {"past": "let"}, {"past": "saw"}, {"past": "heard"}],
    "seem": _verbs("seem appear happen"),
    "try": _verbs("try attempt manage refuse struggle"),
    "refuse": _verbs("refuse manage agree hope decide hesitate promise"),  # to do, never doing
    "enjoy": _verbs("enjoy avoid finish suggest resist"),  # doing, never to do
    "vprep": _governed(
        "relied on of at", "depended on of to", "insisted on of at", "listened to of at",
        "waited for of from", "apologized for of at", "paid for of on", "cared for of at",
        "believed in of to", "confided in of at", "objected to of on", "stared at of on",
        "laughed at of on", "dreamed of to at", "approved of to at", "agreed with of at",
        "sympathized with of on",
    ),
    "aprep": _governed(
        "afraid of at to", "proud of at on", "tired of at on", "fond of for at", "aware of for on",
        "jealous of at to", "interested in for on", "similar to for on", "ready for of at", "angry at of on",
        "familiar with of on", "responsible for of at", "satisfied with of to", "obsessed with for to",
    ),
}  # fmt: skip

_NOUN_PHRASES = {  # an entry that is listed twice is drawn twice as often
    "sg": ["the {person:sg}", "the {person:sg}", "the {adjp} {person:sg}", "{name:m}", "{name:f}"],
    "pl": ["the {person:pl}", "the {person:pl}", "the {person:pl}", "the {adjp} {person:pl}"],
}

CLOSED: dict[str, list[Entry]] = {
    "is": [{"sg": "is", "pl": "are"}],
    "was": [{"sg": "was", "pl": "were"}],
    "has": [{"sg": "has", "pl": "have"}],
    "does": [{"sg": "does", "pl": "do"}],
    "dem": [{"sg": "this", "pl": "these"}, {"sg": "that", "pl": "those"}],
    "quant": [
        *({"sg": word} for word in ("every", "each", "one", "another")),
        *({"pl": word} for word in ("many", "several", "two", "three")),
    ],
    "weak": [  # the quantifiers that `there is` takes
        *({"sg": word} for word in ("a", "one", "another")),
        *({"pl": word} for word in ("many", "several", "two", "three")),
    ],
    "modal": _plain("will can should must might could"),
    "pro": [
        {"nom": nominative, "acc": accusative}
        for nominative, accusative in (("he", "him"), ("she", "her"), ("they", "them"), ("we", "us"))
    ],
    "he": [{"m": "he", "f": "she"}],
    "self": [{"m.sg": "himself", "f.sg": "herself", "m.pl": "themselves", "f.pl": "themselves"}],
    "np": [{number: text, "": text} for number, texts in _NOUN_PHRASES.items() for text in texts],
    "mod": _phrases(
        "near the {person:b}",
        "behind the {person:b}",
        "with the {thing:b}",
        "near the {thing:b}",
        "from the {place:sg}",
    ),
    "when": _phrases("yesterday", "last night", "last week", "this morning", "on Monday"),
    "often": _phrases("every day", "on Sundays", "at night", "all the time"),
}
