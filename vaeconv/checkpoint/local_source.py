"""Sources of bytes on this machine: a file, a part of another source, and memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from vaeconv.checkpoint import system
from vaeconv.checkpoint.shared import current
from vaeconv.checkpoint.source import ByteSource, Part
from vaeconv.common.wording import suggest_path
from vaeconv.errors import CheckpointNotFoundError, MalformedCheckpointError


class FileSource:
    """A local file.

    Args:
        path: The file; a name for messages where ``fd`` is given.
        fd: An open descriptor to take over instead of opening ``path``.

    Raises:
        CheckpointNotFoundError: There is no such file, it is not a regular file (a pipe or a
            device never ends), or it may not be read.
    """

    def __init__(self, path: Path, *, fd: int | None = None) -> None:
        self._name = str(path)
        self._fd = self._open(path) if fd is None else fd
        status = os.fstat(self._fd)
        self._size = status.st_size
        self._stamp = (status.st_size, status.st_mtime_ns)
        self._mapped: memoryview | None = None
        self._digests = current().digests

    @staticmethod
    def _open(path: Path) -> int:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise CheckpointNotFoundError("not a regular file", where=str(path))
            return os.open(path, system.READ)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            hint = suggest_path(path) if isinstance(error, FileNotFoundError) else None
            raise CheckpointNotFoundError(reason, where=str(path), hint=hint) from error

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done, total = 0, len(buffer)
        while done < total:
            try:
                count = system.read_at(self._fd, buffer[done:], offset + done)
            except OSError as error:
                raise MalformedCheckpointError(
                    f"cannot be read: {error.strerror}", where=self._name
                ) from error
            if not count:
                raise MalformedCheckpointError(
                    f"ends at byte {offset + done}, {total - done} bytes too early",
                    where=self._name,
                    hint="download or copy it again",
                )
            done += count

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        pass

    def map(self, offset: int, size: int) -> memoryview | None:
        if self._mapped is None:
            import mmap

            self._mapped = memoryview(mmap.mmap(self._fd, 0, access=mmap.ACCESS_COPY))
        return self._mapped[offset : offset + size]

    def _identity(self) -> tuple[int, ...]:
        status = os.fstat(self._fd)
        times = status.st_mtime_ns, status.st_ctime_ns
        return status.st_dev, status.st_ino, status.st_size, *times

    def known_sha256(self, part: Part = None) -> str | None:
        return self._digests.get(self._identity() + (part or ()))

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        self.check_unchanged()
        self._digests[self._identity() + (part or ())] = sha256

    @property
    def is_local(self) -> bool:
        return True

    def check_unchanged(self) -> None:
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            raise MalformedCheckpointError(
                "changed while it was being read", where=self._name, hint="run again"
            )

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SliceSource:
    """A part of another source, such as a stored member of a zip file."""

    def __init__(self, parent: ByteSource, offset: int, size: int, name: str) -> None:
        self._parent = parent
        self._offset = offset
        self._size = size
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise MalformedCheckpointError("truncated", where=self._name)
        self._parent.read_into(self._offset + offset, buffer)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._parent.prefetch([(self._offset + a, self._offset + b) for a, b in ranges])

    def map(self, offset: int, size: int) -> memoryview | None:
        return self._parent.map(self._offset + offset, size)

    def _part(self, part: Part) -> tuple[int, int]:
        offset, size = part or (0, self._size)
        return self._offset + offset, size

    def known_sha256(self, part: Part = None) -> str | None:
        return self._parent.known_sha256(self._part(part))

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        self._parent.keep_sha256(sha256, self._part(part))

    @property
    def is_local(self) -> bool:
        return self._parent.is_local

    def check_unchanged(self) -> None:
        self._parent.check_unchanged()

    def close(self) -> None:
        self._parent.close()


class MemorySource:
    """Bytes that are in no file.

    Args:
        data: The bytes.
        name: What to call them in a message.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return len(self._data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        pass

    def map(self, offset: int, size: int) -> memoryview | None:
        return None

    def known_sha256(self, part: Part = None) -> str | None:
        return None

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        pass

    @property
    def is_local(self) -> bool:
        return True

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass
