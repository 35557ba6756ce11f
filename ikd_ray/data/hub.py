"""Whether the Hugging Face hub can be asked, found out once and briefly."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

PROBE_SECONDS = 2.0
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def hub_reachable() -> bool:
    """Whether the hub (or HF_ENDPOINT, if set) answers; False where the environment asks to stay offline.

    The endpoint is asked once in the life of the process, for at most `PROBE_SECONDS`.
    """
    from huggingface_hub import constants

    if any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE_VARIABLES):
        return False
    return _answers(constants.ENDPOINT)


def offline_unless_reachable() -> bool:
    """`hub_reachable()`; where that is False, the process goes offline for good.

    Then Hugging Face libraries load what their caches hold and fail at once on anything else, instead of
    retrying for half a minute.
    """
    if hub_reachable():
        return True
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    # The libraries read the environment when they are imported, so one that was must be told.
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        from datasets import config

        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and logs below errors of `datasets` and `huggingface_hub` off the terminal."""
    import datasets
    import huggingface_hub.utils

    modules = (datasets, huggingface_hub.utils)
    loggers = (datasets.logging, huggingface_hub.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    shown = [module for module in modules if not module.are_progress_bars_disabled()]
    for logger in loggers:
        logger.set_verbosity_error()
    for module in shown:
        module.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        for module in shown:
            module.enable_progress_bars()


@cache
def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    statuses: list[int] = []

    def ask() -> None:
        # The hub library's own client, so that its proxies and certificates count. Which exceptions that
        # client raises differs between its versions, and every one of them means: no answer.
        try:
            statuses.append(get_session().head(endpoint, timeout=PROBE_SECONDS).status_code)
        except Exception:
            return

    # A thread, because no client's timeout bounds the look-up of the name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(statuses) and statuses[0] < 500
