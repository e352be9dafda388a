"""Cast chunks of elements, bit for bit as torch does. The only user of numpy on the hot path."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vaeconv.checkpoint.dtypes import CastLoss, DType

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16 as its bits
_BF16_NAN = 0x7FC0
_INFINITY = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_EXACT = {("F32", "F16"), ("F32", "BF16")}  # target and source of casts that lose nothing
_CHUNK = 1 << 14  # elements; what is in work stays in the cache


def cast_chunk(
    source: memoryview, source_dtype: DType, out: memoryview, dtype: DType, *, clamp: bool = False
) -> CastLoss:
    """Cast elements from one buffer into another, rounding to nearest even.

    From float64, rounding goes through float32, as in torch.

    Args:
        source: Elements of ``source_dtype``.
        source_dtype: A floating-point type.
        out: Space for as many elements of ``dtype``.
        dtype: A floating-point type.
        clamp: Write the largest finite value in place of what overflows; else infinity.
    """
    elements = np.frombuffer(source, _NUMPY[source_dtype.code])
    results = np.frombuffer(out, _NUMPY[dtype.code])
    is_lossy = dtype.code in _INFINITY and (dtype.code, source_dtype.code) not in _EXACT
    loss = CastLoss()
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for start in range(0, len(elements), _CHUNK):
            part = elements[start : start + _CHUNK]
            result = results[start : start + _CHUNK]
            values = _load(part, source_dtype)
            _cast(values, result, dtype)
            if is_lossy:
                loss = loss.joined(_look_for_loss(values, result, dtype, clamp=clamp))
    return loss


def _load(elements: npt.NDArray[Any], dtype: DType) -> npt.NDArray[Any]:
    if dtype.code != "BF16":
        return elements
    bits = elements.astype("<u4")
    bits <<= 16
    return bits.view("<f4")


def _cast(values: npt.NDArray[Any], result: npt.NDArray[Any], dtype: DType) -> None:
    if values.itemsize == 8 and dtype.code != "F64":
        values = values.astype("<f4")
    if dtype.code == "BF16":
        _round_to_bf16(values.astype("<f4", copy=False), result)
    else:
        np.copyto(result, values, casting="same_kind")


def _round_to_bf16(values: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
    """Round float32 to the nearest bfloat16, ties to even; any NaN becomes the quiet one.

    bfloat16 is the upper half of float32, so rounding is an addition to the bits: half of the
    last place, less one where the last place is even.
    """
    bits = values.view("<u4")
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    np.copyto(result, rounded, casting="same_kind")
    nan = np.isnan(values)
    if nan.any():
        result[nan] = _BF16_NAN


def _look_for_loss(
    values: npt.NDArray[Any], result: npt.NDArray[Any], dtype: DType, *, clamp: bool
) -> CastLoss:
    """Count what became infinite or zero. Without signs, bits of floats are in order of size."""
    bits = result.view(f"<u{dtype.itemsize}")
    magnitudes = bits << 1
    overflow, clamped, flushed = 0.0, 0, 0
    infinity = _INFINITY[dtype.code]
    if magnitudes.max(initial=0) >= infinity << 1:
        lost = np.isfinite(values) & (magnitudes == infinity << 1)
        clamped = int(np.count_nonzero(lost))
        overflow = float(np.abs(values[lost]).max(initial=0.0))
        if clamp:
            bits[lost] -= 1  # the largest finite number of the same sign
    zeros = len(bits) - int(np.count_nonzero(magnitudes))
    if zeros:
        flushed = zeros - (len(values) - int(np.count_nonzero(values)))
    return CastLoss(overflow, clamped, flushed)


def largest_magnitude(data: memoryview, dtype: DType) -> float:
    """Find the largest finite magnitude; 0.0 where there is none."""
    values = np.abs(_load(np.frombuffer(data, _NUMPY[dtype.code]), dtype).astype("<f8"))
    return float(values[np.isfinite(values)].max(initial=0.0))


def find_nonfinite(data: memoryview, dtype: DType) -> int | None:
    """Find the first element that is NaN or infinite; its index, or None."""
    bad = np.flatnonzero(~np.isfinite(_load(np.frombuffer(data, _NUMPY[dtype.code]), dtype)))
    return int(bad[0]) if bad.size else None
