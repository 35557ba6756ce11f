"""Agreement: of verb and subject, determiner and noun, reflexive and antecedent, pronoun and its case."""

from ikd_ray.data.corpus.phenomena import Phenomenon

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

# The nearest noun is no guide: its number is drawn apart from the subject's.
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

# The antecedent commands the reflexive from within its clause; a closer noun of the other gender does not.
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

PHENOMENA = (AGREEMENT, ATTRACTOR, DETERMINER, BINDING, PRONOUN_CASE)
