"""Output files as segments: what each byte will be, before any tensor is read.

A file is a sequence of literal bytes, tensor bytes and bytes that depend on checksums of tensors
before them. All sizes are known from the start, so any part can be filled at its final offset.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.readers.safetensors import build_header

Spec = tuple[str, DType, tuple[int, ...]]


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
    deferred: Callable[[Mapping[str, int]], bytes] | None = None


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
    builder.add_literal(header)
    for name in order:
        builder.add_tensor(name, sizes[name])
    return builder.file()


def lay_out_torch_zip(tensors: Sequence[Spec]) -> OutputFile:
    """Lay out what ``torch.save({"state_dict": {...}}, …)`` writes.

    Records are stored, begin at multiples of 64 bytes, and are followed by a data descriptor, as
    in torch's own writer; so the file is written in one pass, without going back for a checksum.
    """
    records: list[_Record] = []
    builder = _Builder()
    for name, content in (
        ("data.pkl", pickle_state_dict(tensors)),
        (".format_version", b"1"),
        (".storage_alignment", b"64"),
        ("byteorder", b"little"),
    ):
        _add_record(builder, records, name, len(content), literal=content)
    for index, (name, dtype, shape) in enumerate(tensors):
        _add_record(builder, records, f"data/{index}", _nbytes(dtype, shape), tensor=name)
    _add_record(builder, records, "version", 2, literal=b"3\n")
    _add_directory(builder, records)
    return builder.file(needs_crc=True)


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
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(size, 1)
    return strides


def _nbytes(dtype: DType, shape: Sequence[int]) -> int:
    total = dtype.itemsize
    for size in shape:
        total *= size
    return total


class _Builder:
    """Appends segments at a running offset."""

    def __init__(self) -> None:
        self.offset = 0
        self._segments: list[Segment] = []

    def _add(self, segment: Segment) -> None:
        if segment.size:
            self._segments.append(segment)
            self.offset += segment.size

    def add_literal(self, data: bytes) -> None:
        self._add(Segment(self.offset, len(data), literal=data))

    def add_tensor(self, name: str, size: int) -> None:
        self._add(Segment(self.offset, size, tensor=name))

    def add_deferred(self, size: int, make: Callable[[Mapping[str, int]], bytes]) -> None:
        self._add(Segment(self.offset, size, deferred=make))

    def file(self, *, needs_crc: bool = False) -> OutputFile:
        return OutputFile(tuple(self._segments), needs_crc)


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
    crc: int | None
    tensor: str | None

    def checksum(self, crcs: Mapping[str, int]) -> int:
        if self.crc is not None:
            return self.crc
        assert self.tensor is not None
        return crcs[self.tensor] if self.size else 0


def _add_record(
    builder: _Builder,
    records: list[_Record],
    name: str,
    size: int,
    *,
    literal: bytes | None = None,
    tensor: str | None = None,
) -> None:
    raw = (_FOLDER + name).encode()
    crc = None if literal is None else crc32(literal)
    record = _Record(raw, builder.offset, size, crc, tensor)
    records.append(record)
    # The extra field "FB" pads the data to the alignment that torch maps files with.
    start = builder.offset + 30 + len(raw) + 4
    padding = -start % _ALIGNMENT
    builder.add_literal(
        struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 45, _FLAGS, 0, *_DATE, 0, 0, 0, len(raw), 4 + padding
        )
        + raw
        + struct.pack("<2sH", b"FB", padding)
        + b"Z" * padding
    )
    if literal is not None:
        builder.add_literal(literal)
    else:
        assert tensor is not None
        builder.add_tensor(tensor, size)
    wide = size >= _LIMIT
    form = "<4sIQQ" if wide else "<4s3I"
    builder.add_deferred(
        struct.calcsize(form),
        lambda crcs: struct.pack(form, b"PK\x07\x08", record.checksum(crcs), size, size),
    )


def _add_directory(builder: _Builder, records: Sequence[_Record]) -> None:
    start = builder.offset
    size = sum(len(_directory_entry(record, 0)) for record in records)

    def make(crcs: Mapping[str, int]) -> bytes:
        return b"".join(_directory_entry(record, record.checksum(crcs)) for record in records)

    builder.add_deferred(size, make)
    count = len(records)
    end = b""
    if start + size > _LIMIT or count > 0xFFFE:
        end = struct.pack(
            "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start
        ) + struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    short = min(count, 0xFFFF)
    builder.add_literal(
        end
        + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, short, short, size, min(start, _LIMIT), 0)
    )


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
