"""Clauses within clauses: relatives, questions and islands, coordination, word order."""

from ikd_ray.data.corpus.phenomena import Phenomenon

RELATIVE_CLAUSE = Phenomenon(
    "relative_clause",
    frames=(
        "the {person:a} [who|which] {vt:past} {np} {vi:past}.",
        "the {thing:a} [which|who] {np} {vs:past} {is:a} {adjt}.",
        "{np} {vt:past} the {person:a} [who|which] {vi:past}.",
        "{np} {vs:past} the {thing:a} [which|who] {was:a} {adjt}.",
        "the {person:a} who [{vi:past}|{vs:past}] {was:a} {adjp}.",
        "the {thing:a} that {np} [{vs:past}|{vi:past}] {was:a} {adjt}.",
        "the {person:a} who {vs:past} [the {thing:b}|] {was:a} {adjp}.",
        "the {thing:a} that {np} {vs:past} [|the {thing:b}] {was:a} {adjt}.",
        "the {person:a} [who {np} {vt:past}|{np} {vt:past} who] {vi:past}.",
        "the {person:a} [who {vt:past}|{vt:past} who] {np} {vi:past}.",
    ),
    unseen=(
        "{np} {vs:past} the {thing:a} that {np} [{vs:past}|{vi:past}].",
        "did the {person:a} [who|which] {vt:past} {np} {vs:base} the {thing:b}?",
    ),
)

QUESTION = Phenomenon(
    "question",
    frames=(
        "what [{modal} {np}|{np} {modal}] {vs:base}?",
        "{np} {wonder:past} what [{np} {modal}|{modal} {np}] {vs:base}.",
        "{is:a} the {person:a} who [{is:a} {adjp} {adjp}|{adjp} {is:a} {adjp}]?",
        "{modal} the {person:a} who [can {vi:base} {vt:base}|{vi:base} can {vt:base}] {np}?",
        "what did {np} {vs:base} [|the {thing:b}] {when}?",
        "did {np} {vs:base} [the {thing:b}|] {when}?",
        "which {thing:a} [did {np}|{np} did] {vs:base}?",
        "{np} {wonder:past} where [the {person:a} {was:a}|{was:a} the {person:a}].",
        "where [{was:a} the {person:a}|the {person:a} {was:a}] {when}?",
        "{was:a} the {person:a} who [{was:a} {vi:ing} {adjp}|{vi:ing} {was:a} {adjp}]?",
    ),
    unseen=(
        "when [{modal} {np}|{np} {modal}] {vs:base} the {thing:b}?",
        "{np} {wonder:past} why [{np:a} {was:a}|{was:a} {np:a}] {adjp}.",
    ),
)

# A question word may come from far away, and then leaves a gap, but it may not leave an island.
ISLAND = Phenomenon(
    "island",
    frames=(
        "what did {np} {claim:base} that {np} {vs:past} [|the {thing:b}]?",
        "did {np} {claim:base} that {np} {vs:past} [the {thing:b}|]?",
        "what did {np} {order:base} {np} to {vs:base} [|the {thing:b}]?",
        "did {np} {order:base} {np} to {vs:base} [the {thing:b}|]?",
        "what did {np} {vs:base} and {vs:base} [|the {thing:b}]?",
        "[did|what did] {np} {vi:base} because {np} {vs:past} [the {thing:b}|]?",
        "[did|what did] {np} {vt:base} the {person:c} who {vs:past} [the {thing:b}|]?",
        "[did|what did] {np} wonder who {vs:past} [the {thing:b}|]?",
        "[did|what did] {np} {vs:base} the {thing:a} and [the {thing:b}|]?",
        "the {thing:a} that {np} [{claim:past} that|{vi:past} because] {np} {vs:past} {is:a} {adjt}.",
    ),
    unseen=(
        "[did|what did] {np} {vi:base} before {np} {vs:past} [the {thing:b}|]?",
        "what did {np} {claim:base} that {np} {try:past} to {vs:base} [|the {thing:b}]?",
    ),
)

COORDINATION = Phenomenon(
    "coordination",
    frames=(
        "both {np} [and|or|nor] {np} {vi:past}.",
        "either {np} [or|and|nor] {np} {vi:past}.",
        "neither {np} [nor|and] {np} {vi:past}.",
        "both the {person:a} {mod} [and|or] {np} {vi:past}.",
        "either the {person:a} who {vt:past} {np} [or|and] {np} {vi:past}.",
        "the {person:sg} and the {person:sg} [are|is] {adjp}.",
        "the {person:sg} near the {person:sg} [is|are] {adjp}.",
        "{np} {vs:past} the {thing:a} and [{vi:past}|{vi:base}].",
        "{np} {modal} {vs:base} the {thing:a} and [{vi:base}|{vi:past}].",
        "the {person:sg} near both the {person:sg} and the {person:sg} [is|are] {adjp}.",
    ),
    unseen=(
        "{np} {vs:past} either the {thing:a} [or|and] the {thing:b}.",
        "the {thing:sg} and the {thing:sg} [were|was] in the {place:sg}.",
    ),
)

WORD_ORDER = Phenomenon(
    "word_order",
    weight=2,
    frames=(
        "[the {person:a}|{person:a} the] {vs:past} the {thing:b}.",
        "{np} {vs:past} [the {thing:b}|{thing:b} the] {when}.",
        "[{np} {vt:past}|{vt:past} {np}] {np}.",
        "the [{adjp} {person:a}|{person:a} {adjp}] {vt:past} {np}.",
        "{np} [{adv} {vs:past} the {thing:b}|{vs:past} {adv} the {thing:b}].",
        "{np} did [not {vs:base}|{vs:base} not] the {thing:b}.",
        "{np} {vs:past} [a very|very a] {adjt} {thing:sg}.",
        "[all the|the all] {person:pl} {vt:past} {np}.",
        "{np} [{vs:past} the {thing:b}|the {thing:b} {vs:past}] in the {place:sg}.",
        "the {person:a} [near the {place:sg} {vt:past}|{vt:past} near the {place:sg}] {np}.",
        "{np} [picked {pro:acc} up|picked up {pro:acc}] {when}.",
        "{np} {vs:past} the {thing:a} [in the|the in] {place:sg}.",
        "the {person:a} {modal} [{adv} {vs:base} the {thing:b}|{vs:base} {adv} the {thing:b}].",
    ),
    unseen=(
        "{np} [{vs:past} the {thing:b} {adv}|{vs:past} {adv} the {thing:b}].",
        "the {person:a} who {vs:past} the [{adjt} {thing:b}|{thing:b} {adjt}] {vi:past}.",
    ),
)

PHENOMENA = (RELATIVE_CLAUSE, QUESTION, ISLAND, COORDINATION, WORD_ORDER)
