"""Progress on stderr: what is being done, in one display that appears where work takes long."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from vaeconv.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE = 0.5  # seconds that work may take unseen
_BAR = 20  # columns of a bar: with its words it fits a terminal of 60


class _Row:
    """One line of the display, on a terminal only; it goes with the end of a block.

    Args:
        label: What is being done.
        enabled: Whether it may draw at all.
    """

    is_bytes = False  # whether bytes are counted

    def __init__(self, label: str = "", *, enabled: bool) -> None:
        self.label = label
        self.done = 0
        self.total: int | None = None  # where it is known
        self.task: TaskID | None = None  # its number in the bar that is drawn
        self.since = time.monotonic()  # when this label was first seen
        self.is_shown = enabled and sys.stderr.isatty()

    def __exit__(self, *_: object) -> None:
        _display.remove(self)


class StepProgress(_Row, AbstractContextManager["StepProgress"]):
    """Shows one step after the other, each with what is done of it."""

    def advance(self, step: str, done: int, total: int) -> None:
        """Say what is going on now; a total of 0 for what shows itself."""
        if not self.is_shown:
            return
        if total == 0:
            _display.remove(self)
            return
        if step != self.label:
            self.since = time.monotonic()
        self.label, self.done, self.total = step, done, total
        _display.update(self)


class ByteProgress(_Row, AbstractContextManager["ByteProgress"]):
    """Counts bytes from any thread."""

    is_bytes = True

    def advance(self, count: int, total: int | None = None) -> None:
        """Count bytes that are done, of a total where it is known."""
        if self.is_shown:
            with _display.lock:
                self.done += count
                self.total = total
                _display.update(self)


class _Display:
    """All rows of this process; two displays on one terminal would overwrite each other."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._rows: dict[_Row, None] = {}
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None

    def update(self, row: _Row) -> None:
        """Show a row, or what has become of it."""
        with self.lock:
            self._rows[row] = None
            if self._bar is not None:
                _put(row, self._bar)
            elif self._timer is None:  # a step that says nothing more is shown as well
                self._timer = threading.Timer(_PATIENCE, self._draw)
                self._timer.daemon = True
                self._timer.start()

    def remove(self, row: _Row) -> None:
        """Take a row away; with the last one goes the display."""
        with self.lock:
            self._rows.pop(row, None)
            if self._bar is not None and row.task is not None:
                self._bar.remove_task(row.task)
                row.task = None
            if not self._rows and self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if not self._rows and self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _draw(self) -> None:
        bar = _make_bar()
        with self.lock:
            if not self._rows or self._bar is not None:
                return
            self._bar = bar
            for row in self._rows:
                _put(row, bar)
            bar.start()


_display = _Display()


def _put(row: _Row, bar: Progress) -> None:
    """Draw a row as it is now."""
    if row.task is None:
        row.task = bar.add_task(row.label, total=None, row=row)
    is_counted = row.total is not None and (row.total > 1 or row.is_bytes)
    bar.update(
        row.task,
        description=one_line(row.label),
        completed=row.done,
        total=row.total if is_counted else None,
    )


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
    )
    from rich.text import Text

    class Amount(ProgressColumn):
        """How much is done, of how much, and how long it takes."""

        def render(self, task: Task) -> Text:
            row: _Row = task.fields["row"]
            said = decimal if row.is_bytes else str
            of = "" if task.total is None else f"/{said(round(task.total))}"
            is_counted = row.is_bytes or task.total is not None
            amount = f"{said(row.done)}{of}  " if is_counted else ""
            return Text(amount + _duration(row, task.total))

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),  # it may have names of strangers
        BarColumn(_BAR),
        Amount(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what is printed goes where it should
    )


def _duration(row: _Row, total: float | None) -> str:
    """Say how long is left; where nothing tells that, how long it has taken."""
    taken = time.monotonic() - row.since
    if not total or not row.done:
        return _clock(taken)
    return f"{_clock(taken / row.done * max(total - row.done, 0))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
