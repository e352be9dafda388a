"""Storages: runs of bytes in a file, read from first to last, that tensors are views of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.source import ByteSource
from vaeconv.errors import MalformedCheckpointError

_PIECE = 1 << 20


class Storage(Protocol):
    """A run of bytes in a file that one or more tensors are views of."""

    @property
    def name(self) -> str:
        """Name for messages."""

    @property
    def source(self) -> ByteSource:
        """The file."""

    @property
    def size(self) -> int:
        """Bytes, after decompression."""

    @property
    def extent(self) -> tuple[int, int]:
        """The ``(start, end)`` bytes of the source that reading this touches."""

    @property
    def crc(self) -> int | None:
        """CRC-32 of the bytes, where the container has one."""

    @property
    def is_compressed(self) -> bool:
        """True if the bytes must be inflated, so that they can only be read in order."""

    def data_offset(self) -> int:
        """Offset in the source of the first (possibly compressed) byte."""

    def open(self) -> StorageReader:
        """Start reading from the first byte."""


class StorageReader(Protocol):
    """Reader of a storage, from its first byte to its last."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes."""


class PlainStorage(NamedTuple):
    """Bytes that lie in the file as they are, without a checksum."""

    source: ByteSource
    offset: int
    size: int
    name: str

    @property
    def extent(self) -> tuple[int, int]:
        return self.offset, self.offset + self.size

    @property
    def crc(self) -> int | None:
        return None

    @property
    def is_compressed(self) -> bool:
        return False

    def data_offset(self) -> int:
        return self.offset

    def open(self) -> StorageReader:
        return PlainReader(self.source, self.offset)


class PlainReader:
    """Reads stored bytes in order."""

    def __init__(self, source: ByteSource, offset: int) -> None:
        self._source = source
        self._position = offset

    def read_into(self, buffer: memoryview) -> None:
        self._source.read_into(self._position, buffer)
        self._position += len(buffer)


def check_storages(storages: Sequence[Storage]) -> None:
    """Read storages whole, in constant memory, and compare their CRC.

    Raises:
        MalformedCheckpointError: The bytes are not those that were written.
    """
    buffer = memoryview(bytearray(_PIECE))
    for storage in storages:
        if storage.crc is None:
            continue
        reader, crc, left = storage.open(), 0, storage.size
        while left:
            piece = buffer[: min(left, _PIECE)]
            reader.read_into(piece)
            crc = crc32(piece, crc)
            left -= len(piece)
        if crc != storage.crc:
            raise crc_error(storage)


def crc_error(storage: Storage) -> MalformedCheckpointError:
    """Describe bytes that fail their checksum."""
    return MalformedCheckpointError(
        f"{storage.name} fails its CRC-32 check: its bytes are not those that were written",
        where=storage.source.name,
        hint="download or copy the file again",
    )


def skip_bytes(reader: StorageReader, count: int) -> None:
    """Go on so many bytes, which are read only where that cannot be had for nothing."""
    if isinstance(reader, PlainReader):
        reader._position += count
        return
    scratch = memoryview(bytearray(min(count, _PIECE)))
    while count:
        piece = scratch[: min(count, _PIECE)]
        reader.read_into(piece)
        count -= len(piece)
