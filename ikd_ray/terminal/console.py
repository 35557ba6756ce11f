"""Output of a running sweep: live views on a terminal and in a notebook, a line for each event in a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ikd_ray.analysis.training_costs import Savings
from ikd_ray.formatting import (
    MAX_REASON_CHARS,
    clean,
    clock,
    decimal,
    duration,
    metrics_line,
    short_name,
    short_stage,
)
from ikd_ray.records import SweepRecord, TrialRecord
from ikd_ray.redaction import redact_text
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.notebook import NotebookView, is_notebook
from ikd_ray.terminal.progress_table import ProgressTable, StepView
from ikd_ray.terminal.summary_tables import FAILED_SHOWN, FRONT_SHOWN, comparison_lines, front_table
from ikd_ray.terminal.sweep_progress import SweepProgress, TrialProgress

if TYPE_CHECKING:
    from ikd_ray.distill.epoch import Epoch

LABEL_WIDTH = 10  # columns of a note's label
FILE_WIDTH = 100  # columns of tables in a file
PROGRESS_EVERY_S = 30.0  # least time between two lines on a step's progress in a file
EPOCH_EVERY_S = 10.0  # the same for the epochs of a trial
REFRESHES_PER_S = 4


def rich_console(file: IO[str] | None = None) -> RichConsole:
    """Return rich's console, for text without markup; where it writes no terminal it is `FILE_WIDTH` columns wide."""
    file = file or sys.stdout
    options: dict[str, Any] = {"file": file, "markup": False, "emoji": False, "highlight": False}
    console = RichConsole(**options)
    # With FORCE_COLOR rich alone would take a pipe for a terminal.
    if file.isatty() and console.is_interactive:
        return console
    options |= {"force_terminal": False, "force_interactive": False, "force_jupyter": False}
    return RichConsole(**options, width=FILE_WIDTH)


class Console:
    """The output of a command. All methods are called from one thread, and none waits for the drawing.

    It is written to `file`, or to standard output. `now` returns the time in seconds from any origin.
    """

    def __init__(self, file: IO[str] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._in_notebook = file is None and is_notebook()
        file = file or sys.stdout
        if hasattr(file, "reconfigure"):
            file.reconfigure(errors="replace")  # a character that cannot be encoded must not end a sweep
        self._rich = rich_console(file)
        self._is_live = self._rich.is_interactive or self._in_notebook
        self._now = now
        self._step = StepView("", now)
        self._progress = SweepProgress(0, 1, "", now)
        self._last_lines: dict[str, float] = {}  # time of the last line on a subject in a file
        self._awaited: dict[str, int] = {}  # the last epoch that a trial was said to wait for

    def heading(self, text: str) -> None:
        """Print the title."""
        self._print_line(Text(clean(text), style="bold"))

    def note(self, label: str, text: str) -> None:
        """Print a fact about the sweep."""
        if self._is_live:
            self._print_line(Text.assemble((clean(label).ljust(LABEL_WIDTH), "cyan"), f" {clean(text)}"))
        else:
            self._print_line(f"{clean(label)}: {clean(text)}")

    def warn(self, text: str) -> None:
        """Print a warning that cannot be overlooked."""
        text = redact_text(text)
        if self._is_live and not self._in_notebook:
            title = Text("WARNING", style="bold red")
            self._rich.print(
                Panel(Text(clean(text), style="bold"), title=title, title_align="left", border_style="red")
            )
        else:
            self._print_line(f"WARNING: {clean(text)}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step of the command while the block runs."""
        interrupts.raise_if_interrupted()
        step = self._step = StepView(text, self._now)
        self._last_lines["progress"] = step.started
        self._print_to_file(f"{step.text} ...")
        with self._show(step):
            try:
                yield
            except BaseException as error:
                seconds = step.end(_outcome(error))
                self._print_to_file(f"{step.text}: {step.outcome} after {duration(seconds)}")
                raise
            interrupts.raise_if_interrupted()
            self._print_to_file(f"{step.text}: done in {duration(step.end('done'))}")

    def progress(self, done: int, total: int, unit: str) -> None:
        """Show the progress of the step."""
        text = self._step.advance(done, total, unit)
        if not self._is_live and self._is_due("progress", PROGRESS_EVERY_S):
            self._print_line(f"  {text}")

    def epoch(self, label: str, number: int, total: int, metrics: dict[str, float]) -> None:
        """Show an epoch of the step."""
        line = f"{clean(label)} epoch {number}/{total}: {metrics_line(metrics)}"
        self._step.add_epoch(line)
        self._print_to_file(f"  {line}")

    @contextmanager
    def sweep(self, total: int, concurrent: int, metric: str, limit_s: float | None = None) -> Iterator[None]:
        """Show the trials while the block runs; see `SweepProgress`."""
        progress = self._progress = SweepProgress(total, concurrent, metric, self._now, limit_s)
        what = f"{total} trials" if limit_s is None else f"trials for {duration(limit_s)}"
        self._print_to_file(f"sweep: {what}, {concurrent} at a time ...")
        outcome = "ended"
        try:
            with self._show(ProgressTable(progress), transient=True):
                yield
        except BaseException as error:
            outcome = _outcome(error)
            raise
        finally:
            of = f" of {total} trials" if limit_s is None else ""
            counts = f"{progress.finished} finished, {progress.failed} failed{of}"
            self._print_line(f"sweep {outcome} after {duration(progress.elapsed)}: {counts}")

    def trial_started(self, id: str, number: int, params: dict[str, Any]) -> None:
        """Show that a trial starts, or goes on after a pause."""
        if self._progress.resume(id):
            return
        trial = self._progress.start(id, number, params)
        self._last_lines[id] = self._now()
        values = " ".join(f"{name}={_format_value(value)}" for name, value in params.items())
        self._print_trial(trial, f"started: {clean(values, MAX_REASON_CHARS)}")

    def trial_epoch(self, id: str, epoch: Epoch) -> None:
        """Show an epoch of a trial."""
        trial = self._progress.report(id, epoch)
        if not self._is_live and (self._is_due(id, EPOCH_EVERY_S) or not epoch.remaining):
            name = short_stage(clean(epoch.stage_name), 24)
            place = f"epoch {epoch.epoch}/{epoch.epoch + epoch.remaining}, stage {epoch.stage}/{epoch.stages} ({name})"
            reused = ", reused" if epoch.reused_from else ""
            left = trial.time_left(self._now())
            end = "" if left is None else f", {duration(left)} left"
            self._print_trial(trial, f"{place}: {self._main_metrics(trial)}{reused}{end}")

    def trial_paused(self, id: str) -> None:
        """Show that a trial has given up its slot until another trial has trained an epoch."""
        trial = self._progress.pause(id)
        awaited = trial.epoch + 1
        if self._awaited.get(id) != awaited:  # it may be resumed and paused again many times
            self._awaited[id] = awaited
            self._print_trial(trial, f"waits for epoch {awaited}, which another trial trains")

    def trial_died(self, id: str) -> None:
        """Show that a trial's process died; the trial is paused until it is started again."""
        trial = self._progress.pause(id)
        place = f"after epoch {trial.epoch}" if trial.epoch else "from its start"
        self.warn(
            f"{trial.title}: its process died (killed, out of memory, or its machine is gone); it goes on {place}"
        )

    def trial_finished(self, id: str, metrics: dict[str, float]) -> None:
        """Show that a trial finished."""
        trial = self._progress.finish(id, metrics)
        assert trial.ended is not None
        text = f"finished in {duration(trial.ended - trial.started)}: {self._main_metrics(trial)}"
        if trial.reused:
            text += f", {trial.reused} reused ({duration(trial.metrics['time/saved_s'])} saved)"
        self._print_trial(trial, text)
        self._print_totals()

    def trial_failed(self, id: str, reason: str) -> None:
        """Show that a trial failed."""
        trial = self._progress.fail(id, reason)
        assert trial.ended is not None
        self._print_trial(trial, f"FAILED after {duration(trial.ended - trial.started)}: {trial.failure}")
        self._print_totals()

    def summary(
        self,
        *,
        sweep: SweepRecord,
        front: list[TrialRecord],
        failed: list[TrialRecord],
        lines: list[tuple[str, str]],
        savings: Savings | None = None,
    ) -> None:
        """Print the Pareto front, the failures, what sharing saved, and notes on what to do next."""
        self._print_line("")
        if front:
            count = f"{len(front)} student{'s' * (len(front) != 1)}"
            self._print_line(Text(f"Pareto front: {count}", style="bold"))
            self._rich.print(front_table(front[:FRONT_SHOWN], sweep))
            self._print_hidden(len(front) - FRONT_SHOWN)
            for line in comparison_lines(front[:FRONT_SHOWN], sweep):
                self._print_line(line)
        else:
            self._print_line(Text("Pareto front: empty, no trial finished", style="bold"))
        if failed:
            self._print_line("")
            self._print_line(Text(f"{len(failed)} failed", style="bold red"))
        for trial in failed[:FAILED_SHOWN]:
            self._print_line(f"  #{trial.number} {clean(trial.id)}: {clean(trial.reason, MAX_REASON_CHARS)}")
        self._print_hidden(len(failed) - FAILED_SHOWN)
        self._print_line("")
        if savings and savings.reused:
            self.note("sharing", str(savings))
        for label, text in lines:
            self.note(label, text)

    def _print_hidden(self, count: int) -> None:
        if count > 0:
            self._print_line(Text(f"  … and {count} more", style="dim"))

    def _main_metrics(self, trial: TrialProgress) -> str:
        metric = self._progress.metric
        main = f"{short_name(metric)} {decimal(trial.metrics.get(metric))}"
        return f"{main}, attention KL {decimal(trial.metrics.get('dev/attention_kl'))}"

    def _print_totals(self) -> None:
        progress = self._progress
        best = f", best {short_name(progress.metric)} {progress.best_text()}" if progress.best else ""
        counts = f"{progress.ended_text}, {progress.failed} failed"
        self._print_to_file(
            f"[{clock(progress.elapsed)}] {counts}{best}, time left {clock(progress.time_left())}"
        )

    def _print_trial(self, trial: TrialProgress, text: str) -> None:
        self._print_to_file(f"[{clock(self._progress.elapsed)}] {trial.title} {text}")

    def _is_due(self, subject: str, interval_s: float) -> bool:
        now = self._now()
        if now - self._last_lines.get(subject, float("-inf")) < interval_s:
            return False
        self._last_lines[subject] = now
        return True

    def _print_to_file(self, line: str) -> None:
        if not self._is_live:
            self._print_line(line)

    def _print_line(self, text: Text | str) -> None:
        # Not wrapped, so that paths and commands can be copied and searched for.
        self._rich.print(text, soft_wrap=True)

    @contextmanager
    def _show(self, view: RenderableType, transient: bool = False) -> Iterator[None]:
        if self._in_notebook:
            with NotebookView(view, transient):
                yield
            return
        if not self._is_live:
            yield
            return
        live = Live(
            view,
            console=self._rich,
            refresh_per_second=REFRESHES_PER_S,
            transient=transient,
            # A stream that the user redirected to a file stays there.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        try:
            with live:
                yield
        finally:
            self._rich.show_cursor(True)  # a second Ctrl-C may have interrupted rich's own cleanup


def _outcome(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
