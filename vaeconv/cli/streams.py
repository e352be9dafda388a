"""stdout and stderr, whatever they lead to: closed, full, or of an encoding of few letters."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

from vaeconv.errors import OutputError

STDOUT = "standard output"
BROKEN_PIPE = 141  # who read the output has gone, and would not read a message either


class ReaderGone(BaseException):
    """Nobody reads stdout any more; no exception of the kinds that libraries deal with."""


class _Stdout(io.RawIOBase):
    """Standard output, whose failures are told from those of files.

    Args:
        raw: What writes there: descriptor 1, or a console of Windows.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int | None:
        """Write bytes.

        Raises:
            OutputError: There is no room, or the device is broken.
            ReaderGone: It is a pipe that was closed at the other end.
        """
        try:
            return self._raw.write(data)
        except BrokenPipeError as error:
            raise ReaderGone from error
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.EINVAL:  # what Windows says of such a pipe
                raise ReaderGone from error
            raise OutputError(f"cannot be written: {error.strerror}", where=STDOUT) from error


def _raw_stdout(found: Any) -> io.RawIOBase:
    """Give descriptor 1; of a console of Windows, what writes letters there and not bytes."""
    raw: io.RawIOBase | None = getattr(getattr(found, "buffer", None), "raw", None)
    if raw is None or isinstance(raw, io.FileIO):
        return io.FileIO(1, "wb", closefd=False)
    return raw


def prepare_streams() -> None:
    """Make sure that text can be written: what an encoding lacks appears as an escape.

    A closed descriptor is opened on the null device, so that no file of the run's takes its number
    and gets what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    found: Any = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Stdout(_raw_stdout(found))),
        encoding=found.encoding if found else "utf-8",
        errors="backslashreplace",
        line_buffering=bool(found) and found.line_buffering,
        write_through=bool(found) and found.write_through,
    )
    stderr: Any = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)
    stderr.reconfigure(errors="backslashreplace")
    sys.stderr = stderr


def finish_streams(code: int) -> int:
    """Write what is left in buffers.

    Args:
        code: The exit code so far.

    Returns:
        The exit code; another one where the output could not be written.
    """
    try:
        sys.stdout.flush()
    except ReaderGone:
        code = code or BROKEN_PIPE
    except OutputError as error:
        if not code:
            code = error.exit_code
            with suppress(OSError):
                sys.stderr.write(f"error: {error.text}\n")
    except ValueError:  # closed
        pass
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    return code
