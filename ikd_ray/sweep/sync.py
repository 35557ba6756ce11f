"""Synchronization of a sweep's records between a machine and the URI that its output folder stands for.

Without a URI nothing here does anything. Students are transferred only when they are requested.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from ikd_ray import records
from ikd_ray.analysis.evaluation_data import tokens_folder
from ikd_ray.data.task_file import TASK_FILE
from ikd_ray.errors import first_line
from ikd_ray.records import (
    SPACE_FILE,
    STUDY_FILE,
    SWEEP_FILE,
    TEST_FILE,
    TRIAL_FILE,
    TrialRecord,
    trial_folder,
)
from ikd_ray.report.summary_files import SUMMARY_FILES
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage

FILES = (SWEEP_FILE, SPACE_FILE, TASK_FILE, TEST_FILE, *SUMMARY_FILES)


class SweepSync:
    """Synchronizes one sweep for its driver, and tolerates a URI that cannot be reached for a while.

    `notify` is then called with a message for the user.
    """

    def __init__(self, output: SharedStorage, sweep: Path, notify: Callable[[str], None]) -> None:
        self._output, self._sweep, self._notify = output, sweep, notify

    def pull(self) -> None:
        """Download the sweep's records that other nodes wrote."""
        with self._tolerate_outage():
            pull_sweep(self._output, self._sweep)

    def pull_trial(self, trial: str) -> None:
        """Download the record of an ended trial."""
        with self._tolerate_outage():
            _pull_trial(self._output, self._sweep, trial)

    def push_trial(self, trial: str) -> None:
        """Upload a trial's folder."""
        with self._tolerate_outage():
            self._output.upload(trial_folder(self._sweep, trial))

    def delete_trial(self, trial: str) -> None:
        """Delete a trial that is to run again, here and at the URI.

        Raises:
            OSError: The URI cannot be reached.
        """
        self._output.delete(trial_folder(self._sweep, trial))

    def push(self) -> None:
        """Upload everything that resuming the sweep or viewing it needs."""
        if self._output.uri is None:
            return
        with self._tolerate_outage():
            for folder in (self._sweep / "trials").glob("[!.]*"):
                if store.MANIFEST not in self._output.list_names(folder) and store.is_intact(folder):
                    self._output.upload(folder)
            for name in FILES:
                if (self._sweep / name).exists():
                    self._output.upload_file(self._sweep / name)
            if (self._sweep / STUDY_FILE).exists():
                self._push_study()

    def _push_study(self) -> None:
        """Upload a consistent copy of the study: the database may be in the middle of a transaction."""
        study = self._sweep / STUDY_FILE
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / STUDY_FILE
            with closing(sqlite3.connect(study)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            self._output.upload_file(study, copy)

    @contextmanager
    def _tolerate_outage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._notify(
                f"{self._output.uri} cannot be reached ({first_line(error)}); if nothing else says that all is "
                "well at the end, --resume delivers what it lacks"
            )


def pull_sweep(output: SharedStorage, sweep: Path) -> None:
    """Download the records of a sweep that other machines wrote.

    Raises:
        OSError: The URI cannot be reached.
    """
    for name in FILES:
        output.download_file(sweep / name)
    study = sweep / STUDY_FILE
    before = study.stat().st_ino if study.exists() else None
    output.download_file(study)
    if before and study.stat().st_ino != before:
        study.with_name(f"{STUDY_FILE}-journal").unlink(missing_ok=True)  # belonged to the replaced file
    for trial in output.list_names(sweep / "trials"):
        _pull_trial(output, sweep, trial)


def pull_sweeps(output: SharedStorage) -> None:
    """Download the records of all sweeps.

    Raises:
        OSError: The URI cannot be reached.
    """
    for name in output.list_names(output.folder):
        if SWEEP_FILE in output.list_names(output.folder / name):
            pull_sweep(output, output.folder / name)


def pull_students(
    output: SharedStorage, sweep: Path, trials: Sequence[TrialRecord], *, tokens: bool = False
) -> None:
    """Download trials' students, and the teacher for its tokenizer; with `tokens` the tokenized data set too.

    Raises:
        OSError: The URI cannot be reached.
    """
    if output.uri is None:
        return
    with suppress(ValueError, TypeError, KeyError):  # the export reports what is wrong with a record
        record = records.read_sweep(sweep)
        for trial in trials:
            output.download(trial_folder(sweep, trial.id))
        output.download(output.folder / "cache" / "teachers" / record.teacher["key"])
        if tokens:
            output.download(tokens_folder(output.folder, record))


def _pull_trial(output: SharedStorage, sweep: Path, trial: str) -> None:
    folder = trial_folder(sweep, trial)
    if output.uri and not store.is_intact(folder):
        output.download(folder, only=(TRIAL_FILE,))
