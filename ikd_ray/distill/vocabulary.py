"""Training only the embedding rows that the data uses.

A dense optimizer step over a whole vocabulary costs as much as several layers, and a task uses a fraction of the
rows. Rows without gradient and without weight decay do not move, so to train the rows in use and to put them back
is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ikd_ray.data.batches import Batch
from ikd_ray.data.tokens import TokenSplit


class CompactVocabulary:
    """A smaller word embedding that stands in for a model's while it trains on some rows of one split."""

    def __init__(self, embedding: nn.Embedding, split: TokenSplit, pad_id: int, used: np.ndarray) -> None:
        # Ids up to the padding's keep their numbers: models and `nn.Embedding` know it by number.
        rows = torch.from_numpy(np.union1d(np.arange(pad_id + 1), split.ids.flat(used)).astype(np.int64))
        self._embedding = embedding
        self._rows = rows.to(embedding.weight.device)
        self._lookup = torch.zeros(embedding.num_embeddings, dtype=torch.int64, device=self._rows.device)
        self._lookup[self._rows] = torch.arange(len(rows), device=self._rows.device)
        self._small = nn.Parameter(embedding.weight.detach()[self._rows])

    def translate(self, batch: Batch) -> Batch:
        """The batch with ids that count the smaller embedding's rows: for the model, not for its teacher."""
        return replace(batch, ids=self._lookup[batch.ids])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the smaller embedding; after it the rows are back in the whole one."""
        whole = self._embedding.weight
        self._embedding.weight = self._small
        try:
            yield
        finally:
            self._embedding.weight = whole
            with torch.no_grad():
                whole[self._rows] = self._small
