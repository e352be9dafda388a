"""Watch the calls by which a run writes, and make one of them fail or stop the run.

As a program it runs the command line and sends itself a signal at one of those calls::

    python -m tests.support.faults SIGKILL before 7 FOLDER convert IN OUT
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint import system
from vaeconv.checkpoint.writers import atomic
from vaeconv.weights import execute as executor

# How many of a call's first arguments are paths or descriptors.
_PLACES = {
    "open": 1,
    "fsync": 1,
    "close": 1,
    "chmod": 1,
    "mkdir": 1,
    "rmdir": 1,
    "unlink": 1,
    "link": 2,
    "rename": 2,
    "replace": 2,
}
_PIECE = 64 << 10  # so that a small fixture is written in several pieces, by both workers


class Call(NamedTuple):
    """One call that touches the watched folder or something in it.

    ``create`` is an ``open`` that makes a file, ``pwrite`` a write at an offset, ``write`` one of a
    Python file object, ``exchange`` the swap of two folders; the others are named as in ``os``.
    """

    name: str
    paths: tuple[Path | None, ...]

    def puts(self, target: Path) -> bool:
        """Whether this is the step by which the target becomes what it shall be."""
        steps = {"replace", "rename", "link", "exchange"}
        return self.name in steps and self.paths[1] == target


class NoExchange:
    """Stands for the exchange of two names where the system has none."""

    def __call__(self, one: Path, other: Path) -> bool:
        return False


class Watch:
    """Sees every call below a folder; calls elsewhere, such as reads of the input, pass.

    Args:
        folder: The folder.
        before: Called with a call's number, from 1, and the call; may raise.
        after: Called likewise once it was made.
    """

    def __init__(
        self,
        folder: Path,
        before: Callable[[int, Call], None] = lambda number, call: None,
        after: Callable[[int, Call], None] = lambda number, call: None,
    ) -> None:
        self.calls: list[Call] = []
        self._folder = folder
        self._before = before
        self._after = after
        self._lock = threading.Lock()
        self._opened: dict[int, Path] = {}
        self._written: set[int] = set()

    def install(self, patch: Callable[[Any, str, Any], None]) -> None:
        """Put the watch in place; ``patch`` is ``setattr`` or one that can undo it."""
        for name, count in _PLACES.items():
            patch(os, name, self._watched(name, count, getattr(os, name)))
        patch(atomic, "open", self._open_file)
        patch(system, "write_at", self._watched("pwrite", 1, system.write_at))
        if not isinstance(system.exchange, NoExchange):
            patch(system, "exchange", self._watched("exchange", 2, system.exchange))
        patch(executor, "_PIECE", _PIECE)

    def _watched(self, name: str, count: int, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, dir_fd: int | None = None, **options: Any) -> Any:
            paths = tuple(self._place(arg, dir_fd) for arg in args[:count])
            if dir_fd is not None:
                options["dir_fd"] = dir_fd
            if name == "close":
                return self._close(paths, real, args[0])
            if not any(map(self._concerns, paths)):
                result = real(*args, **options)
            else:
                makes = name == "open" and args[1] & os.O_CREAT
                call = Call("create" if makes else name, paths)
                result = self._make(call, lambda: real(*args, **options))
            if name == "open" and paths[0]:
                with self._lock:
                    self._opened[result] = paths[0]
                    if args[1] & (os.O_RDWR | os.O_WRONLY):
                        self._written.add(result)
            return result

        return watched

    def _make(self, call: Call, real: Callable[[], Any]) -> Any:
        with self._lock:
            self.calls.append(call)
            number = len(self.calls)
        self._before(number, call)
        result = real()
        self._after(number, call)
        return result

    def _close(self, paths: tuple[Path | None, ...], real: Callable[[int], None], fd: int) -> None:
        """Close a descriptor in any case; a failing ``close`` closes it as well.

        Of what was not written it does not matter.
        """
        with self._lock:
            is_counted = any(map(self._concerns, paths)) and fd in self._written
            self._opened.pop(fd, None)
            self._written.discard(fd)
        real(fd)
        if is_counted:
            self._make(Call("close", paths), lambda: None)

    def _open_file(
        self, place: str | Path | int, mode: str, closefd: bool = True
    ) -> io.BufferedWriter:
        watch, path = self, self._place(place, None)

        class Raw(io.FileIO):
            def write(self, data: Any) -> int | None:
                written: int | None = watch._make(
                    Call("write", (path,)), lambda: io.FileIO.write(self, data)
                )
                return written

        made: list[Raw] = []

        def create() -> None:
            made.append(Raw(place, mode, closefd))

        try:
            if isinstance(place, int):
                create()
            else:
                self._make(Call("create", (path,)), create)
        except BaseException:
            for raw in made:
                raw.close()
            raise
        if path:
            with self._lock:
                self._opened[made[0].fileno()] = path
        return io.BufferedWriter(made[0])

    def _place(self, what: Any, dir_fd: int | None) -> Path | None:
        if isinstance(what, int):
            return self._opened.get(what)
        path = Path(os.fsdecode(what))
        if dir_fd is None:
            return path
        folder = self._opened.get(dir_fd)
        return folder / path if folder else None

    def _concerns(self, path: Path | None) -> bool:
        return path is not None and (path == self._folder or self._folder in path.parents)


def main(name: str, when: str, number: str, folder: str, *args: str) -> None:
    """Run the command line, and send it a signal before or after one of its calls.

    With ``--no-exchange`` before its arguments, as on a system that cannot exchange two names.
    """
    from vaeconv.cli import main as run

    if args[0] == "--no-exchange":
        args = args[1:]
        system.exchange = NoExchange()

    def stop(count: int, call: Call) -> None:
        if count == int(number):
            os.kill(os.getpid(), signal.Signals[name])

    Watch(Path(folder), **{when: stop}).install(setattr)
    sys.argv = ["vaeconv", *args]
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
