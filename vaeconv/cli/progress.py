"""A progress bar on stderr for work that takes more than a second."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_PATIENCE = 1.0


class _Bar:
    """A bar that is taken away at the end, where one was drawn."""

    _bar: Progress | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class StepProgress(_Bar, AbstractContextManager["StepProgress"]):
    """Shows one step after the other, each with what is done of it; on a terminal only.

    Args:
        enabled: Whether it may draw at all.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._started = time.monotonic()
        self._task: TaskID | None = None

    def advance(self, step: str, done: int, total: int) -> None:
        """Say what is going on now; a total of 0 for what shows itself."""
        if total == 0 and self._bar is not None:
            self._bar.stop()
            self._bar = None
        if total == 0 or not self._enabled or time.monotonic() - self._started < _PATIENCE:
            return
        if self._bar is None:
            self._bar = self._draw()
            self._task = self._bar.add_task(step)
        if self._task is not None:
            self._bar.update(self._task, description=step, completed=done, total=total)

    def _draw(self) -> Progress:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.1f}/s" if task.speed else "")

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Speed(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.start()
        return bar


class ByteProgress(_Bar, AbstractContextManager["ByteProgress"]):
    """Counts bytes from any thread; draws only on a terminal, and only once work takes long.

    Args:
        label: What is going on.
        enabled: Whether it may draw at all.
    """

    def __init__(self, label: str, *, enabled: bool) -> None:
        self._label = label
        self._enabled = enabled and sys.stderr.isatty()
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._done = 0
        self._task: TaskID | None = None

    def advance(self, count: int, total: int | None = None) -> None:
        """Count bytes that are done, of a total where it is known."""
        if not self._enabled:
            return
        with self._lock:
            self._done += count
            if self._bar is None and time.monotonic() - self._started > _PATIENCE:
                self._bar, self._task = self._draw()
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._done, total=total)

    def _draw(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.start()
        return bar, bar.add_task(self._label, total=None)
