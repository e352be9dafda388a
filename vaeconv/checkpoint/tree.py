"""Folders: a flat view of the files in a local directory, and of those on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol, runtime_checkable

from vaeconv.checkpoint.source import ByteSource, FileSource
from vaeconv.errors import CheckpointNotFoundError

_FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f]")
_LEVELS = 2


@runtime_checkable
class FileTree(Protocol):
    """Files under a folder, wherever it is."""

    @property
    def name(self) -> str:
        """Name of the folder for messages: a path or an address."""

    def names(self) -> list[str]:
        """List the files, at most two levels deep, as sorted relative posix paths."""

    def holds(self, name: str) -> bool:
        """Tell whether anything is called so, be it a file that can be read or not."""

    def open(self, name: str) -> ByteSource:
        """Open one of the files.

        Raises:
            CheckpointNotFoundError: There is no such file, or the name leads out of the folder.
        """

    def subtree(self, name: str) -> FileTree:
        """Return the view of a folder inside this one.

        Raises:
            CheckpointNotFoundError: There is no such folder, or the name leads out of this one.
        """


def stays_inside(name: str) -> bool:
    """Tell whether a relative posix path names something below where it starts."""
    has_drive = bool(os.path.splitdrive(name)[0])  # Windows goes there from any folder
    is_odd = _FORBIDDEN.search(name) or {"", ".", ".."} & set(name.split("/"))
    return not (has_drive or is_odd)


def checked(name: str, where: str) -> str:
    """Return ``name`` if it is safe to append to a folder.

    Raises:
        CheckpointNotFoundError: It leads out of the folder.
    """
    if not stays_inside(name):
        raise CheckpointNotFoundError(f"{name!r} is not the name of a file inside it", where=where)
    return name


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; a name that is too long for one is not."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


class LocalTree:
    """A local directory.

    Links to files are followed wherever they lead: a checkout of the Hub's cache consists of
    them. Only names are confined, since those can come from an index file.

    Args:
        root: The directory.

    Raises:
        CheckpointNotFoundError: It is not a directory that can be read.
    """

    def __init__(self, root: Path) -> None:
        if not is_folder(root):
            raise CheckpointNotFoundError("not a folder", where=str(root))
        self._root = root

    @property
    def name(self) -> str:
        """Return the path."""
        return str(self._root)

    def names(self) -> list[str]:
        """List the files, at most two levels deep."""
        return sorted(self._list(self._root, "", _LEVELS))

    def _list(self, folder: Path, prefix: str, levels: int) -> list[str]:
        found: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    try:
                        is_file, is_folder = entry.is_file(), entry.is_dir()
                    except OSError:  # a link in circles: not a file, and nobody asked for it
                        continue
                    if is_file:
                        found.append(prefix + entry.name)
                    elif levels > 1 and is_folder:
                        found += self._list(Path(entry.path), f"{prefix}{entry.name}/", levels - 1)
        except OSError as error:
            raise CheckpointNotFoundError(
                f"cannot be listed: {error.strerror}", where=str(folder)
            ) from error
        return found

    def holds(self, name: str) -> bool:
        """Tell whether anything is called so, such as a link that leads nowhere."""
        return os.path.lexists(self._root / checked(name, self.name))

    def open(self, name: str) -> ByteSource:
        """Open one of the files."""
        return FileSource(self._root / checked(name, self.name))

    def subtree(self, name: str) -> LocalTree:
        """Return the view of a folder inside this one."""
        return LocalTree(self._root / checked(name, self.name))
