"""Output files as segments: what each byte will be, before any tensor is read.

A file is a sequence of literal bytes, tensor bytes and bytes that depend on checksums of tensors
before them. All sizes are known from the start, so any part can be filled at its final offset.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.readers.safetensors import build_header

Spec = tuple[str, DType, tuple[int, ...]]
Deferred = Callable[[Mapping[str, int]], bytes]


class Segment(NamedTuple):
    """A run of bytes in the output.

    Attributes:
        offset: Where it begins.
        size: Its length.
        literal: The bytes, where they are known.
        tensor: Name of the tensor whose bytes they are.
        deferred: Makes the bytes from the CRC-32 of the tensors so far, by name.
    """

    offset: int
    size: int
    literal: bytes | None = None
    tensor: str | None = None
    deferred: Deferred | None = None


class OutputFile(NamedTuple):
    """A file to be written.

    Attributes:
        segments: All its bytes, without gaps.
        needs_crc: Whether deferred segments ask for checksums.
    """

    segments: tuple[Segment, ...]
    needs_crc: bool = False

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.segments[-1].offset + self.segments[-1].size

    def pieces(self, start: int, end: int) -> Iterator[tuple[Segment, int, int, int]]:
        """Cut a range out: yields segment, start in it, start in the range, and length."""
        index = bisect_right(self.segments, start, key=lambda segment: segment.offset) - 1
        while index < len(self.segments) and self.segments[index].offset < end:
            segment = self.segments[index]
            first = max(start, segment.offset)
            last = min(end, segment.offset + segment.size)
            if last > first:
                yield segment, first - segment.offset, first - start, last - first
            index += 1


def lay_out_safetensors(
    tensors: Sequence[Spec], metadata: Mapping[str, str] = MappingProxyType({})
) -> OutputFile:
    """Lay out a safetensors file.

    Args:
        tensors: What goes into it.
        metadata: Entries beside ``format``, the one that loaders look for.
    """
    header, order = build_header(tensors, {**metadata, "format": "pt"})
    sizes = {name: _nbytes(dtype, shape) for name, dtype, shape in tensors}
    builder = _Builder()
    builder.add(len(header), literal=header)
    for name in order:
        builder.add(sizes[name], tensor=name)
    return OutputFile(tuple(builder.segments))


def lay_out_torch_zip(tensors: Sequence[Spec]) -> OutputFile:
    """Lay out what ``torch.save({"state_dict": {...}}, …)`` writes.

    Records are stored, begin at multiples of 64 bytes, and are followed by a data descriptor, as
    in torch's own writer; so the file is written in one pass, without going back for a checksum.
    """
    builder = _ZipBuilder()
    builder.add_bytes("data.pkl", pickle_state_dict(tensors))
    builder.add_bytes(".format_version", b"1")
    builder.add_bytes(".storage_alignment", b"64")
    builder.add_bytes("byteorder", b"little")
    for index, (name, dtype, shape) in enumerate(tensors):
        builder.add_tensor(f"data/{index}", _nbytes(dtype, shape), name)
    builder.add_bytes("version", b"3\n")
    builder.add_directory()
    return OutputFile(tuple(builder.segments), needs_crc=True)


def pickle_state_dict(tensors: Sequence[Spec]) -> bytes:
    """Write the pickle (protocol 2) of ``{"state_dict": {name: tensor, …}}`` as torch does.

    Each tensor is ``torch._utils._rebuild_tensor_v2(storage, 0, shape, stride, False,
    OrderedDict())`` over a storage of its own; the storage is a persistent id.
    """
    out = [b"\x80\x02}X\x0a\x00\x00\x00state_dict}("]
    for index, (name, dtype, shape) in enumerate(tensors):
        storage = f"{dtype.storage}Storage".encode()
        numel = _nbytes(dtype, shape) // dtype.itemsize
        out += (
            _unicode(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _unicode("storage"),
            b"ctorch\n" + storage + b"\n",
            _unicode(str(index)),
            _unicode("cpu"),
            _integer(numel),
            b"tQ",
            _integer(0),
            _tuple(shape),
            _tuple(_strides(shape)),
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    return b"".join([*out, b"us."])


def _unicode(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes((len(data),)) + data


def _tuple(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _strides(shape: Sequence[int]) -> list[int]:
    inner = (shape[axis + 1 :] for axis in range(len(shape)))
    return [math.prod(max(size, 1) for size in sizes) for sizes in inner]


def _nbytes(dtype: DType, shape: Sequence[int]) -> int:
    return dtype.itemsize * math.prod(shape)


class _Builder:
    """Appends segments at a running offset."""

    def __init__(self) -> None:
        self.offset = 0
        self.segments: list[Segment] = []

    def add(
        self,
        size: int,
        *,
        literal: bytes | None = None,
        tensor: str | None = None,
        deferred: Deferred | None = None,
    ) -> None:
        if size:
            self.segments.append(Segment(self.offset, size, literal, tensor, deferred))
            self.offset += size


# --- the zip container (PKWARE APPNOTE 6.3); every record in zip64 form where it must be ---

_FOLDER = "archive/"
_ALIGNMENT = 64
_FLAGS = 0x0808  # names in UTF-8; sizes and CRC follow the data
_DATE = (0, 0x21)  # 1980-01-01, the first that zip can say: no time stamps in the bytes
_LIMIT = 0xFFFFFFFF


class _Record(NamedTuple):
    name: bytes
    offset: int
    size: int
    checksum: Callable[[Mapping[str, int]], int]


class _ZipBuilder(_Builder):
    """Appends records, and the directory of them."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[_Record] = []

    def add_bytes(self, name: str, data: bytes) -> None:
        crc = crc32(data)
        self._add_header(name, len(data), lambda crcs: crc)
        self.add(len(data), literal=data)
        self._add_descriptor()

    def add_tensor(self, name: str, size: int, tensor: str) -> None:
        self._add_header(name, size, lambda crcs: crcs[tensor] if size else 0)
        self.add(size, tensor=tensor)
        self._add_descriptor()

    def _add_header(
        self, name: str, size: int, checksum: Callable[[Mapping[str, int]], int]
    ) -> None:
        raw = (_FOLDER + name).encode()
        self._records.append(_Record(raw, self.offset, size, checksum))
        # The extra field "FB" pads the data to the alignment that torch maps files with.
        padding = -(self.offset + 30 + len(raw) + 4) % _ALIGNMENT
        fixed = struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 45, _FLAGS, 0, *_DATE, 0, 0, 0, len(raw), 4 + padding
        )
        header = fixed + raw + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        self.add(len(header), literal=header)

    def _add_descriptor(self) -> None:
        *_, size, checksum = self._records[-1]
        form = "<4sIQQ" if size >= _LIMIT else "<4s3I"
        self.add(
            struct.calcsize(form),
            deferred=lambda crcs: struct.pack(form, b"PK\x07\x08", checksum(crcs), size, size),
        )

    def add_directory(self) -> None:
        records, start = self._records, self.offset
        size = sum(len(_directory_entry(record, 0)) for record in records)
        self.add(
            size,
            deferred=lambda crcs: b"".join(
                _directory_entry(record, record.checksum(crcs)) for record in records
            ),
        )
        count = len(records)
        end = b""
        if start + size > _LIMIT or count > 0xFFFE:
            end = struct.pack(
                "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start
            ) + struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
        short = min(count, 0xFFFF)
        end += struct.pack(
            "<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, size, min(start, _LIMIT), 0
        )
        self.add(len(end), literal=end)


def _directory_entry(record: _Record, crc: int) -> bytes:
    wide = [record.size, record.size] if record.size >= _LIMIT else []
    wide += [record.offset] if record.offset >= _LIMIT else []
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size = min(record.size, _LIMIT)
    return (
        struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 45, 45, _FLAGS, 0, *_DATE, crc, size, size,
            len(record.name), len(extra), 0, 0, 0, 0, min(record.offset, _LIMIT),
        )
        + record.name
        + extra
    )  # fmt: skip
