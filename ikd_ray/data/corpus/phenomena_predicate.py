"""What a predicate takes: its arguments and their form, auxiliaries, voice, prepositions, complements."""

from ikd_ray.data.corpus.phenomena import Phenomenon

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

PHENOMENA = (ARGUMENT_STRUCTURE, PASSIVE, AUXILIARY, SELECTION, CONTROL_RAISING)
