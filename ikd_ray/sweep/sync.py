"""A sweep's records, between the machine that runs or reads it and the URI that its output folder stands for.

Where that stands for itself, nothing here does anything. Trials' students stay away until they are asked for.
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
from ikd_ray.records import SPACE_FILE, STUDY_FILE, SWEEP_FILE, TRIAL_FILE, TrialRecord, trial_folder
from ikd_ray.report.summary_files import SUMMARY_FILES
from ikd_ray.storage import store
from ikd_ray.storage.remote import SharedStorage

FILES = (SWEEP_FILE, SPACE_FILE, TASK_FILE, *SUMMARY_FILES)


class SweepSync:
    """One sweep as its driver has it, which goes on where the URI is away for a while."""

    def __init__(self, output: SharedStorage, sweep: Path, tell: Callable[[str], None]) -> None:
        """
        Args:
            sweep: its folder, below the output's.
            tell: called with a line for the user.
        """
        self._output, self._sweep, self._tell = output, sweep, tell

    def pull(self) -> None:
        """Get what other nodes have left of the sweep."""
        with self._may_be_away():
            pull_sweep(self._output, self._sweep)

    def fetch_trial(self, trial: str) -> None:
        """Get the record of a trial that has ended, on whichever node."""
        with self._may_be_away():
            _record(self._output, self._sweep, trial)

    def push_trial(self, trial: str) -> None:
        """Leave a trial's folder for others."""
        with self._may_be_away():
            self._output.upload(trial_folder(self._sweep, trial))

    def forget(self, trial: str) -> None:
        """A trial is to run once more.

        Raises:
            OSError: the URI cannot be reached.
        """
        self._output.delete(trial_folder(self._sweep, trial))

    def push(self) -> None:
        """Leave all that this machine has, and others need to go on or to look at."""
        if self._output.uri is None:
            return
        with self._may_be_away():
            for folder in (self._sweep / "trials").glob("[!.]*"):
                if store.MANIFEST not in self._output.list_names(folder) and store.is_intact(folder):
                    self._output.upload(folder)
            for name in FILES:
                if (self._sweep / name).exists():
                    self._output.upload_file(self._sweep / name)
            if (self._sweep / STUDY_FILE).exists():
                self._push_study()

    def _push_study(self) -> None:
        """As a copy of its own: the file may be in the middle of a change."""
        study = self._sweep / STUDY_FILE
        with tempfile.TemporaryDirectory() as room:
            copy = Path(room) / STUDY_FILE
            with closing(sqlite3.connect(study)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            self._output.upload_file(study, copy)

    @contextmanager
    def _may_be_away(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._tell(
                f"{self._output.uri} cannot be reached ({first_line(error)}); if nothing else says that all is "
                "well at the end, --resume delivers what it lacks"
            )


def pull_sweep(output: SharedStorage, sweep: Path) -> None:
    """Get what other machines have left of a sweep.

    Raises:
        OSError: the URI cannot be reached.
    """
    for name in FILES:
        output.download_file(sweep / name)
    study = sweep / STUDY_FILE
    before = study.stat().st_ino if study.exists() else None
    output.download_file(study)
    if before and study.stat().st_ino != before:
        study.with_name(f"{STUDY_FILE}-journal").unlink(missing_ok=True)  # it was of the one that went
    for trial in output.list_names(sweep / "trials"):
        _record(output, sweep, trial)


def pull_sweeps(output: SharedStorage) -> None:
    """The same of all sweeps."""
    for name in output.list_names(output.folder):
        if SWEEP_FILE in output.list_names(output.folder / name):
            pull_sweep(output, output.folder / name)


def pull_students(
    output: SharedStorage, sweep: Path, trials: Sequence[TrialRecord], *, tokens: bool = False
) -> None:
    """Get trials' students, and the teacher for its tokenizer.

    Args:
        tokens: also the examples, as tokens.

    Raises:
        OSError: the URI cannot be reached.
    """
    if output.uri is None:
        return
    with suppress(ValueError, TypeError, KeyError):  # who exports them says what is wrong with the records
        about = records.read_sweep(sweep)
        for trial in trials:
            output.download(trial_folder(sweep, trial.id))
        output.download(output.folder / "cache" / "teachers" / about.teacher["key"])
        if tokens:
            output.download(tokens_folder(output.folder, about))


def _record(output: SharedStorage, sweep: Path, trial: str) -> None:
    folder = trial_folder(sweep, trial)
    if output.uri and not store.is_intact(folder):
        output.download(folder, only=(TRIAL_FILE,))
