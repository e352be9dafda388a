"""Cast chunks of elements, bit for bit as torch does. The only user of numpy on the hot path."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vaeconv.checkpoint.dtypes import DType

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_BF16_NAN = 0x7FC0
_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_CHUNK = 1 << 15  # elements; what is in work stays in the cache


def cast_chunk(source: memoryview, source_dtype: DType, out: memoryview, dtype: DType) -> float:
    """Cast elements from one buffer into another, rounding to nearest even.

    From float64, rounding goes through float32, as in torch.

    Args:
        source: Elements of ``source_dtype``.
        source_dtype: A floating-point type.
        out: Space for as many elements of ``dtype``.
        dtype: A floating-point type.

    Returns:
        The largest magnitude that was finite before and is infinite after; 0.0 where none.
    """
    wide, narrow = source_dtype.itemsize, dtype.itemsize
    largest = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(source) // wide, _CHUNK):
            end = start + _CHUNK
            values = _load(source[start * wide : end * wide], source_dtype)
            result = _cast(values, dtype)
            out[start * narrow : end * narrow] = result.tobytes()
            if result.itemsize < values.itemsize and _may_hold_infinity(result, dtype):
                lost = np.isfinite(values) & ~np.isfinite(_load(result.data, dtype))
                largest = max(largest, float(np.abs(values[lost]).max(initial=0.0)))
    return largest


def _cast(values: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    if values.itemsize == 8 and dtype.code != "F64":
        values = values.astype("<f4")
    if dtype.code == "BF16":
        return _round_to_bf16(values.astype("<f4", copy=False))
    return values.astype(_NUMPY[dtype.code], copy=False)


def _may_hold_infinity(result: npt.NDArray[Any], dtype: DType) -> bool:
    """Look for infinity or NaN: of all bit patterns of a sign, these are the largest."""
    infinity = _INFINITY[dtype.code]
    sign = 1 << (8 * dtype.itemsize - 1)
    signed, unsigned = (result.view(f"<{kind}{dtype.itemsize}") for kind in "iu")
    return bool(signed.max() >= infinity or unsigned.max() >= sign | infinity)


def _load(source: memoryview, dtype: DType) -> npt.NDArray[Any]:
    if dtype.code == "BF16":
        bits = np.frombuffer(source, "<u2").astype("<u4")
        bits <<= 16
        return bits.view("<f4")
    return np.frombuffer(source, _NUMPY[dtype.code])


def _round_to_bf16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Round float32 to the nearest bfloat16, ties to even; any NaN becomes the quiet one.

    bfloat16 is the upper half of float32, so rounding is an addition to the bits: half of the
    last place, less one where the last place is even.
    """
    bits = values.view("<u4")
    rounded: npt.NDArray[Any] = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = _BF16_NAN
    return rounded


def find_nonfinite(data: memoryview, dtype: DType) -> int | None:
    """Find the first element that is NaN or infinite; its index, or None."""
    bad = np.flatnonzero(~np.isfinite(_load(data, dtype)))
    return int(bad[0]) if bad.size else None
