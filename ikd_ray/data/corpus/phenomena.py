"""Phenomena of English grammar, and the frames that show them."""

from ikd_ray.data.corpus.sentence_frames import Phenomenon

# Agreement: of verb and subject, determiner and noun, reflexive and antecedent, pronoun and its case.

AGREEMENT = Phenomenon(
    "agreement",
    weight=2,
    frames=(
        "the {person:a} [{is:a}|{is:!a}] {adjp}.",
        "the {adjp} {person:a} [{vi:a}|{vi:!a}] {often}.",
        "[{is:a}|{is:!a}] the {person:a} {adjp}?",
        "the {adjp} {person:a} [{has:a}|{has:!a}] {vi:pp}.",
        "the {person:a} [{does:a}|{does:!a}] not {vt:base} {np:b}.",
        "where [{is:a}|{is:!a}] the {adjt} {thing:a}?",
        "the {person:a} [{vt:a}|{vt:!a}] {np:b}.",
    ),
    unseen=(
        "why [{does:a}|{does:!a}] the {person:a} {vt:base} {np:b}?",
        "the {adjt} {thing:a} [{was:a}|{was:!a}] in the {place:sg}.",
    ),
)

# The number of the nearest noun is independent of the subject's.
ATTRACTOR = Phenomenon(
    "attractor_agreement",
    frames=(
        "the {person:a} {mod} [{is:a}|{is:!a}] {adjp}.",
        "the {thing:a} near the {thing:b} [{is:a}|{is:!a}] {adjt}.",
        "the {person:a} who the {person:b} {vt:past} [{is:a}|{is:!a}] {adjp}.",
        "the {person:a} who {vt:past} the {person:b} [{has:a}|{has:!a}] {vi:pp}.",
        "the {thing:a} that the {person:b} {vs:past} [{was:a}|{was:!a}] {adjt}.",
        "the {person:a} who the {person:b} [{vt:b}|{vt:!b}] {vi:past}.",
        "the {person:a} who [{vt:a}|{vt:!a}] the {person:b} {vi:past}.",
        "[{is:a}|{is:!a}] the {person:a} near the {person:b} {adjp}?",
        "{np:c} {claim:past} that the {person:a} {mod} [{was:a}|{was:!a}] {adjp}.",
        "the {person:a} who {claim:past} that the {person:b} {vi:past} [{is:a}|{is:!a}] {adjp}.",
        "the {person:a} who the {person:b} near the {person:c} {vt:past} [{is:a}|{is:!a}] {adjp}.",
        "the {person:sg}'s {thing:a} near the {thing:b} [{is:a}|{is:!a}] {adjt}.",
    ),
    unseen=(
        "which {thing:a} near the {thing:b} [{is:a}|{is:!a}] {adjt}?",
        "the {person:a} with the {adjt} {thing:b} [{has:a}|{has:!a}] {vi:pp}.",
        "the {thing:a} that the {person:b} near the {place:sg} {vs:past} [{is:a}|{is:!a}] {adjt}.",
    ),
)

DETERMINER = Phenomenon(
    "determiner_noun",
    weight=2,
    frames=(
        "{np} {vs:past} [{dem:a}|{dem:!a}] {thing:a}.",
        "[{dem:a}|{dem:!a}] {adjp} {person:a} {vi:past}.",
        "{np} {vs:past} {quant:a} {adjt} [{thing:a}|{thing:!a}].",
        "{quant:a} {adjp} [{person:a}|{person:!a}] {vi:past} {when}.",
        "{np} {vs:past} [{dem:a}|{dem:!a}] very {adjt} {thing:a}.",
        "the {person:b} near [{dem:a}|{dem:!a}] {place:a} {vi:past}.",
        "one of the [{person:pl}|{person:sg}] {vt:past} {np}.",
        "{quant:a} [{person:a}|{person:!a}] {mod} {vi:past}.",
    ),
    unseen=(
        "did {np} {vs:base} [{dem:a}|{dem:!a}] {adjt} {thing:a}?",
        "the {person:b} who {vs:past} {quant:a} [{thing:a}|{thing:!a}] {vi:past}.",
    ),
)

# The antecedent c-commands the reflexive within its clause; a closer noun of the other gender does not.
BINDING = Phenomenon(
    "binding",
    frames=(
        "the {kin:g.a} {refl:past} [{self:g.a}|{self:g.!a}].",
        "the {kin:g.sg} near the {kin:!g.sg} {refl:past} [{self:g.sg}|{self:!g.sg}].",
        "{name:g} {claim:past} that {name:!g} {refl:past} [{self:!g.sg}|{self:g.sg}].",
        "the {kin:g.sg} who {vt:past} {name:h} {refl:past} [{self:g.sg}|{self:!g.sg}].",
        "{name:g}'s {kin:h.sg} {refl:past} [{self:h.sg}|{self:!h.sg}].",
        "{name:g} {order:past} {name:!g} to {refl:base} [{self:!g.sg}|{self:g.sg}].",
        "{name:g} promised {name:!g} to {refl:base} [{self:g.sg}|{self:!g.sg}].",
        "[{name:g}|{self:g.sg}] {refl:past} [{self:g.sg}|{name:g}].",
        "{name:g} {claim:past} that [{he:g}|{self:g.sg}] {vi:past}.",
        "the {kin:g.sg} who the {kin:h.sg} {vt:past} {refl:past} [{self:g.sg}|{self:!g.sg}].",
    ),
    unseen=(
        "did the {kin:g.sg} near {name:!g} {refl:base} [{self:g.sg}|{self:!g.sg}]?",
        "{name:h} {claim:past} that {name:g}'s {kin:!g.sg} {refl:past} [{self:!g.sg}|{self:g.sg}].",
    ),
)

PRONOUN_CASE = Phenomenon(
    "pronoun_case",
    weight=2,
    frames=(
        "[{pro:nom}|{pro:acc}] {vt:past} {np}.",
        "{np} {vt:past} [{pro:acc}|{pro:nom}].",
        "{np} {claim:past} that [{pro:nom}|{pro:acc}] {vt:past} {np}.",
        "the {person:a} near [{pro:acc}|{pro:nom}] {vi:past}.",
        "{np} {order:past} [{pro:acc}|{pro:nom}] to {vi:base}.",
        "what did [{pro:nom}|{pro:acc}] {vs:base}?",
        "the {person:a} who [{pro:nom}|{pro:acc}] {vt:past} {vi:past}.",
        "the {person:a} who {vt:past} [{pro:acc}|{pro:nom}] {vi:past}.",
    ),
    unseen=(
        "{np} {vi:past} because [{pro:nom}|{pro:acc}] {vt:past} {np}.",
        "{np} {vs:past} the {thing:sg} for [{pro:acc}|{pro:nom}].",
    ),
)

# Predicates: arguments and their form, auxiliaries, voice, prepositions, complements.

ARGUMENT_STRUCTURE = Phenomenon(
    "argument_structure",
    frames=(
        "{np} [{vi:past}|{vs:past}] {when}.",
        "{np} [{vs:past}|{vi:past}] the {thing:b} {when}.",
        "the {person:a} near the {thing:b} [{vi:past}|{vs:past}].",
        "the {person:a} {mod} [{vs:past}|{vi:past}] the {adjt} {thing:c}.",
        "did {np} [{vs:base}|{vi:base}] the {thing:b}?",
        "{np} {modal} [{vi:base}|{vs:base}] in the {place:sg}.",
        "{np} [{give:past}|{tell:past}] {np} the {thing:sg}.",
        "{np} [{tell:past}|{give:past}] that {np} {vi:past}.",
        "{np} {tell:past} [the {thing:sg} to {np}|{np} the {thing:sg}].",
        "{np} put [the {thing:b} on|on the {thing:b}] the {thing:sg}.",
    ),
    unseen=(
        "{np} {try:past} to [{vi:base}|{vs:base}] in the {place:sg}.",
        "{np} {try:past} to [{vs:base}|{vi:base}] the {thing:b}.",
    ),
)

PASSIVE = Phenomenon(
    "passive",
    frames=(
        "the {thing:a} {was:a} [{vs:pp} by {np}|{vs:pp} {np}].",
        "{np:a} {has:a} [{vs:pp} the {thing:b}|{vs:pp} by the {thing:b}].",
        "the {thing:a} {was:a} [{virr:pp}|{virr:past}] by {np}.",
        "{np} [{virr:past}|{virr:pp}] the {thing:b}.",
        "the {person:a} {was:a} [{vt:pp}|{vi:pp}] {when}.",
        "the {person:a} {mod} had [{vi:pp}|{vo:pp}].",
        "the {thing:a} [{was:a}|{has:a}] {vs:pp} by {np}.",
        "{np:a} [{has:a}|{was:a}] {vs:pp} the {thing:b}.",
        "{np:a} {was:a} [{give:pp}|{tell:pp}] the {thing:b}.",
        "the {thing:a} {was:a} {tell:pp} [to {np}|{np}].",
        "the {thing:a} that {was:a} [{virr:pp}|{virr:past}] by {np} {is:a} {adjt}.",
        "the {thing:a} that {np} [{virr:past}|{virr:pp}] {is:a} {adjt}.",
    ),
    unseen=(
        "{was:a} the {thing:a} {vs:pp} [by {np}|{np}]?",
        "{np} {claim:past} that the {thing:a} {was:a} [{virr:pp}|{virr:past}].",
    ),
)

AUXILIARY = Phenomenon(
    "auxiliary",
    weight=2,
    frames=(
        "{np:a} {has:a} [{vi:pp}|{vi:ing}|{vi:base}].",
        "{np:a} {is:a} [{vi:ing}|{vi:base}] in the {place:sg}.",
        "{np} {modal} [{vi:base}|{vi:past}|{vi:ing}] {often}.",
        "{np} did not [{vs:base}|{vs:past}] the {thing:b}.",
        "{np} [{modal} have|have {modal}] {vi:pp}.",
        "{np:a} [{has:a} been|been {has:a}] {vi:ing}.",
        "{np} [{modal} be|be {modal}] {vi:ing}.",
        "{np} [{modal} not|not {modal}] {vs:base} the {thing:b}.",
        "{has:a} the {person:a} {mod} [{vi:pp}|{vi:base}]?",
        "{modal} the {person:a} {mod} [{vi:base}|{vi:pp}]?",
        "the {person:a} who {vt:past} {np} {is:a} [{vi:ing}|{vi:base}].",
        "the {person:a} who {is:a} {vi:ing} {modal} [{vt:base}|{vt:ing}] {np}.",
    ),
    unseen=(
        "what {has:a} {np:a} [{vs:pp}|{vs:base}]?",
        "the {person:a} who {modal} {vi:base} {has:a} [{vs:pp}|{vs:base}] the {thing:b}.",
    ),
)

SELECTION = Phenomenon(
    "complement_selection",
    weight=2,
    frames=(
        "{np} [{vprep:right}|{vprep:wrong}|{vprep:worse}] {np}.",
        "{np:a} {is:a} [{aprep:right}|{aprep:wrong}|{aprep:worse}] the {thing:b}.",
        "the {person:a} who [{vprep:right}|{vprep:wrong}|{vprep:worse}] {np} {vi:past}.",
        "the {person:a} {mod} {was:a} [{aprep:right}|{aprep:wrong}|{aprep:worse}] {np}.",
        "{np} {claim:past} [that|whether] {np} {vi:past}.",
        "{np} {wonder:past} [whether|that] {np} {vi:past}.",
        "{np} {enjoy:past} [{vs:ing}|to {vs:base}] the {thing:b}.",
        "{np} {refuse:past} [to {vs:base}|{vs:ing}] the {thing:b}.",
        "{np} {make:past} {np} [{vi:base}|to {vi:base}].",
        "{np} {force:past} {np} [to {vi:base}|{vi:base}].",
    ),
    unseen=(
        "the {person:a} that {np} [{vprep:right}|{vprep:wrong}|{vprep:worse}] {is:a} {adjp}.",
        "the {person:a} who {enjoy:past} [{vs:ing}|to {vs:base}] the {thing:b} {vi:past}.",
        "does {np:sg} wonder [whether|that] {np} {vs:past} the {thing:b}?",
    ),
)

# Only some heads take an expletive subject, an object that controls, or an object that is moved.
CONTROL_RAISING = Phenomenon(
    "control_raising",
    frames=(
        "there [{seem:past}|{try:past}] to be {weak:a} {thing:a} in the {place:sg}.",
        "it [{seem:past}|{try:past}] that {np} {vt:past} {np}.",
        "{np} [{force:past}|{seem:past}] {np} to {vt:base} {np}.",
        "{np:a} {is:a} [eager|easy] to {vo:base} {np}.",
        "{np:a} {is:a} [easy|eager] to {vo:base}.",
        "to {vo:base} the {person:b} is [easy|eager].",
        "{np} [persuaded|tried] {np} to {vt:base} {np}.",
        "{np} [tried|persuaded] to {vt:base} {np}.",
        "the {person:a} {mod} {is:a} [eager|easy] to {vs:base} the {thing:c}.",
        "the {person:a} {mod} {is:a} [easy|eager] to {vo:base}.",
    ),
    unseen=(
        "there [{seem:past}|{try:past}] to be a {person:sg} near the {thing:b}.",
        "the {person:a} who {vt:past} {np} [tried|persuaded] to {vi:base}.",
    ),
)

# Clauses: relatives, questions and islands, coordination, word order.

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

# A question word leaves a gap, however far away, but it cannot be moved out of an island.
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

# Meaning: polarity items and their licensers, comparison, existence.

# The licenser must c-command the item: a negation inside a relative clause does not.
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

PHENOMENA: tuple[Phenomenon, ...] = (
    AGREEMENT,
    ATTRACTOR,
    DETERMINER,
    BINDING,
    PRONOUN_CASE,
    ARGUMENT_STRUCTURE,
    PASSIVE,
    AUXILIARY,
    SELECTION,
    CONTROL_RAISING,
    RELATIVE_CLAUSE,
    QUESTION,
    ISLAND,
    COORDINATION,
    WORD_ORDER,
    POLARITY,
    COMPARATIVE,
    EXISTENTIAL,
)
