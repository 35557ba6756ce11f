"""A sweep in Python: its trials, its Pareto front, its students and its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ikd_ray.analysis.objectives import main_metric
from ikd_ray.analysis.pareto import ALWAYS, pareto_front, trial_rows
from ikd_ray.analysis.student_selection import Pick, parse_pick, select_students
from ikd_ray.api.arguments import changed_arguments, named_arguments
from ikd_ray.api.library_settings import quiet_libraries
from ikd_ray.api.student import Student
from ikd_ray.export.hf_export import ExportError, export_student, folder_name
from ikd_ray.formatting import GENERATED_WARNING, clean
from ikd_ray.records import TrialRecord, read_sweep, read_trials
from ikd_ray.storage.remote import SharedStorage, open_storage
from ikd_ray.sweep.deliverables import draw_report, export_trials, require_onnx
from ikd_ray.sweep.request import find_sweep, tracking_uri_of
from ikd_ray.sweep.sync import pull_students
from ikd_ray.terminal.console import Console
from ikd_ray.terminal.notebook import mime_bundle
from ikd_ray.terminal.summary_tables import comparison_lines, front_table

if TYPE_CHECKING:
    import pandas as pd


def open_sweep(name: str, output: str | os.PathLike[str] = "outputs") -> Sweep:
    """Open a sweep that has run, or runs: its trials are those that have ended by now.

    Args:
        name: the sweep's name.
        output: folder of the sweeps, or `s3://BUCKET/PREFIX`.

    Raises:
        UsageError: there is no such sweep.
    """
    with named_arguments({"name": name, "output": output}):
        storage = open_storage(os.path.expanduser(output))
        return Sweep(storage, find_sweep(name, "--name", storage))


class Sweep:
    """A sweep that has run. A notebook shows its front.

    Attributes:
        name: its name.
        folder: its folder.
    """

    def __init__(self, storage: SharedStorage, folder: Path) -> None:
        """Read the records of the sweep in a folder of an output folder."""
        self.name, self.folder = folder.name, folder
        self._storage, self._record, self._records = storage, read_sweep(folder), read_trials(folder)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial that has ended, finished or failed, indexed by its id, in the order of their numbers.

        The columns are those of `trials.csv`: `number`, `status`, `on_front`, every parameter, every final metric,
        `duration_s`, and the `reason` of a failure.
        """
        import pandas as pd

        rows = trial_rows(self._records, self._front)
        return pd.DataFrame(rows, columns=None if rows else list(ALWAYS)).set_index("id")

    @cached_property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` of the Pareto front, the smallest student first."""
        return self.trials.loc[[trial.id for trial in self._front]]

    @property
    def best(self) -> Student:
        """The best finished trial's student, by the first objective on dev, or on held-out examples.

        Raises:
            UsageError: no trial has finished.
        """
        [trial] = select_students(self._record, self._records, Pick())
        return self._student(trial)

    def student(self, id: str) -> Student:
        """Return the student of a finished trial, on the front or not.

        Args:
            id: the trial's id, or a rule that picks one, as of `export`.

        Raises:
            UsageError: the sweep has no such trial, or it has failed.
        """
        with named_arguments({"pick": id}):
            [trial] = select_students(self._record, self._records, parse_pick([id]))
        return self._student(trial)

    def export(
        self,
        to: str | os.PathLike[str] = "exports",
        pick: str | None = None,
        *,
        onnx: bool = False,
        int8: bool = False,
        force: bool = False,
    ) -> list[Path]:
        """Write the front's students, or the one that is picked, as Hugging Face folders.

        Args:
            to: folder for the students' folders.
            pick: `best`, `recommended`, `smallest-within X`, `fastest-within X`, or the id of a trial.
            onnx: also write an ONNX model, compared with PyTorch.
            int8: also write an ONNX model with 8-bit weights.
            force: replace folders that exist.

        Returns:
            The students' folders.

        Raises:
            UsageError: there is no such student, or its folder exists already or cannot be written.
            ExportError: a student is damaged or cannot be converted; the others are there.
        """
        arguments = {"to": to, "pick": pick, "onnx": onnx, "int8": int8, "force": force}
        with named_arguments(changed_arguments(Sweep.export, arguments)), quiet_libraries():
            picked = None if pick is None else parse_pick([pick])
            require_onnx(onnx, int8)
            trials = select_students(self._record, self._records, picked)
            target = Path(os.path.expanduser(to))
            students, problems = export_trials(
                self._storage, self.folder, trials, target, onnx=onnx, int8=int8, force=force
            )
        if problems:
            raise ExportError("\n".join(problems))
        return [student.folder for student in students]

    def report(self, sentence: str | Sequence[str] = (), tracking_uri: str | None = None) -> Path:
        """Draw the sweep's report, and log it to MLflow.

        Args:
            sentence: text whose attention is drawn, or a pair of texts; by default one of the dev set.
            tracking_uri: MLflow store; by default that of the sweep.

        Returns:
            The report's page; its figures are beside it.

        Raises:
            UsageError: no trial has finished, or the sentence is not an example of the task.
        """
        texts, console = [sentence] if isinstance(sentence, str) else list(sentence), Console()
        with named_arguments({"sentence": sentence}), quiet_libraries():
            uri = tracking_uri_of(self._record, tracking_uri, "--name")
            files, problem = draw_report(
                self._storage, self.folder, texts, uri, lambda text: console.note("report", text)
            )
        if problem:
            console.warn(f"the report is not in MLflow: {problem}")
        return files[0]

    @cached_property
    def _front(self) -> list[TrialRecord]:
        return pareto_front(self._records, self._record.objectives)

    def _student(self, trial: TrialRecord) -> Student:
        name = folder_name(self._record, trial)
        return Student(trial, name, main_metric(self._record.objectives), partial(self._write, trial))

    def _write(self, trial: TrialRecord, folder: Path) -> None:
        with self._storage.usage_errors():
            pull_students(self._storage, self.folder, [trial])
        export_student(self.folder, trial, folder)

    def _view(self) -> RenderableType:
        lines: list[RenderableType] = [Text(self._title(), style="bold")]
        if self._record.data["generated"]:
            lines.append(Text(GENERATED_WARNING, style="bold red"))
        if self._front:
            lines.append(front_table(self._front, self._record))
            lines.extend(Text(line) for line in comparison_lines(self._front, self._record))
        return Group(*lines)

    def _title(self) -> str:
        ended, front = self._record.count(len(self._records)), len(self._front)
        return (
            f"{clean(self._record.task)}, sweep {clean(self.name)}: {ended} ended, "
            f"{front} student{'s' * (front != 1)} on the Pareto front"
        )

    def _repr_html_(self) -> str:
        return mime_bundle(self._view())["text/html"]

    def __repr__(self) -> str:
        return f"<Sweep {self._title()}>"
