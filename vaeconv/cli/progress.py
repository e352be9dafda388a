"""Progress on stderr: what is being done, in one display that appears where work takes long."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vaeconv.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE = 0.5  # seconds that work may take unseen
_BAR = 20  # columns of a bar: with its words it fits a terminal of 60


@dataclass(slots=True)
class _Row:
    """One line of the display.

    Attributes:
        label: What is being done.
        done: How much of it.
        total: Of how much; None where that is not known.
        is_bytes: Whether bytes are counted.
        task: Its number in the bar that is drawn.
        since: When this label was first seen.
    """

    label: str = ""
    done: int = 0
    total: int | None = None
    is_bytes: bool = False
    task: TaskID | None = None
    since: float = field(default_factory=time.monotonic)


class _Display:
    """All rows of this process; two displays on one terminal would overwrite each other."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._rows: list[_Row] = []
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None

    def update(self, row: _Row) -> None:
        """Show a row, or what has become of it."""
        with self._lock:
            if not any(row is one for one in self._rows):
                self._rows.append(row)
            if self._bar is not None:
                self._put(row)
            elif self._timer is None:  # a step that says nothing more is shown as well
                self._timer = threading.Timer(_PATIENCE, self._draw)
                self._timer.daemon = True
                self._timer.start()

    def remove(self, row: _Row) -> None:
        """Take a row away; with the last one goes the display."""
        with self._lock:
            self._rows = [one for one in self._rows if one is not row]
            if self._bar is not None and row.task is not None:
                self._bar.remove_task(row.task)
                row.task = None
            if self._rows:
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _draw(self) -> None:
        bar = _make_bar()
        with self._lock:
            if not self._rows or self._bar is not None:
                return
            self._bar = bar
            for row in self._rows:
                self._put(row)
            bar.start()

    def _put(self, row: _Row) -> None:
        assert self._bar is not None
        if row.task is None:
            row.task = self._bar.add_task(row.label, total=None, row=row)
        is_counted = row.total is not None and (row.total > 1 or row.is_bytes)
        self._bar.update(
            row.task,
            description=one_line(row.label),
            completed=row.done,
            total=row.total if is_counted else None,
        )


_display = _Display()


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


class _Shown:
    """A row of the display, which goes with the end of a block; on a terminal only."""

    def __init__(self, enabled: bool, **about: Any) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._row = _Row(**about)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _display.remove(self._row)


class StepProgress(_Shown, AbstractContextManager["StepProgress"]):
    """Shows one step after the other, each with what is done of it.

    Args:
        enabled: Whether it may draw at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        super().__init__(enabled)

    def advance(self, step: str, done: int, total: int) -> None:
        """Say what is going on now; a total of 0 for what shows itself."""
        if not self._enabled:
            return
        if total == 0:
            _display.remove(self._row)
            return
        if step != self._row.label:
            self._row.since = time.monotonic()
        self._row.label, self._row.done, self._row.total = step, done, total
        _display.update(self._row)


class ByteProgress(_Shown, AbstractContextManager["ByteProgress"]):
    """Counts bytes from any thread.

    Args:
        label: What is going on.
        enabled: Whether it may draw at all.
    """

    def __init__(self, label: str, *, enabled: bool) -> None:
        super().__init__(enabled, label=label, is_bytes=True)
        self._lock = threading.Lock()

    def advance(self, count: int, total: int | None = None) -> None:
        """Count bytes that are done, of a total where it is known."""
        if not self._enabled:
            return
        with self._lock:
            self._row.done += count
            self._row.total = total
        _display.update(self._row)
