"""stdout and stderr, whatever they lead to: closed, full, or of an encoding of few letters."""

from __future__ import annotations

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


class _Stdout(io.FileIO):
    """Descriptor 1, whose failures are told from those of files."""

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            OutputError: There is no room, or the device is broken.
            ReaderGone: It is a pipe that was closed at the other end.
        """
        try:
            return super().write(data)
        except BrokenPipeError as error:
            raise ReaderGone from error
        except BlockingIOError:
            raise
        except OSError as error:
            raise OutputError(f"cannot be written: {error.strerror}", where=STDOUT) from error


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
        io.BufferedWriter(_Stdout(1, "wb", closefd=False)),
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
