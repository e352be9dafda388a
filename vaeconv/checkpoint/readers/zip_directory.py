"""The central directory of a zip file, read strictly from a byte source.

The standard library's ``zipfile`` takes the last of two members with one name where torch takes
the first, follows overlapping entries and needs a seekable file; a checkpoint that depends on
such differences is not one. Format: PKWARE APPNOTE 6.3, sections 4.3 and 4.5.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.source import ByteSource, read_bytes
from vaeconv.checkpoint.storage import PlainReader, StorageReader
from vaeconv.errors import MalformedCheckpointError

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")

_MAX_DIRECTORY = 64 << 20
_MAX_COMMENT = 65535
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_HAS_DESCRIPTOR = 0x8
_INFLATE_PIECE = 64 << 10
# Trained weights hardly compress; what shrinks a hundredfold and is huge is there to fill a disk.
_BOMB_RATIO, _BOMB_SIZE = 100, 256 << 20
_BOMB_ENTRY = 1 << 30


@dataclass(slots=True)
class ZipEntry:
    """One member; a :class:`~vaeconv.checkpoint.storage.Storage`.

    Attributes:
        source: The zip file.
        name: Member name.
        raw_name: Its bytes, as the local header must repeat them.
        method: 0 stored, 8 deflated.
        crc: CRC-32 of the uncompressed bytes.
        compressed_size: Bytes in the file.
        size: Bytes after decompression.
        header_offset: Offset of the local header.
        end: Offset of the next entry or of the directory: nothing of this one lies beyond.
    """

    source: ByteSource
    name: str
    raw_name: bytes
    method: int
    crc: int
    compressed_size: int
    size: int
    header_offset: int
    end: int = 0
    _data_offset: int = field(default=-1, repr=False)

    @property
    def extent(self) -> tuple[int, int]:
        return self.header_offset, self.end

    @property
    def is_compressed(self) -> bool:
        return self.method == _DEFLATED

    def data_offset(self) -> int:
        """Find the first byte of the data behind the local header.

        Raises:
            MalformedCheckpointError: The local header contradicts the directory.
        """
        if self._data_offset < 0:
            self._data_offset = self._check_local_header()
        return self._data_offset

    def _check_local_header(self) -> int:
        header = read_bytes(self.source, self.header_offset, _LOCAL.size)
        magic, _, flags, method, _, _, crc, compressed, size, name_length, extra_length = (
            _LOCAL.unpack(header)
        )
        start = self.header_offset + _LOCAL.size
        if magic != b"PK\x03\x04":
            raise self._malformed("has no local header where the directory says")
        if read_bytes(self.source, start, name_length) != self.raw_name:
            raise self._malformed("has another name in its local header")
        if method != self.method or flags & _ENCRYPTED:
            raise self._malformed("is stored differently in its local header")
        sizes_here = not flags & _HAS_DESCRIPTOR and compressed != 0xFFFFFFFF
        if sizes_here and (crc, compressed, size) != (self.crc, self.compressed_size, self.size):
            raise self._malformed("has other sizes or another CRC in its local header")
        offset = start + name_length + extra_length
        if offset + self.compressed_size > self.end:
            raise self._malformed("runs into what follows it")
        return int(offset)

    def _malformed(self, what: str) -> MalformedCheckpointError:
        return MalformedCheckpointError(f"zip entry {self.name} {what}", where=self.source.name)

    def open(self) -> StorageReader:
        """Start reading the uncompressed bytes."""
        if self.is_compressed:
            return _InflateReader(self)
        return PlainReader(self.source, self.data_offset())

    def read(self, limit: int) -> bytearray:
        """Read a small member whole and check its CRC.

        Raises:
            MalformedCheckpointError: It is larger than ``limit``, or damaged.
        """
        if self.size > limit:
            raise self._malformed(f"is {self.size} bytes long; at most {limit} are read")
        data = bytearray(self.size)
        self.open().read_into(memoryview(data))
        if crc32(data) != self.crc:
            raise self._malformed("fails its CRC-32 check")
        return data


class _InflateReader:
    """Inflates a deflated entry piece by piece; never past the size that it states."""

    def __init__(self, entry: ZipEntry) -> None:
        self._entry = entry
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._position = entry.data_offset()
        self._left = entry.compressed_size
        self._pending = b""

    def read_into(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            if not self._pending and self._left:
                count = min(self._left, _INFLATE_PIECE)
                self._pending = bytes(read_bytes(self._entry.source, self._position, count))
                self._position += count
                self._left -= count
            try:
                data = self._inflate.decompress(self._pending, len(buffer) - done)
            except zlib.error as error:
                raise self._entry._malformed(f"cannot be inflated: {error}") from error
            self._pending = self._inflate.unconsumed_tail
            if not data and (self._inflate.eof or not (self._left or self._pending)):
                raise self._entry._malformed("inflates to fewer bytes than it states")
            buffer[done : done + len(data)] = data
            done += len(data)


def read_zip_directory(source: ByteSource) -> dict[str, ZipEntry]:
    """Read and check the directory of a zip file.

    Returns:
        Entries by name, in directory order; folders left out.

    Raises:
        MalformedCheckpointError: It is truncated, encrypted, ambiguous (two members with one
            name, compared without case), overlapping, or uses an unknown compression.
    """
    offset, size, count = _find_directory(source)
    directory = read_bytes(source, offset, size)
    entries: dict[str, ZipEntry] = {}
    folded: set[str] = set()
    position = 0
    for _ in range(count):
        entry, position = _parse_entry(source, directory, position)
        key = entry.name.casefold()
        if key in folded:
            raise MalformedCheckpointError(
                f"two zip entries are called {entry.name}", where=source.name
            )
        folded.add(key)
        entries[entry.name] = entry
    if position != size:
        raise MalformedCheckpointError(
            "the zip directory is longer than its entries", where=source.name
        )
    _check_inflation(source, entries)
    _check_extents(source, entries, offset)
    return {name: entry for name, entry in entries.items() if not name.endswith("/")}


def _find_directory(source: ByteSource) -> tuple[int, int, int]:
    tail_size = min(source.size, _END.size + _MAX_COMMENT)
    tail_offset = source.size - tail_size
    tail = read_bytes(source, tail_offset, tail_size)
    at = len(tail)
    while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
        if len(tail) - at >= _END.size:
            fields = _END.unpack_from(tail, at)
            if at + _END.size + fields[7] == len(tail):
                break
    else:
        raise MalformedCheckpointError(
            "the zip file has no end: it is truncated",
            where=source.name,
            hint="download or copy it again",
        )
    _, disk, first_disk, here, count, size, offset, _ = fields
    end = tail_offset + at
    short = (disk, first_disk, here, count, size, offset)
    is_wide = 0xFFFF in (here, count) or 0xFFFFFFFF in (size, offset)
    # Torch writes the zip64 record always, and most readers take it where it is there.
    if is_wide or tail[max(at - _END64_LOCATOR.size, 0) : at].startswith(b"PK\x06\x07"):
        end, wide = _read_end64(source, end)
        if not is_wide and wide != short:
            raise MalformedCheckpointError(
                "the zip file's two end records disagree", where=source.name
            )
        disk, first_disk, here, count, size, offset = wide
    if disk or first_disk or here != count:
        raise MalformedCheckpointError("a zip file in several volumes", where=source.name)
    # Nothing may stand between the directory and its end record: readers disagree on what to
    # make of such a gap, so it could show them different members.
    if size > _MAX_DIRECTORY or count * _CENTRAL.size > size or offset + size != end:
        raise MalformedCheckpointError("the zip directory's numbers are wrong", where=source.name)
    return offset, size, count


def _read_end64(source: ByteSource, end: int) -> tuple[int, tuple[int, ...]]:
    if end < _END64_LOCATOR.size:
        raise MalformedCheckpointError("the zip64 locator is missing", where=source.name)
    locator = read_bytes(source, end - _END64_LOCATOR.size, _END64_LOCATOR.size)
    magic, _, offset, _ = _END64_LOCATOR.unpack(locator)
    if magic != b"PK\x06\x07":
        raise MalformedCheckpointError("the zip64 locator is missing", where=source.name)
    record = _END64.unpack(read_bytes(source, offset, _END64.size))
    if record[0] != b"PK\x06\x06" or offset + 12 + record[1] != end - _END64_LOCATOR.size:
        raise MalformedCheckpointError("the zip64 end record is missing", where=source.name)
    return offset, record[4:]


def _parse_entry(source: ByteSource, directory: bytearray, position: int) -> tuple[ZipEntry, int]:
    if position + _CENTRAL.size > len(directory):
        raise MalformedCheckpointError("the zip directory is cut short", where=source.name)
    (
        magic, _, _, flags, method, _, _, crc, compressed, size,
        name_length, extra_length, comment_length, _, _, _, offset,
    ) = _CENTRAL.unpack_from(directory, position)  # fmt: skip
    name_at = position + _CENTRAL.size
    extra_at = name_at + name_length
    following = extra_at + extra_length + comment_length
    if magic != b"PK\x01\x02" or following > len(directory):
        raise MalformedCheckpointError("the zip directory is damaged", where=source.name)
    raw_name = bytes(directory[name_at:extra_at])
    try:
        name = raw_name.decode("utf-8")
    except UnicodeDecodeError:
        name = raw_name.decode("cp437")
    if 0xFFFFFFFF in (compressed, size, offset):
        extra = directory[extra_at : extra_at + extra_length]
        size, compressed, offset = _read_zip64_extra(source, name, extra, size, compressed, offset)
    problem = None
    if b"\0" in raw_name:  # where some readers end the name, so it may pass for another one
        problem = "has a zero byte in its name"
    elif flags & _ENCRYPTED:
        problem = "is encrypted"
    elif method not in (_STORED, _DEFLATED):
        problem = f"uses compression method {method}; only stored and deflated are read"
    elif method == _STORED and compressed != size:
        problem = "is stored, but its two sizes differ"
    elif size > max(_BOMB_ENTRY, compressed * _BOMB_RATIO):
        problem = f"inflates {compressed} bytes to {size}: a decompression bomb"
    if problem:
        raise MalformedCheckpointError(f"zip entry {name} {problem}", where=source.name)
    return ZipEntry(source, name, raw_name, method, crc, compressed, size, offset), following


def _read_zip64_extra(
    source: ByteSource, name: str, extra: bytearray, size: int, compressed: int, offset: int
) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            wide = [
                struct.unpack_from("<Q", extra, at + 4 + index * 8)[0]
                for index in range(length // 8)
                if at + 12 + index * 8 <= len(extra)
            ]
            values = iter(wide)
            resolved = [
                next(values, value) if value == 0xFFFFFFFF else value
                for value in (size, compressed, offset)
            ]
            return resolved[0], resolved[1], resolved[2]
        at += 4 + length
    raise MalformedCheckpointError(f"zip entry {name} has no zip64 sizes", where=source.name)


def _check_inflation(source: ByteSource, entries: dict[str, ZipEntry]) -> None:
    total = sum(entry.size for entry in entries.values())
    if total > max(_BOMB_SIZE, source.size * _BOMB_RATIO):
        raise MalformedCheckpointError(
            f"inflates {source.size} bytes to {total}: a decompression bomb", where=source.name
        )


def _check_extents(source: ByteSource, entries: dict[str, ZipEntry], directory: int) -> None:
    """Give each entry the end that it must not pass, and refuse overlaps."""
    end = directory
    for entry in sorted(entries.values(), key=lambda e: e.header_offset, reverse=True):
        entry.end = end
        if entry.header_offset + _LOCAL.size + len(entry.raw_name) + entry.compressed_size > end:
            raise MalformedCheckpointError(
                f"zip entry {entry.name} overlaps what follows it", where=source.name
            )
        end = entry.header_offset
