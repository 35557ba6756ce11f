"""Settings of Hugging Face libraries and PyTorch during a call, restored after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging

TOKENIZER_THREADS = "TOKENIZERS_PARALLELISM"


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep Hugging Face libraries from printing while the block runs, and restore what it changes.

    These are the verbosity and progress bars of transformers, the threads of PyTorch, and those of tokenizers, which
    warn where a process that has them is forked.
    """
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    threads, variable = torch.get_num_threads(), os.environ.get(TOKENIZER_THREADS)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    os.environ.setdefault(TOKENIZER_THREADS, "false")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if variable is None:
            os.environ.pop(TOKENIZER_THREADS, None)
