"""Tiny students of a sweep, as trials leave them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from ikd_ray.data import store
from ikd_ray.distill.encoder import Encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat", "##s", "."]


def student(layers: int, labels: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(layers)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=labels,
    )
    # As students are in a sweep: wrapped, with the project's own attention.
    return Encoder(BertForSequenceClassification(config).eval()).model


def write_tokenizer(teacher: Path) -> None:
    """The folder of a teacher of which nothing but the tokenizer is needed."""
    with store.aside(teacher) as folder:
        vocabulary = folder / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS))
        BertTokenizer(str(vocabulary)).save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"not for students")
        (folder / "teacher.json").write_text("{}")
