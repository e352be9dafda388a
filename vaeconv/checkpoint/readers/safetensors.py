"""Safetensors: parse the header of one, and lay out the header of another.

Format: an 8-byte little-endian header length, a JSON header, the tensor bytes without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from vaeconv.checkpoint.dtypes import BY_CODE, DType
from vaeconv.checkpoint.source import ByteSource, read_bytes
from vaeconv.checkpoint.storage import PlainStorage
from vaeconv.checkpoint.tensor import Tensor
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.errors import MalformedCheckpointError

MAX_HEADER = 100_000_000  # as the library; mostly padding, where it is ever that long
# Parsed JSON takes up to fifty times its length in memory, by these characters. An entry has ten
# of them, and the largest published models have some thousand entries.
_MAX_MARKS = 4_000_000
_SPACE = b" \t\r\n"
_METADATA = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")
_NEEDED = frozenset(_FIELDS)
_MAX_DEPTH = 100  # of what is read past; the library allows some more


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Tell a safetensors file by its first bytes and its size.

    A header length may spell any character, also the brace that a JSON document begins with; but
    text, read as a length, is longer than any file.
    """
    length = int.from_bytes(head[:8], "little")
    rest = head[8:].lstrip(_SPACE)
    fits = 8 + length <= size
    return (rest[:1] == b"{" and (fits or head.lstrip()[:1] != b"{")) or (
        not rest and fits and length >= len(head) - 8 > 0  # space, as far as one can see
    )


def open_safetensors(source: ByteSource) -> Checkpoint:
    """Open a safetensors file.

    Raises:
        MalformedCheckpointError: The header is not valid, or does not fit the file.
    """
    header, data_start = _read_header(source)
    metadata = header.pop(_METADATA, None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _malformed(source, "__metadata__ is not a map of strings")
    tensors = {
        name: _parse_tensor(source, name, entry, data_start) for name, entry in header.items()
    }
    _check_coverage(source, tensors, data_start)
    return Checkpoint(
        name=source.name,
        container="safetensors",
        tensors=tensors,
        sources=(source,),
        metadata=metadata,
    )


def _malformed(source: ByteSource, what: str) -> MalformedCheckpointError:
    return MalformedCheckpointError(f"safetensors header: {what}", where=source.name)


def _read_header(source: ByteSource) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(read_bytes(source, 0, 8), "little")
    if length > MAX_HEADER:
        raise _malformed(source, f"{length} bytes long, more than the {MAX_HEADER} that are read")
    raw = read_bytes(source, 8, length)
    if sum(map(raw.count, (b"{", b"[", b","))) > _MAX_MARKS:
        raise _malformed(source, "more entries than any model has")
    try:
        # The slower hooks are there for what the library refuses and hardly any header has.
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_encodable_pairs if b"\\u" in raw else _unique_keys,
            parse_int=_parse_unsigned if b"-0" in raw else None,
        )
    except (ValueError, RecursionError) as error:
        raise _malformed(source, f"not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise _malformed(source, "not a JSON object")
    return header, 8 + length


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


def _encodable_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # An escape may spell half a surrogate pair, which is no text and cannot be written.
    "".join(part for pair in pairs for part in pair if isinstance(part, str)).encode()
    return _unique_keys(pairs)


def _parse_unsigned(digits: str) -> int:
    if digits.startswith("-"):  # to the library -0 is a float
        raise ValueError(f"{digits[:20]} is not a count")
    return int(digits)


def _check_ignored(source: ByteSource, name: str, values: list[Any]) -> None:
    """Check that the library could read past values, too: it has bounds that Python has not."""
    for _ in range(_MAX_DEPTH):
        if any(isinstance(v, (int, float)) and not abs(v) < 1e308 for v in values):
            raise _malformed(source, f"tensor {name} has a number without bounds")
        lists = [v if isinstance(v, list) else v.values() for v in values
                 if isinstance(v, (list, dict))]  # fmt: skip
        values = [value for inner in lists for value in inner]
        if not values:
            return
    raise _malformed(source, f"tensor {name} has values that are nested too deep")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _parse_tensor(source: ByteSource, name: str, entry: object, data_start: int) -> Tensor:
    if isinstance(entry, list) and len(entry) == len(_FIELDS):  # to the library the same
        entry = dict(zip(_FIELDS, entry, strict=True))
    if not isinstance(entry, dict) or not entry.keys() >= _NEEDED:
        raise _malformed(source, f"tensor {name} is not dtype, shape and data_offsets")
    if len(entry) > len(_FIELDS):  # later versions may say more of a tensor
        _check_ignored(source, name, [v for k, v in entry.items() if k not in _NEEDED])
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise _malformed(source, f"tensor {name} has the unknown dtype {code!r}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_is_count, shape)):
        raise _malformed(source, f"tensor {name} has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise _malformed(source, f"tensor {name} has no valid data_offsets")
    # Sizes that overflow are wrong even where another one is zero.
    if 0 in shape and math.prod(filter(None, shape)) >= 1 << 63:
        raise _malformed(source, f"tensor {name} has a shape without bounds")
    if dtype.packed > 1:
        if not shape or shape[-1] % dtype.packed:
            raise _malformed(source, f"tensor {name}: {code} comes in groups of {dtype.packed}")
        shape[-1] //= dtype.packed
    start, end = offsets
    if end - start != math.prod(shape) * dtype.itemsize:
        raise _malformed(source, f"tensor {name}: shape and data_offsets disagree")
    storage = PlainStorage(source, data_start + start, end - start, name)
    return Tensor(name, dtype, tuple(shape), storage)


def _check_coverage(source: ByteSource, tensors: Mapping[str, Tensor], data_start: int) -> None:
    position = data_start
    for start, end in sorted(tensor.storage.extent for tensor in tensors.values()):
        if start != position:
            raise _malformed(source, f"a gap or an overlap at byte {min(start, position)}")
        position = end
    if position != source.size:
        raise _malformed(source, f"it describes {position} bytes, the file has {source.size}")


def build_header(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[str]]:
    """Lay out a safetensors file, byte for byte as the safetensors library would.

    Args:
        tensors: Name, dtype and shape of each, in any order.
        metadata: The ``__metadata__`` entries; written in sorted order.

    Returns:
        The bytes up to the first tensor, and the names in the order of their bytes: by falling
        alignment, then by name (``prepare`` in safetensors' ``tensor.rs``).
    """
    ordered = sorted(tensors, key=lambda t: (-_RANK[t[1].code], t[0]))
    header: dict[str, Any] = {}
    if metadata:
        header[_METADATA] = dict(sorted(metadata.items()))
    position = 0
    for name, dtype, shape in ordered:
        end = position + math.prod(shape) * dtype.itemsize
        if dtype.packed > 1:
            shape = (*shape[:-1], math.prod(shape[-1:]) * dtype.packed)
        header[name] = {"dtype": dtype.code, "shape": shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [name for name, _, _ in ordered]


# The library sorts by its enum of dtypes, wide types last in the enum and first in the file.
_RANK = {
    code: rank
    for rank, code in enumerate(
        "BOOL F4 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 "
        "F32 C64 F64 I64 U64".split()
    )
}
