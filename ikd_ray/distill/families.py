"""Families of encoders: those that can teach, and why others cannot."""

from __future__ import annotations

from ikd_ray.distill.cls_pass import CLS_FAMILIES
from ikd_ray.errors import UsageError

FAMILIES = (
    *CLS_FAMILIES,
    "deberta",
    "deberta-v2",
    "eurobert",
    "gte",
    "jina_embeddings_v3",
    "megatron-bert",
    "mobilebert",
    "modernbert",
    "mpnet",
    "nomic_bert",
    "rembert",
    "roberta-prelayernorm",
    "roformer",
    "xlm-roberta-xl",
)
"""Families that can teach, by the `model_type` of their configurations."""

POSITIONS_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "data2vec-text",
    "mpnet",
    "roberta-prelayernorm",
    "xlm-roberta-xl",
)
"""Families that number positions from the padding's token id on, so that fewer tokens fit their tables."""

REFUSED = {
    "albert": "all its layers have the same weights, so a student of fewer layers would be as large",
    "canine": "it has layers of three kinds",
    "convbert": "its convolutions read padding, so that its answer for a text depends on the batch that the text is in",
    "esm": "its contact head needs the attention of all layers",
    "flaubert": "the parts of its layers are in lists of their own",
    "fnet": "it has no attention",
    "funnel": "its layers shorten the sequence",
    "longformer": "its attention does not reach from every token to every token",
    "mra": "its attention is an approximation, without a probability of every token for every token",
    "nystromformer": "its attention is an approximation, without a probability of every token for every token",
    "squeezebert": "it returns scores in place of attention probabilities",
    "xlm": "the parts of its layers are in lists of their own",
    "xmod": "its layers have a part for each language",
    "yoso": "its attention is an approximation, without a probability of every token for every token",
}
"""Why students of a family would be wrong or no smaller, by `model_type`."""


def unsupported_family(name: str, kind: object) -> UsageError | None:
    """Return the error for a teacher of a family that is not supported; None if it is.

    Args:
        name: the teacher, as the user gave it.
        kind: `model_type` of its configuration.
    """
    if kind in FAMILIES:
        return None
    if kind in REFUSED:
        return UsageError(f"--teacher {name}: a {kind!r} model cannot teach: {REFUSED[str(kind)]}")
    return UsageError(
        f"--teacher {name}: a {kind!r} model is not an encoder that can teach; supported: {', '.join(FAMILIES)}"
    )
