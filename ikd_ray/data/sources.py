"""Sources of examples: tables, a GLUE folder, the Hugging Face hub, the embedded corpus (cola only)."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ikd_ray.data.dataset import TEST, Dataset, Split, add_unlabelled, format_sizes
from ikd_ray.data.dev_split import describe_dev, draw_dev
from ikd_ray.data.readers import (
    find_glue_folder,
    find_table,
    read_glue_split,
    read_hub_table,
    read_tables,
    read_unlabelled,
    require_folder,
)
from ikd_ray.data.task_file import CustomTask
from ikd_ray.errors import UsageError, causes
from ikd_ray.formatting import clean
from ikd_ray.tasks import GlueTask

if TYPE_CHECKING:
    import datasets

HUB_NAME = "nyu-mll/glue"
PROBE_SECONDS = 2.0
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def load_dataset(
    task: GlueTask | CustomTask, data_dir: Path | None, unlabelled_file: Path | None = None
) -> Dataset:
    """Load a task's examples, and add the texts of a table without labels to those of train.

    They come from `data_dir` alone if it is given (a task file with tables requires it), else from the hub or its local
    cache, else, for cola only, from the embedded corpus. The table is `unlabelled_file`, that of the flag
    `--unlabelled`, else the one that a task file names. Dev is drawn from train where a task file says so.

    Raises:
        UsageError: the folder's content is wrong (the message names file and line), or no source has the task.
    """
    dataset = _load_labelled(task, data_dir)
    if unlabelled_file is not None:
        path = find_table(unlabelled_file.parent, unlabelled_file.name)
        return add_unlabelled(dataset, *read_unlabelled(path, task, "--unlabelled"))
    if isinstance(task, CustomTask) and task.unlabelled_file and data_dir:
        return add_unlabelled(dataset, *read_unlabelled(find_table(data_dir, task.unlabelled_file), task))
    return dataset


def _load_labelled(task: GlueTask | CustomTask, data_dir: Path | None) -> Dataset:
    if isinstance(task, CustomTask):
        return _from_custom_source(task, data_dir)
    if data_dir is not None:
        return _from_glue_folder(task, data_dir)
    try:
        return _from_hub(task)
    except _HubError as error:
        if task.name == "cola":
            return _from_corpus(task, str(error))
        raise UsageError(
            f"task {task.name}: {error}; pass --data-dir with a folder that holds {task.folder}/train.tsv"
        ) from None


def hub_reachable() -> bool:
    """Return whether the hub (or HF_ENDPOINT, if set) answers; `False` where the environment asks to stay offline.

    The endpoint is asked once per process, for at most `PROBE_SECONDS`.
    """
    from huggingface_hub import constants

    if any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE_VARIABLES):
        return False
    return _answers(constants.ENDPOINT)


def offline_unless_reachable() -> bool:
    """Return `hub_reachable()`, and switch the process to offline mode where that is `False`.

    In offline mode Hugging Face libraries load what their caches hold and fail at once on anything else, instead of
    retrying for half a minute.
    """
    if hub_reachable():
        return True
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    # The libraries read the environment when they are imported; those that are imported already are set by hand.
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        from datasets import config

        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True
    return False


def _from_custom_source(task: CustomTask, data_dir: Path | None) -> Dataset:
    source: Literal["folder", "hub"] = "folder" if data_dir else "hub"
    if data_dir:
        where = f"folder {data_dir.resolve().name}"
        splits = _read_dataset_folder(task, data_dir) if task.dataset else read_tables(data_dir, task)
    elif task.dataset:
        where, splits = _read_hub_dataset(task)
    else:
        names = ", ".join(name for _, name in task.files)
        raise UsageError(f"--data-dir is missing; give the folder that holds {names} of task {task.name}")
    test, note = splits.pop(TEST, None), ""
    if task.split:
        whole = splits["train"]
        train, dev = draw_dev(whole, task)
        splits, note = {"train": train, "dev": dev}, f"; {describe_dev(len(dev), len(whole), task)}"
    sizes = format_sizes(splits | ({TEST: test} if test else {}))
    return Dataset(task, splits, source, f"{where} ({task.name}, {sizes}){note}", test)


def _from_glue_folder(task: GlueTask, data_dir: Path) -> Dataset:
    folder = find_glue_folder(data_dir, task)
    splits: dict[str, Split] = {}
    skipped = 0
    for names in task.splits:
        splits[names.name], skipped_rows = read_glue_split(folder / names.file, task)
        skipped += skipped_rows
    note = f", {skipped} corrupted rows skipped" if skipped else ""
    description = f"GLUE folder {data_dir.resolve().name} ({task.folder}, {format_sizes(splits)}{note})"
    return Dataset(task, splits, "folder", description)


class _HubError(Exception):
    """The hub did not provide the data; the message says why in one line."""


def _from_hub(task: GlueTask) -> Dataset:
    with _loading_from_hub(HUB_NAME) as is_online:
        import datasets

        tables = datasets.load_dataset(HUB_NAME, task.name)
        splits = {names.name: _hub_split(task, tables[names.hub]) for names in task.splits}
    description = f"Hugging Face {_hub_name(is_online)} {HUB_NAME} ({task.name}, {format_sizes(splits)})"
    return Dataset(task, splits, "hub", description)


@contextmanager
def _loading_from_hub(name: str) -> Iterator[bool]:
    """Load a data set quietly in the block, and turn its errors into `_HubError`; yield whether the hub answers."""
    is_online = offline_unless_reachable()
    with _quiet_hugging_face():
        try:
            yield is_online
        except Exception as error:
            # `datasets` raises errors of a dozen libraries; all of them mean that the hub has nothing for us.
            if not is_online and isinstance(error, ConnectionError):
                raise _HubError("the Hugging Face hub is out of reach and its local cache empty") from error
            which = name if is_online else f"the local cache of {name}"
            raise _HubError(f"{which} did not load ({_describe_error(error)})") from error


def _describe_error(error: Exception) -> str:
    """Return an error of `datasets` in one line; where it only says that no table could be made, its cause."""
    from datasets.exceptions import DatasetGenerationError

    if isinstance(error, DatasetGenerationError):
        *_, error = (cause for cause in causes(error) if isinstance(cause, Exception))
    return f"{type(error).__name__}: {clean(error, 160)}"


def _hub_name(is_online: bool) -> str:
    return "hub" if is_online else "hub's local cache"


def _read_hub_dataset(task: CustomTask) -> tuple[str, dict[str, Split]]:
    """Read the splits of a data set of the hub, or of its local cache; return also a text that says which.

    Raises:
        UsageError: it cannot be loaded, or its content is not what the task says.
    """
    name, revision = task.dataset, task.revision
    if os.path.exists(name):  # `datasets` would read that one
        raise UsageError(
            f"task {task.name}: {name} is also in the working folder; give it as --data-dir, or run the command in "
            "another folder to load the one of the hub"
        )
    try:
        with _loading_from_hub(name) as is_online:
            import datasets

            tables = datasets.load_dataset(name, task.config or None, revision=revision or None)
        if revision and not is_online and not _has_revision(tables, revision):
            raise _HubError(
                f"the Hugging Face hub is out of reach, and its local cache has no commit {revision} of {name}"
            )
    except _HubError as error:
        raise UsageError(
            f"task {task.name}: {error}; give --data-dir with a folder that holds a copy of {name}"
        ) from None
    title = " ".join(filter(None, (f"{name}@{revision}" if revision else name, task.config)))
    return f"Hugging Face {_hub_name(is_online)} {title}", _read_dataset(tables, task, name)


def _has_revision(tables: datasets.DatasetDict, revision: str) -> bool:
    """Return whether a data set, which offline is any that the local cache has, is that of a commit."""
    paths = [Path(file["filename"]) for table in tables.values() for file in table.cache_files]
    return all(revision in path.parts for path in paths)


def _read_dataset_folder(task: CustomTask, data_dir: Path) -> dict[str, Split]:
    """Read the splits of a copy of a data set in a folder; `UsageError` as in `_read_hub_dataset`."""
    require_folder(data_dir, f"give the folder that holds a copy of {task.dataset}")
    import datasets

    # Its Arrow files are of no use later: a sweep keeps its tokens.
    with tempfile.TemporaryDirectory(prefix="ikd-dataset-") as cache, _quiet_hugging_face():
        try:
            tables = datasets.load_dataset(str(data_dir), task.config or None, cache_dir=cache)
        except Exception as error:  # as for the hub
            raise UsageError(
                f"--data-dir {data_dir}: not a data set that datasets.load_dataset reads ({_describe_error(error)}); "
                f"give the folder that holds a copy of {task.dataset}"
            ) from None
        return _read_dataset(tables, task, str(data_dir))


def _read_dataset(tables: datasets.DatasetDict, task: CustomTask, where: str) -> dict[str, Split]:
    splits = {}
    for split, name in task.hub_splits:
        if name not in tables:
            advice = f"write `splits: {{{split}: NAME}}` in the task file"
            if split == "dev":
                advice += ", or `split: 0.1` to draw dev from train"
            raise UsageError(f"{where}: there is no split {name!r} (it has {', '.join(tables)}); {advice}")
        splits[split] = read_hub_table(tables[name], task, f"{where} {name}")
    return splits


def _hub_split(task: GlueTask, table: datasets.Dataset) -> Split:
    names = () if task.is_regression else tuple(table.features["label"].names)
    if names != task.labels:
        raise ValueError(f"its labels are {names} where {task.labels} are right")
    columns = table.select_columns([*task.text_columns, "label"])[:]
    texts = [columns[name] for name in task.text_columns]
    dtype = np.float32 if task.is_regression else np.int64
    return Split(texts[0], texts[1] if task.is_pair else None, np.array(columns["label"], dtype))


def _from_corpus(task: GlueTask, reason: str) -> Dataset:
    from ikd_ray.data.corpus import generate  # imported late: most runs have data of their own

    splits = {}
    for name, judgements in zip(("train", "dev"), generate(seed=0), strict=True):
        labels = np.array([judgement.label for judgement in judgements], np.int64)
        splits[name] = Split([judgement.sentence for judgement in judgements], None, labels)
    sizes = format_sizes(splits)
    description = (
        f"GENERATED corpus (not CoLA): made by this project's own grammar, {sizes}, because {reason}"
    )
    return Dataset(task, splits, "embedded", description)


@contextmanager
def _quiet_hugging_face() -> Iterator[None]:
    """Hide the progress bars of `datasets` and `huggingface_hub`, and their logs below errors."""
    import datasets
    import huggingface_hub.utils

    modules = (datasets, huggingface_hub.utils)
    loggers = (datasets.logging, huggingface_hub.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    with_bars = [module for module in modules if not module.are_progress_bars_disabled()]
    for logger in loggers:
        logger.set_verbosity_error()
    for module in with_bars:
        module.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        for module in with_bars:
            module.enable_progress_bars()


@cache
def _answers(endpoint: str) -> bool:
    """Return whether an HTTP server answers at the endpoint with anything but a server error."""
    from huggingface_hub import get_session

    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(get_session().head(endpoint, timeout=PROBE_SECONDS).status_code)
        except Exception:
            return

    # In a thread, because no client's timeout covers the lookup of the host name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(statuses) and statuses[0] < 500
