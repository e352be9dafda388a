"""A temporary file with holes that knows which of its bytes are there."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable

from vaeconv.checkpoint import system
from vaeconv.checkpoint.hub.intervals import Intervals
from vaeconv.errors import OutputError


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
