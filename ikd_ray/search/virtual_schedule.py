"""The virtual clock of a sweep: which results a suggestion sees, from planned costs alone.

Trials are scheduled on as many virtual slots as run at once, each for as long as its planned cost. A suggestion sees
the results of the trials that have ended by then on this clock, with some slack. So it depends neither on how fast a
machine is nor on which of two trials ends first, and a long trial does not hold up those beside it.
"""

from __future__ import annotations

import heapq
import math

SLACK = 0.25
"""Share of its cost by which one of two trials at once may take longer than planned before the other waits for it.

With twice as many at once, of which the latest counts, it is as much more.
"""
MAX_SLACK = 1.0


class VirtualSchedule:
    """Start and end of each trial on the virtual clock, in the unit of the costs."""

    def __init__(self, slots: int, others: int = 0) -> None:
        """Start without trials; `slots` of them run at once, and so many `others` that are not scheduled here."""
        self._free_from = [0.0] * slots
        self._slack = min(SLACK * math.log2(slots + others), MAX_SLACK)
        self._hidden: list[tuple[float, int]] = []
        self._count = 0

    def add(self, cost: float) -> None:
        """Schedule the next trial in the slot that is free first."""
        start = heapq.heappop(self._free_from)
        heapq.heappush(self._free_from, start + cost)
        heapq.heappush(self._hidden, (start + (1 + self._slack) * cost, self._count))
        self._count += 1

    def pop_visible(self) -> list[int]:
        """Return the trials whose results are visible to the next one and were not at the last call, in order."""
        visible = []
        while self._hidden and self._hidden[0][0] <= self._free_from[0]:
            visible.append(heapq.heappop(self._hidden)[1])
        return visible
