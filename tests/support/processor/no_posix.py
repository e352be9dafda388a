"""Takes away from Python what Windows has not, and refuses what Windows refuses.

For every process that finds ``sitecustomize.py`` beside this with ``VAECONV_TESTS_NO_POSIX`` set.
The stand-in shows that nothing is asked for that is not there; Windows itself it is not: paths are
those of this system, and so are the ways of processes and consoles.
"""

from __future__ import annotations

import builtins
import errno
import os
import signal
import sys
import types
from typing import Any

CALLS = (
    "pread preadv pwrite pwritev posix_fallocate posix_fadvise fchmod fchown fdatasync sync "
    "sendfile copy_file_range splice mkfifo mknod killpg setsid setpgid nice sysconf "
    "lockf geteuid O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK O_SYNC O_DSYNC O_PATH"
).split()
SIGNALS = "SIGHUP SIGALRM pthread_sigmask setitimer".split()
MODULES = frozenset("fcntl resource termios tty pty pwd grp syslog".split())
# Libraries that ask sys.platform and not what is there; of a test's modules none is among them.
TRUSTED = ("filelock", "huggingface_hub", "torch", "subprocess", "multiprocessing", "_pytest",
           "pathlib", "getpass", "tempfile", "execnet", "xdist", "hypothesis",
           "psutil")  # fmt: skip

_real = types.SimpleNamespace(**{name: getattr(os, name) for name in (
    "open", "unlink", "remove", "rename", "replace", "rmdir", "link", "lstat"
)})  # fmt: skip


def _refused(path: Any) -> PermissionError:
    return PermissionError(errno.EACCES, "Access is denied", os.fspath(path))


def _held(path: Any) -> bool:
    """Whether this process has a file open or mapped, or one in a folder."""
    place = os.path.realpath(os.path.dirname(os.path.abspath(os.fspath(path))))
    whole = os.path.join(os.fsdecode(place), os.path.basename(os.path.abspath(os.fsdecode(path))))
    if os.path.islink(whole):
        return False
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # closed by now
            continue
    with builtins.open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        found += [line.rstrip("\n").split(None, 5)[5] for line in maps if "/" in line]
    return any(one == whole or one.startswith(whole + "/") for one in found)


def _by_tempfile() -> bool:
    """Whether tempfile asks: Windows removes what it made when that is closed."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("tests."):
        frame = frame.f_back  # a test that watches or fails the call
    return frame.f_globals.get("__name__") == "tempfile"


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    if os.path.isdir(path):
        raise _refused(path)
    return _real.open(path, flags, mode)


def _remove(path: Any, *, dir_fd: int | None = None) -> None:
    if dir_fd is not None:
        raise NotImplementedError("dir_fd unavailable on this platform")
    if not _by_tempfile() and os.path.lexists(path) and _held(path):
        raise _refused(path)
    _real.unlink(path)


def _replace(source: Any, target: Any) -> None:
    if _held(source) or (os.path.lexists(target) and _held(target)) or os.path.isdir(target):
        raise _refused(source)
    _real.replace(source, target)


def _rename(source: Any, target: Any) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "it exists", os.fspath(source))
    if _held(source):
        raise _refused(source)
    _real.rename(source, target)


def _symlink(*args: Any, **options: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client")


class _Msvcrt(types.ModuleType):
    """The one call of msvcrt that is used: a lock of a descriptor, gone when that is closed."""

    LK_UNLCK, LK_LOCK, LK_NBLCK = 0, 1, 2

    @staticmethod
    def locking(fd: int, mode: int, nbytes: int) -> None:
        import fcntl  # this module is trusted

        if mode == _Msvcrt.LK_LOCK:
            raise NotImplementedError("it gives up after ten seconds")
        free = mode == _Msvcrt.LK_UNLCK
        try:
            fcntl.flock(fd, fcntl.LOCK_UN if free else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error


def _import(name: str, globals: Any = None, *args: Any, **options: Any) -> Any:
    asked = (globals or {}).get("__name__") or ""
    if name == "msvcrt" and asked.startswith("vaeconv."):
        return _MSVCRT
    if name == "os" and asked.startswith(("filelock", "psutil")):
        return _WHOLE_OS  # on Windows they run other code than here
    if name in MODULES and asked != __name__ and not asked.startswith(TRUSTED):
        raise ModuleNotFoundError(f"No module named {name!r} (taken away by the tests)", name=name)
    return _real_import(name, globals, *args, **options)


def _library(real: Any) -> Any:
    class CDLL(real):  # type: ignore[misc]
        def __init__(self, name: Any, *args: Any, **options: Any) -> None:
            if name is None:
                raise TypeError("argument of type 'NoneType' is not iterable")
            super().__init__(name, *args, **options)

    return CDLL


_real_import = builtins.__import__
_WHOLE_OS = types.ModuleType("os")
vars(_WHOLE_OS).update(vars(os))
_MSVCRT = _Msvcrt("msvcrt")  # not in sys.modules: the standard library takes it for Windows


def take_away() -> None:
    """Make of this process one without POSIX."""
    import ctypes
    import shutil  # finds out on import what it may use

    for name in CALLS:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]
    os.open, os.unlink, os.remove = _open, _remove, _remove  # type: ignore[assignment]
    os.replace, os.rename, os.symlink = _replace, _rename, _symlink  # type: ignore[assignment]
    for there in (os.supports_dir_fd, os.supports_fd):
        there.clear()
    builtins.__import__ = _import
    ctypes.CDLL = _library(ctypes.CDLL)  # type: ignore[misc]
