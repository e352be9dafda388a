"""Outputs that are there whole or not at all.

Everything is written under a temporary name beside the target, closed, and renamed when complete.
The temporary is locked while its run lives, so a later run can tell the debris of a killed one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from vaeconv.checkpoint import system
from vaeconv.checkpoint.writers.writable import is_empty_folder, translated
from vaeconv.common.leftovers import removed_when_stopped
from vaeconv.errors import OutputError, OutputExistsError

MARK = ".vaeconv-"  # what the names of temporaries begin with
_ASIDE = "-old"
# What a file system without hard links says to one; the last is what Windows says.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


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
    with _claimed(target, _create_file, _remove_file) as temporary:
        with _opened(temporary, target) as fd:
            yield fd
            with translated(target):
                if target.exists():
                    os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
                if durable:
                    os.fsync(fd)
        with translated(target):
            if overwrite:
                os.replace(temporary, target)
            else:
                _rename_new(temporary, target)
            if durable:
                system.sync_folder(target.parent)


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
    with _claimed(target, os.mkdir, partial(_remove_staged, target)) as temporary:
        yield temporary
        with translated(target):
            if target.exists():
                if not overwrite and not is_empty_folder(target):
                    raise OutputExistsError("exists", where=str(target))
                _carry_over(target, temporary, stale)
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            if durable:
                system.sync_folder(temporary)
            _swap_in(temporary, target)
            if durable:
                system.sync_folder(target.parent)
        _remove_folder(temporary)  # what was there before


@contextmanager
def _claimed(
    target: Path, create: Callable[[Path], None], remove: Callable[[Path], None]
) -> Iterator[Path]:
    """Make a temporary that is locked; it is removed where the block fails.

    Before it is locked, another run on the same target may take it for debris: then another one is
    made. Where nothing can be locked, nothing is taken for debris.

    Args:
        target: What it becomes.
        create: Makes it.
        remove: Removes it, if it is there.
    """
    while True:
        temporary = _temporary(target)
        with removed_when_stopped(partial(remove, temporary)), ExitStack() as lock:
            try:
                with translated(target):
                    create(temporary)
                    with suppress(FileNotFoundError):  # taken already
                        lock.enter_context(system.locked(temporary, wait=True))
                if os.path.lexists(temporary):
                    yield temporary
                    return
            except BaseException:
                remove(temporary)
                raise


@contextmanager
def _opened(temporary: Path, target: Path) -> Iterator[int]:
    """Open a temporary for writing; what is open cannot be removed everywhere, so it is closed."""
    with translated(target):
        fd = os.open(temporary, system.WRITE)
    with removed_when_stopped(partial(os.close, fd)):
        try:
            yield fd
        finally:
            with translated(target):
                os.close(fd)


def _create_file(temporary: Path) -> None:
    os.close(os.open(temporary, system.CREATE, 0o666))


def _remove_file(temporary: Path) -> None:
    with suppress(OSError):
        os.unlink(temporary)


def _remove_staged(target: Path, temporary: Path) -> None:
    """Remove a folder; a target that was put aside for it and has no successor comes back."""
    aside = _aside(temporary)
    if os.path.lexists(aside) and not os.path.lexists(target):
        os.rename(aside, target)
    _remove_folder(aside)
    _remove_folder(temporary)


def replace_small_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file, or replace it, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    with (
        staged_file(path, overwrite=True, durable=durable) as fd,
        translated(path),
        open(fd, "wb", closefd=False) as file,
    ):
        file.write(data)


def link_file(source: Path, target: Path) -> None:
    """Give a file a second name in one step, or copy it where files have one name only.

    Raises:
        OutputError: It cannot be written.
    """
    _remove_debris(target)
    temporary = _temporary(target)
    with removed_when_stopped(partial(_remove_file, temporary)), translated(target):
        try:
            _link_or_copy(source, temporary)
            os.replace(temporary, target)
        finally:  # two names of one file stay as they are
            _remove_file(temporary)


def write_small_file(path: Path, data: bytes, *, durable: bool) -> None:
    """Write a file into a staged folder.

    Raises:
        OutputError: It cannot be written.
    """
    with translated(path), open(path, "xb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _stem(target: Path) -> str:
    """Begin the names of a target's temporaries; of fixed length, however long the target's."""
    return MARK + hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12] + "-"


def _temporary(target: Path) -> Path:
    return target.parent / f"{_stem(target)}{os.urandom(6).hex()}"


def _aside(temporary: Path) -> Path:
    """Where a target is for a moment, where two names cannot be exchanged in one step."""
    return temporary.with_name(temporary.name + _ASIDE)


def _remove_debris(target: Path) -> None:
    """Remove what killed runs on the same target left; a living run holds a lock on its own.

    A folder that such a run had just put aside comes back first.
    """
    with suppress(OSError):
        for aside in target.parent.glob(f"{_stem(target)}*{_ASIDE}"):
            if not os.path.lexists(target):
                os.rename(aside, target)
        found = target.parent.glob(_stem(target) + "*")
        for name in {path.name.removesuffix(system.LOCK_ENDING) for path in found}:
            path = target.with_name(name)
            with suppress(OSError), system.locked(path) as is_held:
                if is_held and path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif is_held:
                    path.unlink()


def _remove_folder(folder: Path) -> None:
    """Remove a folder to the end, even if a signal's exception comes in between."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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


def _rename_new(temporary: Path, target: Path) -> None:
    """Give a file its name unless that is taken."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
        os.rename(temporary, target)
    else:
        os.unlink(temporary)


def _swap_in(temporary: Path, target: Path) -> None:
    """Put a folder in a target's place; the old one, if any, is left as ``temporary`` or gone."""
    if not target.exists():
        os.rename(temporary, target)
    elif not system.exchange(temporary, target):
        aside = _aside(temporary)
        try:
            os.rename(target, aside)
            os.rename(temporary, target)
        finally:
            if os.path.lexists(target):
                _remove_folder(aside)
            else:
                os.rename(aside, target)
