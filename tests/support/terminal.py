"""A command in a terminal of its own, and what it wrote there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class Shown(NamedTuple):
    """What a terminal was sent.

    Attributes:
        pieces: When something came, in seconds from the start, and what.
        code: The exit code.
    """

    pieces: list[tuple[float, str]]
    code: int

    @property
    def raw(self) -> str:
        """All of it, with its escapes."""
        return "".join(text for _, text in self.pieces)

    @property
    def text(self) -> str:
        """All of it, without escapes."""
        return plain(self.raw)

    @property
    def lines(self) -> list[str]:
        """Every line that was drawn, without escapes."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", self.text)]

    def seen_at(self, words: str) -> float:
        """When some words were seen first."""
        so_far = ""
        for at, text in self.pieces:
            so_far += text
            if words in plain(so_far):
                return at
        raise AssertionError(f"{words!r} was never seen in {self.text!r}")


def plain(text: str) -> str:
    """Take escapes out of a text."""
    return _ESCAPE.sub("", text)


def run_in_terminal(
    command: Sequence[object], *, columns: int = 80, env: Mapping[str, str] | None = None
) -> Shown:
    """Run a command whose stdout and stderr are a terminal."""
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    given = {name: value for name, value in (env or os.environ).items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=far,
        stderr=far,
        env={**given, "TERM": "xterm-256color"},
        close_fds=True,
    )
    os.close(far)
    started, pieces = time.monotonic(), []
    while True:
        try:
            data = os.read(near, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        pieces.append((time.monotonic() - started, data.decode("utf-8", "replace")))
    os.close(near)
    return Shown(pieces, process.wait())
