"""Ctrl-C and its kin: one line, the exit code that shells expect, and no temporary left."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_SAID = {
    "SIGINT": "interrupted",
    "SIGBREAK": "interrupted",  # Ctrl-Break, which Windows has
    "SIGTERM": "terminated",
    "SIGHUP": "the terminal was closed",  # and Windows has not
}
SIGNALS: dict[int, str] = {
    getattr(signal, name): said for name, said in _SAID.items() if hasattr(signal, name)
}
_process = 0


def stop_on_signals() -> None:
    """End the process on a signal from now on, unless whoever started it had it ignored."""
    global _process
    _process = os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    """Say it, remove temporaries and leave, at once and without an exception.

    An exception would be turned into another by an import or a callback that it comes up in, or be
    dropped. Nor is anything imported here, or written through a buffer that may be in use.
    """
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    if os.getpid() == _process:  # a fork has its parent's temporaries in its memory
        # One that is being imported right now has made nothing yet.
        remove_all = getattr(sys.modules.get("vaeconv.common.leftovers"), "remove_all", None)
        if remove_all is not None:
            remove_all()
        bar = "\r\x1b[K\x1b[?25h" if "rich.live" in sys.modules and os.isatty(2) else ""
        say(f"{bar}error: {SIGNALS[number]}; nothing is left half-written\n")
    os._exit(128 + number)


def say(text: str) -> None:
    """Write to stderr as it is, wherever it leads."""
    try:
        os.write(2, text.encode())
    except OSError:
        pass
