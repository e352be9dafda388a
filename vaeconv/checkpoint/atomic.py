"""Outputs that are there whole or not at all.

Everything is written under a temporary name beside the target and renamed when complete. The
temporary is locked while its run lives, so a later run can tell the debris of a killed one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vaeconv.errors import OutputError, OutputExistsError

_MARK = ".vaeconv-"


def check_output(target: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse an output that must not be written, before anything is opened for writing.

    Args:
        target: The file or folder to write.
        sources: Local files that will be read.
        overwrite: Whether an existing output may be replaced.

    Raises:
        OutputError: It is one of the sources (by whatever spelling), contains one or lies in one,
            is a symbolic link, or its folder does not exist.
        OutputExistsError: It is there.
    """
    try:
        parent_exists = target.parent.is_dir()
        is_link, exists = target.is_symlink(), target.exists()
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be written: {error}", where=str(target)) from error
    if not parent_exists:
        raise OutputError(
            "its folder does not exist", where=str(target), hint=f"mkdir -p '{target.parent}'"
        )
    for source in sources:
        if exists and (
            os.path.samefile(source, target)
            or (target.is_dir() and os.path.samefile(source.parent, target))
        ):
            raise OutputError(
                f"is the input itself ({source}), or its folder",
                where=str(target),
                hint="write to another place",
            )
    if is_link:
        raise OutputError(
            "is a symbolic link", where=str(target), hint="name the place that it points to"
        )
    if exists and not overwrite and not _is_empty_folder(target):
        raise OutputExistsError("exists", where=str(target), hint="--overwrite replaces it")


@contextmanager
def staged_file(target: Path, *, overwrite: bool, durable: bool) -> Iterator[int]:
    """Give a file descriptor whose content becomes ``target`` when the block ends well.

    Args:
        target: The file.
        overwrite: Whether it may be replaced.
        durable: Whether to wait until the disk has it.

    Raises:
        OutputExistsError: The target appeared in the meantime.
        OutputError: It cannot be written.
    """
    if target.is_dir():
        raise OutputError("is a folder", where=str(target), hint="name a file")
    _remove_debris(target)
    temporary = _temporary(target)
    with _translated(target):
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
        with _translated(target):
            if target.exists():
                os.fchmod(fd, stat.S_IMODE(target.stat().st_mode))
            if durable:
                os.fsync(fd)
            if overwrite:
                os.replace(temporary, target)
            else:
                os.link(temporary, target)
                os.unlink(temporary)
            if durable:
                sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


@contextmanager
def staged_folder(
    target: Path, *, overwrite: bool, durable: bool, stale: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """Give a folder that becomes ``target`` when the block ends well.

    What else is in an existing target (a README, another variant) is carried over; its own files
    of the same names are replaced; all in one step.

    Args:
        target: The folder.
        overwrite: Whether it may be replaced.
        durable: Whether to wait until the disk has it.
        stale: Names that are not carried over although nothing replaces them.

    Raises:
        OutputExistsError: The target appeared in the meantime.
        OutputError: It cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise OutputError("is a file", where=str(target), hint="name a folder")
    _remove_debris(target)
    temporary = _temporary(target)
    with _translated(target):
        os.mkdir(temporary)
        lock = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield temporary
        with _translated(target):
            if target.exists():
                if not overwrite and not _is_empty_folder(target):
                    raise OutputExistsError("exists", where=str(target))
                _carry_over(target, temporary, stale)
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            if durable:
                sync_folder(temporary)
            _swap_in(temporary, target)
            if durable:
                sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def write_small_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file into a staged folder.

    Raises:
        OutputError: It cannot be written.
    """
    with _translated(path), open(path, "xb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise OutputExistsError(
            "appeared while it was being written", where=str(target), hint="run again"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot be written: {reason}", where=str(target)) from error


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _stem(target: Path) -> str:
    """Begin the names of a target's temporaries; of fixed length, however long the target's."""
    return _MARK + hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12] + "-"


def _temporary(target: Path) -> Path:
    return target.parent / f"{_stem(target)}{os.urandom(6).hex()}"


def _remove_debris(target: Path) -> None:
    """Remove what killed runs on the same target left; a living run holds a lock on its own."""
    with suppress(OSError):
        for path in target.parent.glob(_stem(target) + "*"):
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()
                finally:
                    os.close(fd)


def _carry_over(old: Path, new: Path, stale: frozenset[str]) -> None:
    for entry in old.iterdir():
        if entry.name in stale or (new / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, new / entry.name, symlinks=True, copy_function=_link_or_copy)
        elif entry.is_symlink():
            os.symlink(os.readlink(entry), new / entry.name)
        else:
            _link_or_copy(entry, new / entry.name)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _swap_in(temporary: Path, target: Path) -> None:
    """Put a folder in a target's place; afterwards ``temporary`` holds the old one, if any."""
    if not target.exists():
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        aside = _temporary(target)
        os.rename(target, aside)
        os.rename(temporary, target)
        os.rename(aside, temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step (Linux ``renameat2``); False where that is not possible."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    status: int = rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange)
    return status == 0
