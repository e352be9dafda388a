"""A temporary file with holes that knows which of its bytes are there."""

from __future__ import annotations

import tempfile
import threading
from bisect import bisect_left
from collections.abc import Callable

from vaeconv.checkpoint import system
from vaeconv.errors import OutputError


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


class SparseFile:
    """Holds parts of a file at their places. Its name is gone at once, and it goes when closed.

    Safe to use from several threads at once.

    Args:
        size: Length of the whole file.
        on_write: Called with the number of bytes of each piece, one call at a time.

    Raises:
        OutputError: It cannot be made.
    """

    def __init__(self, size: int, on_write: Callable[[int], None] | None = None) -> None:
        self._on_write = on_write
        self._present = Intervals()
        self._lock = threading.Lock()
        try:
            self._file = tempfile.TemporaryFile(prefix="vaeconv-")
            self._file.truncate(size)
        except OSError as error:
            raise _unwritable(error) from error

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the intervals between ``start`` and ``end`` that are not there."""
        with self._lock:
            return self._present.gaps(start, end)

    def write(self, position: int, data: memoryview) -> None:
        """Put bytes at their place.

        Raises:
            OutputError: The disk is full or broken.
        """
        done = 0
        # A thread that nobody waits for may still write after the close; under the lock it can
        # never meet a descriptor that is another file's by now.
        with self._lock:
            try:
                while done < len(data):
                    done += system.write_at(self._file.fileno(), data[done:], position + done)
            except OSError as error:
                raise _unwritable(error) from error
            self._present.add(position, position + done)
            if self._on_write and done:
                self._on_write(done)

    def read_into(self, position: int, buffer: memoryview) -> None:
        """Fill the buffer with bytes that are there."""
        done = 0
        while done < len(buffer):
            done += system.read_at(self._file.fileno(), buffer[done:], position + done)

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._file.close()


def _unwritable(error: OSError) -> OutputError:
    return OutputError(
        f"the temporary file cannot be written: {error.strerror}",
        where=tempfile.tempdir,  # None where no folder would do
        hint="make room there or set TMPDIR",
    )
