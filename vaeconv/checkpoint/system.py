"""Calls that not every system has, each with what takes its place there.

Windows reads and writes at the position of the descriptor only, opens no folder, and neither
renames, replaces nor removes what is open. Which of two ways is taken depends on the calls that
are there, never on the name of the system, so that taking a call away tests the other way.
"""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from vaeconv.common.leftovers import removed_when_stopped

_fcntl: Any = None
_msvcrt: Any = None
try:
    import fcntl

    _fcntl = fcntl
except ImportError:  # Windows
    with suppress(ImportError):
        import msvcrt

        _msvcrt = msvcrt

LOCK_ENDING = ".lock"
_BINARY = getattr(os, "O_BINARY", 0)  # without it, Windows changes the ends of lines
READ = os.O_RDONLY | _BINARY
WRITE = os.O_RDWR | _BINARY
CREATE = WRITE | os.O_CREAT | os.O_EXCL
# What a file system says that reserves no space.
_NO_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_DONTNEED = getattr(os, "POSIX_FADV_DONTNEED", 0)
_PATIENCE = 0.01  # seconds between two tries to get a lock that cannot be waited for
# Without positional calls: whoever moves a descriptor's position keeps the others from it.
_POSITIONS = tuple(threading.Lock() for _ in range(64))


def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Read into a buffer at an offset, from any thread; returns how many bytes came."""
    if hasattr(os, "preadv"):
        count: int = os.preadv(fd, [buffer], offset)
        return count
    with _POSITIONS[fd % len(_POSITIONS)], io.FileIO(fd, closefd=False) as file:
        file.seek(offset)
        return file.readinto(buffer)


def write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write at an offset, from any thread; returns how many bytes went."""
    if hasattr(os, "pwrite"):
        count: int = os.pwrite(fd, data, offset)
        return count
    with _POSITIONS[fd % len(_POSITIONS)]:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def reserve(fd: int, size: int) -> None:
    """Take space on the disk for an empty file at once, where the system can.

    Raises:
        OSError: There is not enough space.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in _NO_RESERVE:
            raise


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Ask the system to begin writing a range to disk, so that a later fsync waits for little.

    ``POSIX_FADV_DONTNEED`` does so on Linux (``mm/fadvise.c``); pages on their way out stay cached.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, size, _DONTNEED)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where a folder can be opened for that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux ``renameat2``); False where that is not possible."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # the last is what Windows raises
        return False
    at_cwd, exchanging = -100, 2
    status: int = rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchanging)
    return status == 0


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock on a file or folder; gives False where nothing can be locked.

    The lock ends with the process. Without ``flock`` a file beside the path is locked, since what
    is open could not be renamed, and no folder be opened.

    Args:
        path: The file or folder.
        wait: Whether to wait until whoever holds the lock lets go of it.

    Raises:
        BlockingIOError: Somebody else holds it, and there is no waiting.
        OSError: The path cannot be opened, as where it is gone or a symbolic link.
    """
    if not (_fcntl or _msvcrt):
        yield False
        return
    beside = None if _fcntl else f"{os.path.abspath(path)}{LOCK_ENDING}"
    if beside:
        fd = os.open(beside, WRITE | os.O_CREAT, 0o666)
    else:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        is_held = _lock(fd, wait)
    except BaseException:
        os.close(fd)
        raise
    unlock = partial(_unlock, fd, beside)
    with removed_when_stopped(unlock):
        try:
            yield is_held
        finally:
            unlock()


def _unlock(fd: int, beside: str | None) -> None:
    try:
        with suppress(OSError):  # nothing was written through it
            os.close(fd)
    finally:
        if beside:
            with suppress(OSError):  # open elsewhere already
                os.unlink(beside)


def _lock(fd: int, wait: bool) -> bool:
    try:
        if _fcntl:
            _fcntl.flock(fd, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
            return True
        while True:
            try:
                _msvcrt.locking(fd, _msvcrt.LK_NBLCK, 1)
                return True
            except PermissionError as error:
                if not wait:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
            time.sleep(_PATIENCE)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
