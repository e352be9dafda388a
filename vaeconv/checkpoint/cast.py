"""Cast chunks of elements, bit for bit as torch does. The only user of numpy on the hot path."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vaeconv.checkpoint.dtypes import CastLoss, DType

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bfloat16 as its bits
_BF16_NAN = 0x7FC0
_INFINITY = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_CHUNK = 1 << 16  # elements; what is in work stays in the cache, and workers seldom meet


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
    loss = CastLoss()
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for start in range(0, len(elements), _CHUNK):
            part = elements[start : start + _CHUNK]
            result = results[start : start + _CHUNK]
            values = _load(part, source_dtype)
            _cast(values, result, dtype)
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
    elif (
        dtype.code == "F16"
        and values.dtype == "<f4"
        and (values.flags.aligned and result.flags.aligned)  # numkong takes no others
        and (cast := _vector_cast()) is not None
    ):
        cast(values, "float16", out=result)
    else:
        np.copyto(result, values, casting="same_kind")


@cache
def _vector_cast() -> Callable[..., Any] | None:
    """Give numkong's cast, which uses the processor's own instruction; None where it is not there.

    It takes a tenth of numpy's time. It is used only if it rounds the hard cases as numpy does.
    """
    try:
        from numkong import astype
    except ImportError:  # no wheel for this platform
        return None
    hard = np.array(_HARD_CASES, "<u4").view("<f4")
    with np.errstate(over="ignore"):
        expected = hard.astype("<f2")
    found = np.empty_like(expected)
    astype(hard, "float16", out=found)
    return astype if found.tobytes() == expected.tobytes() else None


# Bits of float32 values: ties between two neighbours and numbers just beside them, among normal
# and subnormal results; the largest that fits, and the first that does not; zeros, infinities.
_HARD_CASES = [
    sign | bits
    for sign in (0, 0x80000000)
    for tie in (0x3F801000, 0x3F803000, 0x38801000, 0x387FD000, 0x33000000, 0x33C00000, 0x477FF000)
    for bits in (tie - 1, tie, tie + 1)
] + [0, 0x80000000, 1, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x477FE000, 0x33800000, 0x38800000]


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
    overflow, clamped, flushed, nonfinite = 0.0, 0, 0, 0
    infinity = _INFINITY[dtype.code]
    if magnitudes.max(initial=0) >= infinity << 1:
        finite = np.isfinite(values)
        nonfinite = len(values) - int(np.count_nonzero(finite))
        lost = finite & (magnitudes == infinity << 1)
        clamped = int(np.count_nonzero(lost))
        overflow = float(np.abs(values[lost]).max(initial=0.0))
        if clamp:
            bits[lost] -= 1  # the largest finite number of the same sign
    zeros = len(bits) - int(np.count_nonzero(magnitudes))
    if zeros:
        flushed = zeros - (len(values) - int(np.count_nonzero(values)))
    return CastLoss(overflow, clamped, flushed, nonfinite)


def largest_magnitude(data: memoryview, dtype: DType) -> float:
    """Find the largest finite magnitude; 0.0 where there is none."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = np.abs(_load(np.frombuffer(data, _NUMPY[dtype.code]), dtype).astype("<f8"))
    return float(values[np.isfinite(values)].max(initial=0.0))


def find_nonfinite(data: memoryview, dtype: DType, *, only_nan: bool = False) -> int | None:
    """Find the first element that is NaN or, unless it is allowed, infinite; its index, or None."""
    values = _load(np.frombuffer(data, _NUMPY[dtype.code]), dtype)
    bad = np.flatnonzero(np.isnan(values) if only_nan else ~np.isfinite(values))
    return int(bad[0]) if bad.size else None
