"""Look for NaN, infinity and runs of zeros in elements as they pass."""

from __future__ import annotations

from collections.abc import Callable

from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.dtypes import DType
from vaeconv.checkpoint.storage import check_storages, crc_error
from vaeconv.checkpoint.tensor import Tensor

_PIECE = 1 << 20
_BLOCK = 1 << 12
_ZEROS = bytes(_BLOCK)


def find_zeros(
    buffer: bytes | bytearray, at: int, size: int, dtype: DType
) -> list[tuple[int, int]]:
    """Find blocks of 4 KiB, and a last one that may be shorter, of nothing but zero bytes.

    Only where the highest byte of a block's first element is zero is the block looked at, so that
    weights that are none cost next to nothing.

    Args:
        buffer: Holds the elements.
        at: First byte to look at.
        size: Bytes to look at, a whole number of elements.
        dtype: Their type; of integers nothing is said.

    Returns:
        Start and end of each run, counted from ``at``.
    """
    first = buffer[at + dtype.itemsize - 1 : at + size : _BLOCK]
    if 0 not in first or not (dtype.is_float or dtype.code.startswith("F8_")):
        return []
    found: list[tuple[int, int]] = []
    for index, byte in enumerate(first):
        start = index * _BLOCK
        end = min(start + _BLOCK, size)
        if byte == 0 and buffer.startswith(_ZEROS[: end - start], at + start, at + end):
            if found and found[-1][1] == start:
                start = found.pop()[0]
            found.append((start, end))
    return found


def has_nonfinite(
    buffer: bytearray, at: int, size: int, dtype: DType, *, only_nan: bool = False
) -> bool:
    """Tell if elements in a buffer hold NaN or infinity.

    Slicing out every element's highest byte and searching those takes a fifth of the time that
    importing numpy would. What it finds is only suspect, and looked at exactly.

    Args:
        buffer: Little-endian elements; a ``bytearray``, whose strided slices are fast.
        at: First byte to look at.
        size: Bytes to look at, a whole number of elements.
        dtype: Their type; types without NaN have none.
        only_nan: Whether infinity is allowed.
    """
    if not dtype.is_float:
        return False
    high = buffer[at + dtype.itemsize - 1 : at + size : dtype.itemsize]
    if not any(byte in high for byte in dtype.nonfinite_high):
        return False
    from vaeconv.checkpoint.cast import find_nonfinite

    found = find_nonfinite(memoryview(buffer)[at : at + size], dtype, only_nan=only_nan)
    return found is not None


def check_values(
    tensors: list[Tensor],
    look: Callable[[str, int, bytearray, int, int, DType], None] | None = None,
) -> list[str]:
    """Read tensors whole, in constant memory; check CRCs and look for NaN and infinity.

    Args:
        tensors: Them.
        look: Called with each piece: the tensor's name, where in it the piece begins, the buffer,
            where in that it begins, its bytes, and their type.

    Returns:
        Names of the tensors that hold any.

    Raises:
        MalformedCheckpointError: A record fails its CRC, or the file ends early.
    """
    partly = {id(t.storage): t.storage for t in tensors if not t.covers_storage}
    check_storages(list(partly.values()))
    found: list[str] = []
    buffer = bytearray(_PIECE)
    for tensor in tensors:
        reader, left, crc, is_bad = tensor.open(), tensor.nbytes, 0, False
        while left:
            piece = memoryview(buffer)[: min(left, _PIECE)]
            reader.read_into(piece)
            crc = crc32(piece, crc)
            is_bad = is_bad or has_nonfinite(buffer, 0, len(piece), tensor.dtype)
            if look:
                look(tensor.name, tensor.nbytes - left, buffer, 0, len(piece), tensor.dtype)
            left -= len(piece)
        if tensor.covers_storage and tensor.storage.crc not in (None, crc):
            raise crc_error(tensor.storage)
        if is_bad:
            found.append(tensor.name)
    return found
