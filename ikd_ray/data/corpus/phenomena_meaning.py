"""Where form answers to meaning: polarity items and their licensers, comparison, existence."""

from ikd_ray.data.corpus.phenomena import Phenomenon

# The licenser has to command the item: the same negation inside a relative clause is not enough.
POLARITY = Phenomenon(
    "polarity",
    frames=(
        "[no|the] {person:sg} who {vt:past} [the|no] {person:pl} has ever {vi:pp}.",
        "[nobody|the {person:sg}] who knows [the {person:sg}|nobody] has ever {vi:pp}.",
        "the {person:a} who [{vt:past} {np} did not {vs:base}|did not {vt:base} {np} {vs:past}]"
        " any {thing:pl}.",
        "[did {np} {vs:base} any {thing:pl}?|{np} did {vs:base} any {thing:pl}.]",
        "{np} [did not {vs:base}|{vs:past}] any {thing:pl} but {np} [did|did not].",
        "[has {np:sg} ever {vt:pp} {np}?|{np:sg} has ever {vt:pp} {np}.]",
        "[no|the] {person:pl} near [the|no] {person:pl} have ever {vt:pp} {np}.",
        "the {person:a} who [{vi:past} did not {claim:base}|did not {vi:base} {claim:past}]"
        " that {np} had ever {vi:pp}.",
        "the {person:a} who [{vi:past} never {vs:past}|never {vi:past} {vs:past}] any {thing:pl}.",
    ),
    unseen=(
        "if {np:a} [ever {vt:a}|{vt:a}] {np}, {np} will [|ever] {vi:base}.",
        "[no|the] {person:sg} near [the|no] {person:pl} {vs:past} any {thing:pl}.",
    ),
)

COMPARATIVE = Phenomenon(
    "comparative",
    weight=2,
    frames=(
        "{np:a} {is:a} [{gradp:er} than|{gradp:er} as|{gradp} than] {np}.",
        "{np:a} {is:a} as [{gradp} as|{gradp:er} as|{gradp} than] {np}.",
        "the {thing:a} {is:a} [more {long} than|{long} than|more {long} as] the {thing:b}.",
        "{np} {vs:past} more {thing:pl} [than|as] {np}.",
        "{np} {vs:past} as many {thing:pl} [as|than] {np}.",
        "the {person:a} {mod} {is:a} [{gradp:er}|{gradp}] than {np}.",
        "the {person:a} {mod} {is:a} as [{gradp}|{gradp:er}] as {np}.",
        "{np} {vs:past} [a {gradt:er}|a {gradt}|a more {gradt:er}] {thing:sg} than {np}.",
        "the {person:a} who {vt:past} {np} {is:a} as {gradp} [as|than] the {person:b}.",
        "the {person:a} who {vt:past} {np} {is:a} {gradp:er} [than|as] the {person:b}.",
    ),
    unseen=(
        "{is:a} the {thing:a} [{gradt:er}|{gradt}] than the {thing:b}?",
        "the {person:a} who {is:a} [{gradp:er} than|{gradp:er} as] {np} {vi:past}.",
    ),
)

EXISTENTIAL = Phenomenon(
    "existential",
    frames=(
        "there [{is:a}|{is:!a}] {weak:a} {thing:a} on the {thing:b}.",
        "there was [a|the] {person:sg} near [the|a] {thing:sg}.",
        "there is [a {person:sg}|every {person:sg}] near [every|a] {place:sg}.",
        "[{is:a}|{is:!a}] there {weak:a} {thing:a} in the {place:sg}?",
        "there [{was:a}|{was:!a}] {weak:a} {person:a} near the {thing:b}.",
        "there [{has:a}|{has:!a}] been {weak:a} {person:a} in the {place:sg}.",
        "[there {was:a} {weak:a} {thing:a}|{weak:a} {thing:a} there {was:a}] in the {place:sg}.",
        "{np} {claim:past} that there [{was:a}|{was:!a}] {weak:a} {thing:a} in the {place:sg}.",
    ),
    unseen=(
        "was there [a|the] {person:sg} near [the|a] {thing:sg}?",
        "there [{is:a}|{is:!a}] {weak:a} {adjp} {person:a} in the {place:sg}.",
    ),
)

PHENOMENA = (POLARITY, COMPARATIVE, EXISTENTIAL)
