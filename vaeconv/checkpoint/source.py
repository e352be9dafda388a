"""Sources of bytes: a file, a part of another source, memory; read at any offset."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from vaeconv.checkpoint import system
from vaeconv.common.wording import suggest_path
from vaeconv.errors import CheckpointNotFoundError, MalformedCheckpointError

Part = tuple[int, int] | None
_HASH_PIECE = 1 << 20
_HASH_AHEAD = 64 << 20  # bytes that a remote source fetches at a time for being hashed


class ByteSource(ABC):
    """Random-access bytes. Safe to read from several threads at once.

    Args:
        name: Name for messages: a path or an address.
        size: Length in bytes.

    Attributes:
        is_local: True if reading needs no network.
    """

    is_local = True

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._users = 1

    @abstractmethod
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
        return None

    def known_sha256(self, part: Part = None) -> str | None:
        """Return a hash in hexadecimal where no byte must be read for it.

        Args:
            part: Offset and length of what is hashed; None for all bytes.
        """
        return None

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        """Note a hash for who asks next."""

    def check_unchanged(self) -> None:
        """Check that the bytes are still those that were there when it was opened.

        Raises:
            MalformedCheckpointError: The source changed in the meantime.
        """

    def retain(self) -> ByteSource:
        """Count one more user, who closes it as well."""
        self._users += 1
        return self

    def close(self) -> None:
        """Release what the source holds, once its last user closes it."""
        self._users -= 1
        if not self._users:
            self._release()

    def _release(self) -> None:
        pass


@dataclass(slots=True)
class Shared:
    """Facts of sources, kept while :func:`shared_sources` lasts.

    Attributes:
        commits: The commit that each revision of a repository named when it was first asked for.
        listings: The paths of all files at a commit of a repository.
        remote: Files on the Hub by repository, commit and path, with what was fetched of them;
            None where nothing lasts.
        digests: The sha256 of local files by device, inode, size and times.
    """

    remote: dict[tuple[str, str, str], ByteSource] | None = None
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    listings: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    digests: dict[tuple[int, ...], str] = field(default_factory=dict)


_shared: ContextVar[Shared | None] = ContextVar("shared_sources", default=None)


def shared_now() -> Shared:
    """Return what is shared now, or something new if nothing is."""
    return _shared.get() or Shared()


@contextmanager
def shared_sources() -> Iterator[None]:
    """Share sources among all that opens them inside the block, in this thread.

    A branch on the Hub that moves meanwhile is seen at the commit that it named first, no byte of
    a file on the Hub is fetched twice, and no file is hashed twice. In a block in another one
    nothing changes.
    """
    if _shared.get():
        yield
        return
    remote: dict[tuple[str, str, str], ByteSource] = {}
    token = _shared.set(Shared(remote))
    try:
        yield
    finally:
        _shared.reset(token)
        for source in remote.values():
            source.close()


class FileSource(ByteSource):
    """A local file.

    Args:
        path: The file; a name for messages where ``fd`` is given.
        fd: An open descriptor to take over instead of opening ``path``.

    Raises:
        CheckpointNotFoundError: There is no such file, it is not a regular file (a pipe or a
            device never ends), or it may not be read.
    """

    def __init__(self, path: Path, *, fd: int | None = None) -> None:
        self._fd = _open_file(path) if fd is None else fd
        self._stamp = self._size_and_time()
        super().__init__(str(path), self._stamp[0])
        self._mapped: memoryview | None = None
        self._digests = shared_now().digests

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done, total = 0, len(buffer)
        while done < total:
            try:
                count = system.read_at(self._fd, buffer[done:], offset + done)
            except OSError as error:
                raise MalformedCheckpointError(
                    f"cannot be read: {error.strerror}", where=self.name
                ) from error
            if not count:
                raise MalformedCheckpointError(
                    f"ends at byte {offset + done}, {total - done} bytes too early",
                    where=self.name,
                    hint="download or copy it again",
                )
            done += count

    def map(self, offset: int, size: int) -> memoryview | None:
        if self._mapped is None:
            import mmap

            self._mapped = memoryview(mmap.mmap(self._fd, 0, access=mmap.ACCESS_COPY))
        return self._mapped[offset : offset + size]

    def _size_and_time(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_size, status.st_mtime_ns

    def _identity(self, part: Part) -> tuple[int, ...]:
        status = os.fstat(self._fd)
        times = status.st_mtime_ns, status.st_ctime_ns
        return status.st_dev, status.st_ino, status.st_size, *times, *(part or ())

    def known_sha256(self, part: Part = None) -> str | None:
        return self._digests.get(self._identity(part))

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        self.check_unchanged()
        self._digests[self._identity(part)] = sha256

    def check_unchanged(self) -> None:
        if self._size_and_time() != self._stamp:
            raise MalformedCheckpointError(
                "changed while it was being read", where=self.name, hint="run again"
            )

    def _release(self) -> None:
        os.close(self._fd)
        self._fd = -1


def _open_file(path: Path) -> int:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointNotFoundError("not a regular file", where=str(path))
        return os.open(path, system.READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = suggest_path(path) if isinstance(error, FileNotFoundError) else None
        raise CheckpointNotFoundError(reason, where=str(path), hint=hint) from error


class SliceSource(ByteSource):
    """A part of another source, such as a stored member of a zip file."""

    def __init__(self, parent: ByteSource, offset: int, size: int, name: str) -> None:
        super().__init__(name, size)
        self._parent = parent
        self._offset = offset
        self.is_local = parent.is_local

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self.size:
            raise MalformedCheckpointError("truncated", where=self.name)
        self._parent.read_into(self._offset + offset, buffer)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._parent.prefetch([(self._offset + a, self._offset + b) for a, b in ranges])

    def map(self, offset: int, size: int) -> memoryview | None:
        return self._parent.map(self._offset + offset, size)

    def _part(self, part: Part) -> tuple[int, int]:
        offset, size = part or (0, self.size)
        return self._offset + offset, size

    def known_sha256(self, part: Part = None) -> str | None:
        return self._parent.known_sha256(self._part(part))

    def keep_sha256(self, sha256: str, part: Part = None) -> None:
        self._parent.keep_sha256(sha256, self._part(part))

    def check_unchanged(self) -> None:
        self._parent.check_unchanged()

    def _release(self) -> None:
        self._parent.close()


class MemorySource(ByteSource):
    """Bytes that are in no file."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(name, len(data))
        self._data = data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self._data[offset : offset + len(buffer)]


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
