"""Temporaries of this process: each says how to remove it before it is made.

A signal's handler ends the process at once (``vaeconv.cli.stopping``): an exception would be lost
in whatever happens to run, such as the import of an extension or a callback of C code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_undo: dict[object, Callable[[], None]] = {}


@contextmanager
def removed_when_stopped(remove: Callable[[], None]) -> Iterator[None]:
    """Let a temporary be removed where the process is stopped inside the block.

    Args:
        remove: Removes it, whether or not it is there by then.
    """
    key = object()
    _undo[key] = remove
    try:
        yield
    finally:
        _undo.pop(key, None)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder in the system's place for temporaries; it is gone after the block."""
    import tempfile

    folder = Path(tempfile.gettempdir()) / f"vaeconv-{os.urandom(8).hex()}"
    with removed_when_stopped(lambda: shutil.rmtree(folder, ignore_errors=True)):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Give a file or folder a path that the libraries can open which take UTF-8 only."""
    if str(path).isprintable():  # half a surrogate pair, which stands for other bytes, is not
        yield path
        return
    with scratch_folder() as room:
        link = room / f"link{path.suffix if path.suffix.isprintable() else ''}"
        link.symlink_to(path.absolute())
        yield link


def remove_all() -> None:
    """Remove every temporary that there is; of the last one first."""
    for remove in reversed(list(_undo.values())):
        with suppress(OSError):
            remove()
