"""Lines of text, made to fit the terminal that shows them."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple, TextIO

from vaeconv.errors import one_line

_LEAST = 24  # columns in which text can be read


class Style(Enum):
    """Style of a line or of its first word, with the codes of ECMA-48 for it."""

    STRONG = "1"
    GOOD = "1;32"
    DOUBTFUL = "1;33"
    BAD = "1;31"


class Styled(NamedTuple):
    """A line that is set off where the terminal has colours.

    Attributes:
        text: The whole line.
        style: How.
        first: How many of its characters are set off; all by default.
        is_whole: Whether it is not broken, as a command that is to be copied.
    """

    text: str
    style: Style
    first: int | None = None
    is_whole: bool = False


class Table(NamedTuple):
    """A table of text.

    Attributes:
        head: Names of the columns.
        rows: Cells, one for each column.
        left: How many columns, from the first, are aligned to the left; numbers are to the right.
        last_left: Whether the last column is aligned to the left as well; such a one is text, and
            is broken between words where that makes the table fit.
    """

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1
    last_left: bool = False

    def lines(self, width: int | None = None) -> list[str]:
        """Lay the table out; where it is wider than ``width``, a paragraph for each row."""
        head = (self.head,) if any(self.head) else ()
        table = [tuple(map(one_line, row)) for row in (*head, *self.rows)]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.head))]
        room = None if width is None else width - sum(widths[:-1]) - 2 * len(widths)
        if width is not None and room is not None and room < widths[-1]:
            longest = max(len(word) for row in table for word in row[-1].split() or ("",))
            if not self.last_left or room < max(longest, _LEAST):
                told = ", ".join(filter(None, self.head[: self.left]))
                parts = [part for row in self.rows for part in self._paragraph(row, width)]
                return [*(wrap(f"  {told}:", width) if told else ()), *parts]
            table = [part for row in table for part in _broken(row, room)]
        return [("  " + "  ".join(self._cells(row, widths))).rstrip() for row in table]

    def _cells(self, row: tuple[str, ...], widths: list[int]) -> Iterator[str]:
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            is_left = column < self.left or (self.last_left and column == len(row) - 1)
            yield cell.ljust(width) if is_left else cell.rjust(width)

    def _paragraph(self, row: tuple[str, ...], width: int) -> Iterator[str]:
        cells = list(map(one_line, row))
        facts = [
            f"{name} {cell}".strip()
            for name, cell in zip(self.head[self.left :], cells[self.left :], strict=True)
            if cell not in ("", "-")
        ]
        yield from wrap(f"  {' '.join(filter(None, cells[: self.left]))}", width)
        if facts:
            yield from wrap(f"    {', '.join(facts)}", width)


Line = str | Styled | Table


def _broken(row: tuple[str, ...], room: int) -> Iterator[tuple[str, ...]]:
    """Break the last cell of a row over several, whose other cells are empty."""
    first, *more = wrap(row[-1], room, hang=0)
    yield (*row[:-1], first)
    yield from ((*("" for _ in row[:-1]), part) for part in more)


def wrap(text: str, width: int | None, hang: int = 2) -> list[str]:
    """Break a line between words; what follows is indented by ``hang`` more than its beginning."""
    if width is None or len(text) <= width:
        return [text]
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.lstrip(),
        max(width, len(indent) + 20),
        initial_indent=indent,
        subsequent_indent=indent + " " * hang,
        break_long_words=False,  # a path or a hash that is cut in two cannot be copied
        break_on_hyphens=False,
    )


def width_of(stream: TextIO) -> int | None:
    """Number of columns that text on a stream may take; None where nobody looks at lines.

    ``COLUMNS`` says it, else the terminal; a file or a pipe takes lines of any length.
    """
    try:
        found = os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # no terminal, or no descriptor at all
        found = None
    said = os.environ.get("COLUMNS", "")
    # Programs that load readline, such as pytest, hand COLUMNS and LINES to what they start.
    if said.isdecimal() and int(said) > 0 and (found or "LINES" not in os.environ):
        return int(said)
    return found


def has_colours(stream: TextIO) -> bool:
    """Tell if a stream shows colours and the user wants them (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    is_old_console = sys.platform == "win32" and "WT_SESSION" not in os.environ
    return stream.isatty() and not is_old_console


def fitted(lines: Iterable[Line], stream: TextIO) -> Iterator[str]:
    """Make lines fit a stream: wrapped to its width, and coloured where it has colours."""
    width, coloured = width_of(stream), has_colours(stream)
    for line in lines:
        if isinstance(line, Table):
            yield from line.lines(width)
            continue
        style = line if isinstance(line, Styled) and coloured else None
        text = one_line(line.text if isinstance(line, Styled) else line)
        is_whole = isinstance(line, Styled) and line.is_whole
        for part in wrap(text, None if is_whole else width):
            yield _painted(part, style) if style else part
            style = None if style and style.first is not None else style


def _painted(text: str, styled: Styled) -> str:
    end = len(text) if styled.first is None else styled.first
    return f"\033[{styled.style.value}m{text[:end]}\033[0m{text[end:]}"
