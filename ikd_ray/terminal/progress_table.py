"""Live views of a step and of a sweep's trials; a refreshing thread draws them while another one changes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ikd_ray.formatting import MISSING, clean, clock, decimal, duration, short_name, short_stage
from ikd_ray.terminal.sweep_progress import SweepProgress, TrialProgress

EPOCHS_SHOWN = 8


class StepView:
    """A step of the command. What is drawn is replaced as a whole, so that no half of a change is seen."""

    def __init__(self, text: str, now: Callable[[], float]) -> None:
        self.text, self._now = clean(text), now
        self.started = now()
        self.outcome: str | None = None  # "done", "failed" or "interrupted" once it ended
        self._seconds = 0.0
        self._epochs: tuple[str, ...] = ()
        self._progress: tuple[int, int, str, str] | None = None  # done, total, unit, text
        self._first = (0, 0.0)  # units done, and time, of the first report
        self._spinner = Spinner("dots", style="cyan")

    def advance(self, done: int, total: int, unit: str) -> str:
        """Set the progress, and return it as text with rate and time left.

        The rate counts from the first report, not from what was done before.
        """
        now, last = self._now(), self._progress
        if last is None or done < last[0] or last[1:3] != (total, unit):
            self._first = done, now
        text = f"{done:,} of {total:,} {clean(unit)}"
        units, seconds = done - self._first[0], now - self._first[1]
        if units and seconds > 0:
            left = max(0.0, (total - done) * seconds / units)
            text += f", {units / seconds:,.1f}/s, {duration(left)} left"
        self._progress = done, total, unit, text
        return text

    def add_epoch(self, line: str) -> None:
        """Add a line on an epoch."""
        self._epochs = (*self._epochs, line)[-EPOCHS_SHOWN:]

    def end(self, outcome: str) -> float:
        """End the step, and return its seconds."""
        self._seconds = self._now() - self.started
        self.outcome = outcome
        return self._seconds

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> Iterator[RenderableType]:
        # One terminal line each: later steps may need more lines than are left.
        yield _side_by_side(self._mark(), _one_line(self.text), self._time())
        for line in self._epochs:
            yield _one_line(f"   {line}", style="dim")
        if self._progress and self.outcome is None:
            done, total, _, text = self._progress
            bar = ProgressBar(max(1, total), done, width=max(8, options.max_width // 4))
            yield _side_by_side(Text(" "), bar, _one_line(text))

    def _mark(self) -> RenderableType:
        if self.outcome is None:
            return self._spinner
        return Text("✓", style="green") if self.outcome == "done" else Text("✗", style="red")

    def _time(self) -> Text:
        if self.outcome is None:
            return Text(clock(self._now() - self.started), style="dim")
        if self.outcome == "done":
            return Text(duration(self._seconds), style="dim")
        return Text(f"{self.outcome} after {duration(self._seconds)}", style="red")


class ProgressTable:
    """The trials that run, the last few that ended, and the totals of a sweep."""

    def __init__(self, progress: SweepProgress) -> None:
        self._progress = progress

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> Iterator[RenderableType]:
        with self._progress.lock:
            parts = self._draw(options.max_width, options.size.height)
        yield from parts

    def _draw(self, width: int, height: int) -> list[RenderableType]:
        # The terminal's lines without blank ones, heading, "more", footer, failure and the cursor's.
        room = max(1, height - 9)
        trials = sorted(self._progress.running.values(), key=lambda trial: trial.paused_since is not None)
        running, hidden = trials[:room], trials[room:]
        ended = list(self._progress.ended)[: room - len(running)]
        table, stage_width = _empty_table(width, short_name(self._progress.metric))
        for trial in running:
            table.add_row(*self._running_row(trial, stage_width))
        for trial in ended:
            table.add_row(*self._ended_row(trial, stage_width), style="dim")
        parts: list[RenderableType] = [Text(), table]
        if hidden:
            paused = sum(trial.paused_since is not None for trial in hidden)
            more = f" … and {len(hidden)} more running" + (f", of which {paused} wait" if paused else "")
            parts.append(Text(more, style="dim"))
        return [*parts, Text(), *self._footer(width)]

    def _running_row(self, trial: TrialProgress, stage_width: int) -> list[Text]:
        stage, epoch, left = "", MISSING, trial.time_left(self._progress.now())
        if trial.last:
            stage = f"{trial.last.stage}/{trial.last.stages} "
            stage += short_stage(clean(trial.last.stage_name), stage_width - len(stage))
            epoch = f"{trial.epoch}/{trial.epoch + trial.last.remaining}"
        if trial.paused_since is not None:
            stage, left = "waits", None
        return self._row(trial, stage, epoch, Text(clock(left)))

    def _ended_row(self, trial: TrialProgress, stage_width: int) -> list[Text]:
        epoch = str(trial.epoch) if trial.last else MISSING
        if trial.failure:
            return self._row(trial, trial.failure, epoch, Text("failed", style="not dim red"))
        assert trial.ended is not None
        text = f"took {clock(trial.ended - trial.started)}"
        if trial.reused and len(longer := f"{text}, {trial.reused} reused") <= stage_width:
            text = longer
        return self._row(trial, text, epoch, Text("done", style="not dim green"))

    def _row(self, trial: TrialProgress, stage: str, epoch: str, left: Text) -> list[Text]:
        number = MISSING if trial.number is None else str(trial.number)
        params = (trial.param("regime"), trial.param("student_layers"))
        metrics = (decimal(trial.metrics.get(name)) for name in (self._progress.metric, "dev/attention_kl"))
        return [*map(Text, (number, clean(trial.id), *params, stage, epoch, *metrics)), left]

    def _footer(self, width: int) -> list[RenderableType]:
        progress = self._progress
        counts = Text(progress.ended_text)
        if progress.failed:
            counts.append(f", {progress.failed} failed", style="red")
        bar = ProgressBar(1.0, progress.share, width=min(30, max(8, width // 4)))
        clocks = _one_line(f" elapsed {clock(progress.elapsed)}   left {clock(progress.time_left())}")
        if progress.best:
            clocks.append(f"   best {short_name(progress.metric)} {progress.best_text()}", style="bold")
        lines: list[RenderableType] = [_side_by_side(Text(""), bar, counts), clocks]
        if trial := progress.last_failure:
            failure = Text(f" last failure {trial.title}: {trial.failure}", style="red")
            failure.truncate(width, overflow="ellipsis")
            lines.append(failure)
        return lines


def _empty_table(width: int, metric: str) -> tuple[Table, int]:
    """Return the table of trials, and the width of its stage column: what the other columns leave."""
    names = ["#", "trial", "regime", "layers", "stage", "epoch", metric, "KL", "left"]
    widths = [3, 8 if width < 100 else 12, 6, 6, 0, 7, max(6, len(metric)), 6, 7]
    widths[4] = min(40, max(8, width - sum(widths) - 2 * len(widths)))
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=False)
    for name, columns in zip(names, widths, strict=True):
        left = name in ("trial", "regime", "stage")
        table.add_column(
            Text(name), width=columns, no_wrap=True, overflow="ellipsis", justify="left" if left else "right"
        )
    return table, widths[4]


def _side_by_side(*cells: RenderableType) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(*cells)
    return grid


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
