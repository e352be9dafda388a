"""Resources that the executor's workers share, and those of each worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """Lets pieces through in their order."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = 0
        self._stopped = False

    @contextmanager
    def wait_for(self, index: int) -> Iterator[None]:
        """Wait until all pieces before this one are through, or until there was a stop."""
        with self._condition:
            while self._next != index and not self._stopped:
                self._condition.wait()
        yield
        with self._condition:
            self._next = index + 1
            self._condition.notify_all()

    def stop(self) -> None:
        """Let everybody through: something failed."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()


class Scratch:
    """One worker's memory for the elements that a piece is cast from."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._taken = 0

    def clear(self) -> None:
        """Forget what was given out."""
        self._taken = 0

    def take(self, size: int) -> tuple[bytearray, int]:
        """Give a buffer, and where in it so many bytes are free."""
        if self._taken + size > len(self._buffer):
            # What was given out before keeps the old buffer alive as long as it is in use.
            self._buffer, self._taken = bytearray(max(size, 2 * len(self._buffer))), 0
        start = self._taken
        self._taken += size + -size % 8
        return self._buffer, start
