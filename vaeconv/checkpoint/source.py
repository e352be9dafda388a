"""Sources of bytes: anything with a size that can be read at an offset."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vaeconv.checkpoint import system
from vaeconv.checkpoint.shared import current
from vaeconv.errors import CheckpointNotFoundError, MalformedCheckpointError
from vaeconv.nearby import suggest_path

Part = tuple[int, int] | None
_HASH_PIECE = 1 << 20
_HASH_AHEAD = 64 << 20  # bytes that a remote source fetches at a time for being hashed


class ByteSource(Protocol):
    """Random-access bytes. Safe to read from several threads at once."""

    @property
    def name(self) -> str:
        """Name for messages: a path or an address."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes at ``offset``.

        Raises:
            MalformedCheckpointError: The source ends before the buffer is full.
        """

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Say which ``(start, end)`` byte ranges will be read, so that a remote can fetch them."""

    def map(self, offset: int, size: int) -> memoryview | None:
        """Give bytes as writable memory that leaves the file as it is.

        Returns:
            A copy-on-write view that outlives the source; None where that cannot be had.
        """

    def known_sha256(self, part: Part = None) -> str | None:
        """Return a hash in hexadecimal where no byte must be read for it.

        Args:
            part: Offset and length of what is hashed; None for all bytes.
        """

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        """Note a hash for who asks next."""

    @property
    def is_local(self) -> bool:
        """True if reading needs no network."""

    def check_unchanged(self) -> None:
        """Check that the bytes are still those that were there when it was opened.

        Raises:
            MalformedCheckpointError: The source changed in the meantime.
        """

    def close(self) -> None:
        """Release what the source holds."""


def read_bytes(source: ByteSource, offset: int, size: int) -> bytearray:
    """Read ``size`` bytes at ``offset`` into a new buffer.

    Raises:
        MalformedCheckpointError: The range is not inside the source.
    """
    if offset < 0 or size < 0 or offset + size > source.size:
        raise MalformedCheckpointError(
            f"truncated: bytes {offset} to {offset + size} are needed, "
            f"the file ends at {source.size}",
            where=source.name,
            hint="download or copy it again",
        )
    data = bytearray(size)
    source.read_into(offset, memoryview(data))
    return data


def hash_bytes(source: ByteSource) -> str:
    """Hash a source whole (sha256, hexadecimal), where its hash is not known already."""
    known = source.known_sha256()
    if known is not None:
        return known
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASH_PIECE))
    for start in range(0, source.size, _HASH_PIECE):
        if start % _HASH_AHEAD == 0:
            source.prefetch([(start, min(start + _HASH_AHEAD, source.size))])
        piece = buffer[: min(_HASH_PIECE, source.size - start)]
        source.read_into(start, piece)
        digest.update(piece)
    source.keep_sha256(digest.hexdigest())
    return digest.hexdigest()


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
