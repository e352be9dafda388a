"""Notes and warnings that go with a result."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from vaeconv.errors import name_parameters


class VaeconvWarning(UserWarning):
    """A note that calls for the user's attention, as Python's ``warnings`` shows it.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", VaeconvWarning)  # in a script that shall stop at any
    """


class Level(str, Enum):
    """Importance of a note.

    Example:
        >>> Level("warning") is Level.WARNING
        True
    """

    NOTE = "note"
    WARNING = "warning"


class Note(NamedTuple):
    """One thing that the user should know.

    Attributes:
        level: A note explains; a warning asks the user to check something.
        text: One sentence, without a full stop.

    Example:
        >>> print(Note(Level.WARNING, "the EMA was never updated"))
        warning: the EMA was never updated
    """

    level: Level
    text: str

    def __str__(self) -> str:
        return f"{self.level.value}: {self.text}"


def note(text: str) -> Note:
    """Make a note that explains."""
    return Note(Level.NOTE, text)


def warning(text: str) -> Note:
    """Make a note that asks the user to check something."""
    return Note(Level.WARNING, text)


def issue_warnings(notes: Iterable[Note]) -> None:
    """Hand what calls for attention to Python's ``warnings``, as of whoever called vaeconv."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"].startswith("vaeconv."):
        level, frame = level + 1, frame.f_back
    for one in notes:
        if one.level is Level.WARNING:
            warnings.warn(name_parameters(one.text), VaeconvWarning, stacklevel=level)
