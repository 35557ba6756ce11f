"""What a terminal shows while work goes on: a step of the job, the table of trials, and their arithmetic.

Both are drawn by a refreshing thread while the driver's thread changes them.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console as Terminal
from rich.console import ConsoleOptions, RenderableType
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ikd_ray.formatting import (
    MAX_REASON_CHARS,
    MISSING,
    clean,
    clock,
    decimal,
    duration,
    short_name,
    short_stage,
)

ENDED_SHOWN = 5
EPOCHS_SHOWN = 8


@dataclass(frozen=True)
class Progress:
    """How far a step is. The rate counts from the first report, not from what came before it."""

    done: int
    total: int
    unit: str
    now: float
    first_done: int
    first_time: float

    @property
    def rate(self) -> float | None:
        """Units a second."""
        took = self.now - self.first_time
        return (self.done - self.first_done) / took if took > 0 and self.done > self.first_done else None

    @property
    def time_left(self) -> float | None:
        return (self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        text = f"{self.done:,} of {self.total:,} {clean(self.unit)}"
        rate, left = self.rate, self.time_left
        if rate is None or left is None:
            return text
        return f"{text}, {rate:,.1f}/s, {duration(max(0.0, left))} left"


class Step:
    """A stage of the job. What is drawn is replaced whole, so that no half of a change is ever seen."""

    def __init__(self, text: str, now: Callable[[], float]) -> None:
        self.text, self._now = clean(text), now
        self.started = now()
        self.progress: Progress | None = None
        self.outcome: str | None = None  # "done", "failed" or "interrupted" once it ended
        self._epochs: tuple[str, ...] = ()
        self._took = 0.0
        self._spinner = Spinner("dots", style="cyan")

    def advance(self, done: int, total: int, unit: str) -> Progress:
        now, last = self._now(), self.progress
        first = (done, now)
        if last and last.done <= done and (last.total, last.unit) == (total, unit):
            first = (last.first_done, last.first_time)
        self.progress = Progress(done, total, unit, now, *first)
        return self.progress

    def add_epoch(self, line: str) -> None:
        self._epochs = (*self._epochs, line)[-EPOCHS_SHOWN:]

    def end(self, outcome: str) -> float:
        """Returns how long it took, in seconds."""
        self._took = self._now() - self.started
        self.outcome = outcome
        return self._took

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> Iterator[RenderableType]:
        # A row of the terminal for each line: the steps that follow may need more room than is left.
        title = Text(self.text, no_wrap=True, overflow="ellipsis")
        yield _beside(self._mark(), title, self._time())
        for line in self._epochs:
            yield Text(f"   {line}", style="dim", no_wrap=True, overflow="ellipsis")
        progress = self.progress
        if progress and self.outcome is None:
            bar = ProgressBar(max(1, progress.total), progress.done, width=max(8, options.max_width // 4))
            yield _beside(Text(" "), bar, Text(str(progress), no_wrap=True, overflow="ellipsis"))

    def _mark(self) -> RenderableType:
        if self.outcome is None:
            return self._spinner
        return Text("✓", style="green") if self.outcome == "done" else Text("✗", style="red")

    def _time(self) -> Text:
        if self.outcome is None:
            return Text(clock(self._now() - self.started), style="dim")
        if self.outcome == "done":
            return Text(duration(self._took), style="dim")
        return Text(f"{self.outcome} after {duration(self._took)}", style="red")


def _beside(*cells: RenderableType) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(*cells)
    return grid


@dataclass
class Row:
    """One trial as the driver hears of it. Times are the board's clock."""

    id: str
    number: int | None  # none: it failed before it started
    params: dict[str, Any]
    started: float
    epoch: int = 0
    remaining: int = 0
    stage: int = 0
    stages: int = 0
    stage_name: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    epochs_s: float = 0.0  # sum over the epochs that were trained
    trained: int = 0
    reports: int = 0
    reported: float = 0.0
    waiting_since: float | None = None  # for an epoch that another trial trains; none: it does not wait
    waited: float = 0.0  # sum of the waits that are over
    ended: float | None = None
    reason: str = ""  # of its failure

    def time_left(self, now: float) -> float | None:
        """Remaining epochs at their mean time so far, less what has passed since the last report.

        A reused epoch takes no time, and says nothing of those to come. While the trial waits, nothing passes.
        """
        if not self.trained:
            return None
        return max(0.0, self.remaining * self.epochs_s / self.trained - (self._until(now) - self.reported))

    @property
    def waits(self) -> bool:
        return self.waiting_since is not None

    def active(self, now: float) -> float:
        """Seconds in which it had one of the places."""
        return self._until(now) - self.started - self.waited

    def _until(self, now: float) -> float:
        return now if self.waiting_since is None else self.waiting_since

    def go_on(self, now: float) -> None:
        """Its wait is over, if it had one."""
        wait = now - self._until(now)
        self.waited += wait
        self.reported += wait
        self.waiting_since = None

    @property
    def title(self) -> str:
        number = MISSING if self.number is None else f"{self.number}"
        return f"#{number} {clean(self.id)}"

    @property
    def reused(self) -> str:
        """How many of its epochs, if any, others had trained."""
        count = self.metrics.get("reused_epochs", 0.0)
        return f"{count:.0f} of {count + self.metrics['trained_epochs']:.0f} epochs" if count else ""

    def param(self, name: str) -> str:
        return clean(self.params.get(name, MISSING))


class ProgressTable:
    """The trials of a sweep: those that run, the last few that ended, and what the rest adds up to."""

    def __init__(self, total: int, concurrent: int, metric: str, now: Callable[[], float]) -> None:
        self.total, self.concurrent, self.metric, self._now = total, max(1, concurrent), metric, now
        self.started = now()
        self.finished = self.failed = 0
        self.best: Row | None = None
        self._finished_s = 0.0
        self._running: dict[str, Row] = {}
        self._ended: deque[Row] = deque(maxlen=ENDED_SHOWN)  # newest first
        self._last_failure: Row | None = None
        self._lock = threading.Lock()

    def start(self, id: str, number: int | None, params: dict[str, Any]) -> Row:
        """A trial that starts."""
        row = Row(id, number, dict(params), self._now())
        with self._lock:
            self._running[id] = row
        return row

    def wait(self, id: str) -> Row:
        """A trial that leaves its place until there is an epoch that another one trains."""
        row = self._row(id)
        with self._lock:
            if not row.waits:
                row.waiting_since = self._now()
        return row

    def go_on(self, id: str) -> Row | None:
        """A trial that has started goes on; none: it has not started."""
        row = self._running.get(id)
        if row:
            with self._lock:
                row.go_on(self._now())
        return row

    def epoch(self, id: str, epoch_s: float | None, **changes: Any) -> Row:
        """An epoch's report. `epoch_s`: none for a reused one. `changes`: further fields of `Row`."""
        row = self._row(id)
        with self._lock:
            row.go_on(self._now())
            for name, value in changes.items():
                setattr(row, name, value)
            if epoch_s is not None:
                row.epochs_s += epoch_s
                row.trained += 1
            row.reports += 1
            row.reported = self._now()
        return row

    def end(self, id: str, metrics: dict[str, float] | None = None, reason: str | None = None) -> Row:
        """A trial that finished with `metrics` or failed for `reason`."""
        row = self._row(id)
        with self._lock:
            del self._running[id]
            self._ended.appendleft(row)
            row.ended = self._now()
            row.go_on(row.ended)
            if reason is None:
                row.metrics = row.metrics | (metrics or {})
                self._count_finished(row)
            else:
                row.reason = clean(reason, MAX_REASON_CHARS) or "no reason given"
                self.failed += 1
                self._last_failure = row
        return row

    def _count_finished(self, row: Row) -> None:
        self.finished += 1
        assert row.ended is not None
        self._finished_s += row.active(row.ended)
        value = row.metrics.get(self.metric, math.nan)
        if math.isfinite(value) and (self.best is None or value > self.best.metrics[self.metric]):
            self.best = row

    def _row(self, id: str) -> Row:
        # A trial may fail, or be taken up again, without having been announced.
        return self._running.get(id) or self.start(id, None, {})

    @property
    def elapsed(self) -> float:
        return self._now() - self.started

    def time_left(self) -> float | None:
        """Seconds until the last trial ends; none while that is unknown.

        Trials that have not started are taken to last as long as the mean finished one, each in the place
        that is free first. A running one has its own estimate, and before it trained an epoch the mean's rest.
        One that waits for another's epochs has no place; it gets the one that is free first, before the others.
        """
        with self._lock:
            return self._time_left()

    def _time_left(self) -> float | None:
        now = self._now()
        mean = self._finished_s / self.finished if self.finished else None
        to_start = max(0, self.total - self.finished - self.failed - len(self._running))
        if mean is None and to_start:
            return None
        free_in: list[float] = []  # each place's time until it is free
        placeless: list[float] = []  # rests of trials that wait
        for row in self._running.values():
            rest = row.time_left(now)
            if rest is None:
                if mean is None:
                    return None
                rest = max(0.0, mean - row.active(now))
            (placeless if row.waits else free_in).append(rest)
        free_in += [0.0] * (self.concurrent - len(free_in))
        heapq.heapify(free_in)
        not_started = [] if mean is None else [mean] * to_start
        for needs in [*placeless, *not_started]:
            heapq.heapreplace(free_in, free_in[0] + needs)
        return max(free_in)

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> Iterator[RenderableType]:
        with self._lock:
            parts = self._draw(options.max_width, options.size.height)
        yield from parts

    def _draw(self, width: int, height: int) -> list[RenderableType]:
        # The terminal's rows, less blank ones, heading, "more", footer, failure and the cursor's.
        room = max(1, height - 9)
        rows = sorted(self._running.values(), key=lambda row: row.waits)  # who trains stands first
        running, hidden = rows[:room], rows[room:]
        ended = list(self._ended)[: room - len(running)]
        table, stage = _empty_table(width, short_name(self.metric))
        for row in running:
            table.add_row(*self._cells(row, stage))
        for row in ended:
            table.add_row(*self._cells(row, stage), style="dim")
        parts: list[RenderableType] = [Text(), table]
        if hidden:
            waits = sum(row.waits for row in hidden)
            more = f" … and {len(hidden)} more running" + (f", of which {waits} wait" if waits else "")
            parts.append(Text(more, style="dim"))
        parts += [Text(), *self._footer(width)]
        return parts

    def _cells(self, row: Row, stage: int) -> list[Text]:
        name = f"{row.stage}/{row.stages} " if row.stages else ""
        name += short_stage(clean(row.stage_name), stage - len(name))
        epoch = str(row.epoch) if row.reports else MISSING
        if row.ended is None:
            epoch += f"/{row.epoch + row.remaining}" if row.reports else ""
            left = Text(clock(None if row.waits else row.time_left(self._now())))
            name = "waits" if row.waits else name
        elif row.reason:
            left, name = Text("failed", style="not dim red"), row.reason
        else:
            left, name = Text("done", style="not dim green"), f"took {clock(row.ended - row.started)}"
            if row.reused and len(more := f"{name}, {row.reused} reused") <= stage:
                name = more
        number = MISSING if row.number is None else str(row.number)
        values = [decimal(row.metrics.get(key)) for key in (self.metric, "dev/attention_kl")]
        texts = [number, clean(row.id), row.param("regime"), row.param("student_layers"), name, epoch]
        return [*map(Text, texts), *map(Text, values), left]

    def _footer(self, width: int) -> list[RenderableType]:
        ended = self.finished + self.failed
        counts = Text(f"{ended} of {self.total} ended")
        if self.failed:
            counts.append(f", {self.failed} failed", style="red")
        bar = ProgressBar(max(1, self.total), ended, width=min(30, max(8, width // 4)))
        best = f"   best {short_name(self.metric)} {self.best_text()}" if self.best else ""
        clocks = f" elapsed {clock(self.elapsed)}   left {clock(self._time_left())}"
        lines: list[RenderableType] = [
            _beside(Text(""), bar, counts),
            Text(clocks, no_wrap=True, overflow="ellipsis").append(best, style="bold"),
        ]
        if row := self._last_failure:
            failure = Text(f" last failure {row.title}: {row.reason}", style="red")
            failure.truncate(width, overflow="ellipsis")
            lines.append(failure)
        return lines

    def best_text(self) -> str:
        """The best finished trial: its metric, and which it is."""
        row = self.best
        assert row is not None
        number, layers = row.title.split()[0], row.param("student_layers")
        which = f"{number} {row.param('regime')}, {layers} layer{'' if layers == '1' else 's'}"
        return f"{decimal(row.metrics[self.metric])} ({which})"


def _empty_table(width: int, metric: str) -> tuple[Table, int]:
    """The table of trials, and the width of its stage column: what the others leave."""
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
