"""Sources of bytes: anything with a size that can be read at an offset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from vaeconv.errors import MalformedCheckpointError

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
