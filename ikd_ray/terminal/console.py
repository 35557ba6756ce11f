"""What the user of a sweep sees: live on a terminal, one line per event in a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ikd_ray.analysis.objectives import Objectives
from ikd_ray.analysis.savings import Savings
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
from ikd_ray.records import TrialRecord
from ikd_ray.terminal import interrupts
from ikd_ray.terminal.progress_table import ProgressTable, Row, Step
from ikd_ray.terminal.summary_tables import FAILED_SHOWN, FRONT_SHOWN, front_table

LABEL = 10  # columns of a note's label
PLAIN_WIDTH = 100  # of tables in a file
PROGRESS_EVERY_S = 30.0  # plain: at most one line on a step's progress in this time
EPOCH_EVERY_S = 10.0  # plain: the same for a trial's epochs within a stage
REFRESHES = 4  # a second


class Console:
    """A sweep's face. All methods are called from one thread; none of them waits for the drawing.

    Args:
        file: a text stream; none: standard output.
        now: seconds, from any origin.
    """

    def __init__(self, file: IO[str] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        file = file or sys.stdout
        if hasattr(file, "reconfigure"):
            file.reconfigure(errors="replace")  # a character it cannot encode must not end a sweep
        options: dict[str, Any] = {"file": file, "markup": False, "emoji": False, "highlight": False}
        self._terminal = Terminal(**options)
        # rich alone would also take a pipe for a terminal where FORCE_COLOR is set.
        self._live = file.isatty() and self._terminal.is_interactive
        if not self._live:
            self._terminal = Terminal(**options, force_terminal=False, width=PLAIN_WIDTH)
        self._now = now
        self._step = Step("", now)
        self._board = ProgressTable(0, 1, "", now)
        self._said: dict[str, float] = {}  # plain: when a line on this was last written
        self._awaited: dict[str, int] = {}  # the epoch that a trial was last said to wait for

    def heading(self, text: str) -> None:
        """The title, once."""
        self._line(Text(clean(text), style="bold"))

    def note(self, label: str, text: str) -> None:
        """A fact about the sweep."""
        if self._live:
            self._line(Text.assemble((clean(label).ljust(LABEL), "cyan"), f" {clean(text)}"))
        else:
            self._line(f"{clean(label)}: {clean(text)}")

    def warn(self, text: str) -> None:
        """Something nobody may miss."""
        if self._live:
            title = Text("WARNING", style="bold red")
            self._terminal.print(
                Panel(Text(clean(text), style="bold"), title=title, title_align="left", border_style="red")
            )
        else:
            self._line(f"WARNING: {clean(text)}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A stage of the job, while the block runs."""
        interrupts.raise_if_interrupted()
        step = self._step = Step(text, self._now)
        self._said["progress"] = step.started
        self._plain(f"{step.text} ...")
        with self._shown(step):
            try:
                yield
            except BaseException as error:
                took = step.end(_outcome(error))
                self._plain(f"{step.text}: {step.outcome} after {duration(took)}")
                raise
            interrupts.raise_if_interrupted()
            self._plain(f"{step.text}: done in {duration(step.end('done'))}")

    def progress(self, done: int, total: int, unit: str) -> None:
        """How far the step is."""
        progress = self._step.advance(done, total, unit)
        if not self._live and self._is_due("progress", PROGRESS_EVERY_S):
            self._line(f"  {progress}")

    def epoch(self, label: str, number: int, total: int, metrics: dict[str, float]) -> None:
        """An epoch of the step."""
        line = f"{clean(label)} epoch {number}/{total}: {metrics_line(metrics)}"
        self._step.add_epoch(line)
        self._plain(f"  {line}")

    @contextmanager
    def sweep(self, total: int, concurrent: int, metric: str) -> Iterator[None]:
        """The table of trials, while the block runs.

        Args:
            total: trials that will run.
            concurrent: how many at once, at most.
            metric: what trials are compared by, greater is better, e.g. `dev/mcc`.
        """
        board = self._board = ProgressTable(total, concurrent, metric, self._now)
        self._plain(f"sweep: {total} trials, {concurrent} at a time ...")
        outcome = "ended"
        try:
            with self._shown(board, transient=True):
                yield
        except BaseException as error:
            outcome = _outcome(error)
            raise
        finally:
            counts = f"{board.finished} finished, {board.failed} failed of {board.total} trials"
            self._line(f"sweep {outcome} after {duration(board.elapsed)}: {counts}")

    def trial_started(self, id: str, number: int, params: dict[str, Any]) -> None:
        """A trial starts, or goes on after it waited."""
        if self._board.go_on(id):
            return
        row = self._board.start(id, number, params)
        self._said[id] = self._now()
        values = " ".join(f"{name}={_brief(value)}" for name, value in params.items())
        self._trial(row, f"started: {clean(values, MAX_REASON_CHARS)}")

    def trial_epoch(
        self,
        id: str,
        *,
        epoch: int,
        remaining: int,
        stage: int,
        stages: int,
        stage_name: str,
        metrics: dict[str, float],
        epoch_s: float,
        reused: bool = False,
    ) -> None:
        """A trial's epoch, counted from 1, of which at most `remaining` follow.

        Args:
            reused: another trial trained it, so that it took no time.
        """
        board = self._board
        row = board.epoch(
            id,
            None if reused else epoch_s,
            epoch=epoch,
            remaining=remaining,
            stage=stage,
            stages=stages,
            stage_name=stage_name,
            metrics=dict(metrics),
        )
        if not self._live and (self._is_due(id, EPOCH_EVERY_S) or not remaining):
            name = short_stage(clean(stage_name), 24)
            where = f"epoch {epoch}/{epoch + remaining}, stage {stage}/{stages} ({name})"
            left = row.time_left(self._now())
            end = (", reused" if reused else "") + ("" if left is None else f", {duration(left)} left")
            self._trial(row, f"{where}: {self._measured(row)}{end}")

    def trial_waits(self, id: str) -> None:
        """A trial leaves its place until there is an epoch that another one trains."""
        row = self._board.wait(id)
        awaited = row.epoch + 1
        if self._awaited.get(id) != awaited:  # it may look, and wait again, many times
            self._awaited[id] = awaited
            self._trial(row, f"waits for epoch {awaited}, which another trial trains")

    def trial_died(self, id: str) -> None:
        """A trial's process has died; the trial leaves its place until it is started again."""
        row = self._board.wait(id)
        after = f"after epoch {row.epoch}" if row.epoch else "from its start"
        self.warn(
            f"{row.title}: its process died (killed, out of memory, or its machine is gone); it goes on {after}"
        )

    def trial_finished(self, id: str, metrics: dict[str, float]) -> None:
        """A trial ended well."""
        row = self._board.end(id, metrics=metrics)
        assert row.ended is not None
        saved = f", {row.reused} reused ({duration(row.metrics['time/saved_s'])} saved)" if row.reused else ""
        self._trial(row, f"finished in {duration(row.ended - row.started)}: {self._measured(row)}{saved}")
        self._standing()

    def trial_failed(self, id: str, reason: str) -> None:
        """A trial ended badly."""
        row = self._board.end(id, reason=reason)
        assert row.ended is not None
        self._trial(row, f"FAILED after {duration(row.ended - row.started)}: {row.reason}")
        self._standing()

    def summary(
        self,
        *,
        front: list[TrialRecord],
        objectives: Objectives,
        teacher_metrics: dict[str, float],
        failed: list[TrialRecord],
        lines: list[tuple[str, str]],
        savings: Savings | None = None,
    ) -> None:
        """What the sweep found: the Pareto front, why trials failed, what was shared, and what to do next."""
        self._line("")
        if front:
            self._line(Text(f"Pareto front: {len(front)} student{'s' * (len(front) != 1)}", style="bold"))
            self._terminal.print(front_table(front[:FRONT_SHOWN], objectives, teacher_metrics))
            self._more(len(front) - FRONT_SHOWN)
        else:
            self._line(Text("Pareto front: empty, no trial finished", style="bold"))
        if failed:
            self._line("")
            self._line(Text(f"{len(failed)} failed", style="bold red"))
        for trial in failed[:FAILED_SHOWN]:
            self._line(f"  #{trial.number} {clean(trial.id)}: {clean(trial.reason, MAX_REASON_CHARS)}")
        self._more(len(failed) - FAILED_SHOWN)
        self._line("")
        if savings and savings.reused:
            self.note("sharing", str(savings))
        for label, text in lines:
            self.note(label, text)

    def _more(self, hidden: int) -> None:
        if hidden > 0:
            self._line(Text(f"  … and {hidden} more", style="dim"))

    def _measured(self, row: Row) -> str:
        metric = self._board.metric
        measured = f"{short_name(metric)} {decimal(row.metrics.get(metric))}"
        return f"{measured}, attention KL {decimal(row.metrics.get('dev/attention_kl'))}"

    def _standing(self) -> None:
        board = self._board
        best = f", best {short_name(board.metric)} {board.best_text()}" if board.best else ""
        counts = f"{board.finished + board.failed} of {board.total} ended, {board.failed} failed"
        self._plain(f"[{clock(board.elapsed)}] {counts}{best}, time left {clock(board.time_left())}")

    def _trial(self, row: Row, text: str) -> None:
        self._plain(f"[{clock(self._board.elapsed)}] {row.title} {text}")

    def _is_due(self, topic: str, every_s: float) -> bool:
        now = self._now()
        if now - self._said.get(topic, float("-inf")) < every_s:
            return False
        self._said[topic] = now
        return True

    def _plain(self, line: str) -> None:
        if not self._live:
            self._line(line)

    def _line(self, text: Text | str) -> None:
        # Not wrapped here: a path or a command stays in one piece, to be copied or searched for.
        self._terminal.print(text, soft_wrap=True)

    @contextmanager
    def _shown(self, view: RenderableType, transient: bool = False) -> Iterator[None]:
        if not self._live:
            yield
            return
        live = Live(
            view,
            console=self._terminal,
            refresh_per_second=REFRESHES,
            transient=transient,
            # What was sent to a file must get there.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )
        try:
            with live:
                yield
        finally:
            self._terminal.show_cursor(True)  # a second Ctrl-C may have cut rich's own tidying short


def _outcome(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
