"""A set of integers kept as intervals: which bytes are here, and which are not."""

from __future__ import annotations

from bisect import bisect_left


class Intervals:
    """A set of integers, kept as sorted, disjoint, non-adjacent half-open intervals."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Add the integers from ``start`` to ``end``."""
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = low
        while high < len(self._starts) and self._starts[high] <= end:
            high += 1
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the intervals between ``start`` and ``end`` that are not in the set."""
        found = []
        index = bisect_left(self._ends, start + 1)
        while start < end:
            held = index < len(self._starts)
            stop = min(end, self._starts[index]) if held else end
            if start < stop:
                found.append((start, stop))
            start = max(start, self._ends[index]) if held else end
            index += 1
        return found
