"""stdout and stderr, whatever they lead to: closed, full, or of an encoding of few letters."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress

STDOUT = "standard output"
_BROKEN_PIPE = 141  # who read the output has gone, and would not read a message either
# What a write says where there is no more room, or the device is broken.
_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.ENXIO)


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
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stdout_failure(error: OSError) -> str | None:
    """Say why stdout cannot be written, where that is what an error was about; else None.

    A buffer keeps what could not be written, so the same error comes again.
    """
    if error.errno not in _FAILURES or error.filename is not None:
        return None
    try:
        sys.stdout.flush()
    except OSError as again:
        return again.strerror
    return None


def finish_streams(code: int) -> int:
    """Write what is left in buffers.

    Args:
        code: The exit code so far.

    Returns:
        The exit code; another one where the output could not be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or _BROKEN_PIPE
    except (OSError, ValueError) as error:
        if not code:
            reason = getattr(error, "strerror", None) or str(error)
            with suppress(OSError):
                sys.stderr.write(f"error: {STDOUT}: cannot be written: {reason}\n")
            code = 5
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    return code
