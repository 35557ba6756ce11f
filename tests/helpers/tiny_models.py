"""Models and data that train in an instant; spawned processes import them, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, BertTokenizerFast
from transformers.utils import logging

from ikd_ray.data.batches import Batch
from ikd_ray.data.dataset import Dataset, Split
from ikd_ray.data.tokens import TaskData, tokenize
from ikd_ray.distill.encoder import Encoder
from ikd_ray.distill.targets import Targets, build_targets
from ikd_ray.tasks import get_task

logging.disable_progress_bar()

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{i}" for i in range(52)]
VOCABULARY = [*SPECIAL, *WORDS, "##s", "##ed", "."]
HIDDEN, HEADS = 32, 4

POSITIONS_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "data2vec-text",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
)
ROTARY = {"num_key_value_heads": HEADS, "bos_token_id": 2, "eos_token_id": 3}
FAMILY_SIZES = {
    "electra": {"embedding_size": 24},
    "modernbert": {"local_attention": 4, "bos_token_id": 2, "cls_token_id": 2}
    | {"eos_token_id": 3, "sep_token_id": 3},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
    | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_biased_input": False},
    "mobilebert": {"embedding_size": 24, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "eurobert": ROTARY,
    "gte": ROTARY,
    "nomic_bert": ROTARY,
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 24},
    "roformer": {"embedding_size": 32, "rotary_value": False},
}
"""Settings of configurations that not all families have."""


def write_tokenizer(folder: Path, pad_id: int = 0):
    """Save and return a WordPiece tokenizer whose padding is an entry of the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), pad_token=VOCABULARY[pad_id])
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_classifier(
    family: str = "bert",
    layers: int = 4,
    labels: int = 2,
    dropout: float = 0.0,
    seed: int = 0,
    settings: dict[str, object] | None = None,
):
    """Return a randomly initialised classifier with weights so large that layers and heads differ."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "num_labels": labels,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    if family == "distilbert":
        sizes |= {"hidden_dim": 48, "dropout": dropout, "attention_dropout": dropout}
        sizes |= {"seq_classif_dropout": dropout}
    else:
        sizes |= {"intermediate_size": 48, "hidden_dropout_prob": dropout}
        sizes |= {"attention_probs_dropout_prob": dropout}
    if family in POSITIONS_AFTER_PADDING:
        sizes |= {"type_vocab_size": 1, "pad_token_id": 1}
    sizes |= FAMILY_SIZES.get(family, {}) | (settings or {})
    if family == "modernbert":
        sizes |= dict.fromkeys(("attention_dropout", "mlp_dropout", "embedding_dropout"), dropout)
    config = CONFIG_MAPPING[family](**sizes)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a copy without them
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def write_teacher(folder: Path, layers: int = 4, family: str = "bert", **settings: object) -> Path:
    """Write a randomly initialised encoder without a head, as one downloads it."""
    model = make_classifier(family, layers, settings=settings)
    model.base_model.save_pretrained(folder)
    write_tokenizer(folder, model.config.pad_token_id)
    return folder


def make_encoder(family: str = "bert", layers: int = 4, labels: int = 2, dropout: float = 0.0, seed: int = 0):
    return Encoder(make_classifier(family, layers, labels, dropout, seed))


def random_batch(lengths: list[int], seed: int = 0, pad_id: int = 0, labels: int = 2) -> Batch:
    """Return a batch of token ids above the special ones, padded to the longest."""
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.where(mask, rng.integers(5, len(VOCABULARY), mask.shape), pad_id)
    segments = np.where(mask, np.cumsum(rng.random(mask.shape) < 0.2, axis=1) > 0, 0)
    gold = (
        rng.integers(0, labels, len(lengths)) if labels > 1 else rng.random(len(lengths)).astype(np.float32)
    )
    tensors = (torch.from_numpy(a) for a in (ids.astype(np.int64), segments.astype(np.int64), mask, gold))
    return Batch(np.arange(len(lengths)), *tensors)


def _sentences(rng: np.random.Generator, count: int, longest: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def make_dataset(task_name: str = "cola", train: int = 48, dev: int = 20, seed: int = 0) -> Dataset:
    """Return sentences of 1 to 16 words with a label that can be learnt: the parity of the first word's number."""
    task, rng = get_task(task_name), np.random.default_rng(seed)
    splits = {}
    for names in task.splits:
        count = train if names.name == "train" else dev
        first = _sentences(rng, count, 16)
        second = _sentences(rng, count, 6) if task.is_pair else None
        number = np.array([int(text.split()[0][1:]) for text in first])
        labels = (number % 6).astype(np.float32) if task.is_regression else number % len(task.labels)
        splits[names.name] = Split(first, second, labels)
    return Dataset(task, splits, "folder", "made up")


def make_data(root: Path, task_name: str = "cola", train: int = 48, dev: int = 20, seed: int = 0) -> TaskData:
    tokenizer = write_tokenizer(root / "tokenizer")
    return tokenize(make_dataset(task_name, train, dev, seed), tokenizer, "tiny", 32, root / "data")


def make_targets(folder: Path, data: TaskData, teacher: Encoder, attention: bool = True) -> Targets:
    """Build the targets of every layer of the teacher."""
    list(build_targets(folder, data, teacher, range(1, len(teacher.layers) + 1), attention))
    return Targets(folder, data, teacher, attention)


def copy_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed_tensors(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Return the names of the tensors that are not equal bit for bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


# A value for each field of a trial that is not its default.
NON_DEFAULT_FIELDS = {
    "regime": "id",
    "student_layers": 2,
    "student_init": "first",
    "temperature": 3.0,
    "lambda_": 0.7,
    "soft_labels": "always",
    "internal_losses": "kl",
    "internal_weight": 0.5,
    "epochs": 3,
    "epochs_per_layer": 4,
    "cosine_threshold": 0.3,
    "train": "upto",
    "top_trains": "head",
    "embeddings": "train",
    "learning_rate": 2e-4,
    "batch_size": 8,
    "seed": 1,
    "assistant_layers": 1,
    "train_fraction": 0.5,
    "unlabelled_fraction": 0.5,
}
