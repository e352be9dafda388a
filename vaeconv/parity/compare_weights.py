"""Compare two autoencoders tensor by tensor, to the bit, in constant memory and without torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, NamedTuple

from vaeconv.autoencoder.keys import NamePair
from vaeconv.checkpoint.dtypes import BY_CODE, MANTISSA_BITS, DType
from vaeconv.checkpoint.storage import check_storages
from vaeconv.weights.execute import prefetch_rows
from vaeconv.weights.plan import Row
from vaeconv.weights.zeros import ZeroWatch

_PIECE = 1 << 16  # elements
_WORKERS = 2
# Of fp16: the smallest normal number; half the distance between numbers below it. Of bf16: half the
# last place, relative.
_F16_NORMAL, _F16_HALF_STEP, _BF16_HALF_PLACE = 2.0**-14, 2.0**-25, 2.0**-8


class Match(str, Enum):
    """Kind of agreement of two tensors."""

    EQUAL = "bit-equal"
    ROUNDED = "equal after rounding"
    DIFFERENT = "different"


class TensorResult(NamedTuple):
    """Result of comparing one tensor.

    Attributes:
        pair: Which tensor.
        match: How the two agree.
        names: Its name on either side.
        dtypes: Its element types.
        differing: Number of elements that differ.
        max_abs: The largest difference; None where a value that differs is not finite.
        position: Index of the element that differs most, in the first model's shape.
        values: That element on either side.
    """

    pair: NamePair
    match: Match
    names: tuple[str, str]
    dtypes: tuple[str, str]
    differing: int = 0
    max_abs: float | None = 0.0
    position: tuple[int, ...] = ()
    values: tuple[float, float] = (0.0, 0.0)

    def describe(self) -> str:
        """Say where it differs most."""
        name = self.names[0] if len(set(self.names)) == 1 else " / ".join(self.names)
        by = "NaN or infinity" if self.max_abs is None else f"{self.max_abs:.3g}"
        where = ", ".join(map(str, self.position))
        one, other = self.values
        return f"{name} differs by {by} at [{where}] ({one:.9g} against {other:.9g})"


class WeightResult(NamedTuple):
    """Result of comparing all tensors.

    Attributes:
        results: One for each tensor that both models have in one shape.
        missing: Names of tensors that only the first model has, or in another shape.
        unexpected: Names of tensors that only the second model has, or in another shape.
    """

    results: tuple[TensorResult, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """True if all tensors are there and equal, or equal after rounding."""
        return not (self.different or self.missing or self.unexpected)

    @property
    def different(self) -> list[TensorResult]:
        """Tensors that differ, the worst first."""
        found = [one for one in self.results if one.match is Match.DIFFERENT]
        return sorted(found, key=lambda one: -(math.inf if one.max_abs is None else one.max_abs))

    def number(self, match: Match) -> int:
        """Count the tensors that agree so."""
        return sum(one.match is match for one in self.results)


def compare_weights(
    one: Mapping[NamePair, Row],
    other: Mapping[NamePair, Row],
    *,
    beginnings: tuple[str, ...] = ("",),
    allow_zeros: bool = False,
) -> WeightResult:
    """Compare the tensors of two models.

    Where element types differ, the wider value is rounded to the narrower one, to nearest even as
    every cast here and in torch; between fp16 and bf16, of which neither holds the other, values
    agree where one number rounds to both. In one type, all bits count; between two, NaN agrees with
    NaN.

    Args:
        one: The first side.
        other: The second.
        beginnings: Compare only tensors whose CompVis name begins so.
        allow_zeros: Let weights pass that are zero where no training leaves zeros.

    Raises:
        ZeroWeightsError: Weights are zero that no training leaves so.
        MalformedCheckpointError: A file ends early, or fails its checksum.
    """
    mine = {pair: row for pair, row in one.items() if pair.compvis.startswith(beginnings)}
    theirs = {pair: row for pair, row in other.items() if pair.compvis.startswith(beginnings)}
    for rows in (mine.values(), theirs.values()):
        prefetch_rows(list(rows))
        check_storages(list({id(r.source.storage): r.source.storage for r in rows}.values()))
    # A pair has its shape in it: of two models with other widths, nothing is compared.
    both = [pair for pair in mine if pair in theirs]
    with ThreadPoolExecutor(_WORKERS) as pool:
        watches = ZeroWatch(), ZeroWatch()
        results = tuple(
            pool.map(lambda pair: _compare(pair, mine[pair], theirs[pair], watches), both)
        )
    for watch, found in zip(watches, (mine, theirs), strict=True):
        if both and not allow_zeros:
            watch.check(found[both[0]].source.storage.source.name)
    return WeightResult(
        results,
        tuple(row.name for pair, row in mine.items() if pair not in theirs),
        tuple(row.name for pair, row in theirs.items() if pair not in mine),
    )


class _Worst(NamedTuple):
    """The largest difference of two tensors so far."""

    differing: int = 0
    max_abs: float = -1.0
    at: int = 0
    values: tuple[float, float] = (0.0, 0.0)


def _compare(
    pair: NamePair, one: Row, other: Row, watches: tuple[ZeroWatch, ZeroWatch]
) -> TensorResult:
    import numpy as np

    rows, dtypes = (one, other), (one.dtype, other.dtype)
    readers = [row.source.open() for row in rows]
    for watch, row in zip(watches, rows, strict=True):
        watch.expect(pair.compvis, row.source.name, row.shape, row.source.nbytes)
    worst = _Worst()
    for start in range(0, one.source.numel, _PIECE):
        size = min(_PIECE, one.source.numel - start)
        pieces = bytearray(size * one.dtype.itemsize), bytearray(size * other.dtype.itemsize)
        for reader, watch, dtype, piece in zip(readers, watches, dtypes, pieces, strict=True):
            reader.read_into(memoryview(piece))
            watch.look(pair.compvis, start * dtype.itemsize, piece, 0, len(piece), dtype)
        if one.dtype is not other.dtype or pieces[0] != pieces[1]:
            worst = _look_closer(worst, start, pieces, dtypes)
    found = TensorResult(
        pair, Match.EQUAL, (one.name, other.name), (one.dtype.code, other.dtype.code)
    )
    if not worst.differing:
        return found if one.dtype is other.dtype else found._replace(match=Match.ROUNDED)
    return found._replace(
        match=Match.DIFFERENT,
        differing=worst.differing,
        max_abs=worst.max_abs if math.isfinite(worst.max_abs) else None,
        position=tuple(map(int, np.unravel_index(worst.at, one.shape))),
        values=worst.values,
    )


def _look_closer(
    worst: _Worst, start: int, pieces: tuple[bytearray, bytearray], dtypes: tuple[DType, DType]
) -> _Worst:
    import numpy as np

    a, b = (_values(piece, dtype) for piece, dtype in zip(pieces, dtypes, strict=True))
    differs = _differences(pieces, dtypes, a, b)
    total = worst.differing + int(np.count_nonzero(differs))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a - b)
    gaps[~differs] = -1.0
    gaps[np.isnan(gaps)] = math.inf  # not finite in one, or differently so
    at = int(gaps.argmax())
    if gaps[at] <= worst.max_abs:
        return worst._replace(differing=total)
    return _Worst(total, float(gaps[at]), start + at, (float(a[at]), float(b[at])))


def _differences(
    pieces: tuple[bytearray, bytearray], dtypes: tuple[DType, DType], a: Any, b: Any
) -> Any:
    """Tell which elements disagree, as a mask."""
    import numpy as np

    one, other = dtypes
    if one is other:
        bits = [np.frombuffer(piece, f"<u{one.itemsize}") for piece in pieces]
        return bits[0] != bits[1]
    is_nan = np.isnan(a) & np.isnan(b)
    if {one.code, other.code} == {"F16", "BF16"}:
        half, brain = (0, 1) if one.code == "F16" else (1, 0)
        return ~(_agree_in_both(pieces[half], pieces[brain], (a, b)[half], (a, b)[brain]) | is_nan)
    if one.code not in MANTISSA_BITS or other.code not in MANTISSA_BITS:
        return np.ones(a.shape, bool)  # an 8-bit float is only equal to itself
    wide, narrow = (0, 1) if MANTISSA_BITS[one.code] > MANTISSA_BITS[other.code] else (1, 0)
    rounded = round_to(pieces[wide], dtypes[wide], dtypes[narrow])
    bits = [
        np.frombuffer(piece, f"<u{dtypes[narrow].itemsize}") for piece in (rounded, pieces[narrow])
    ]
    return (bits[0] != bits[1]) & ~is_nan


def _agree_in_both(half: bytearray, brain: bytearray, a: Any, b: Any) -> Any:
    """Tell where one number can round to both an fp16 and a bf16 value.

    bf16's ties, halfway between two of its values, are fp16 values themselves wherever fp16 is
    normal. So a number and its fp16 value lie on one side of each tie and round to one bf16 value,
    but where the fp16 value is the tie. Below, where fp16 is coarser than bf16, distances decide.

    Args:
        half: Bytes of the fp16 values.
        brain: Bytes of the bf16 values.
        a: The fp16 values in float64.
        b: The bf16 values in float64.
    """
    import numpy as np

    single = a.astype("<f4")
    bits = single.view("<u4")
    rounded = round_to(bytearray(single.tobytes()), BY_CODE["F32"], BY_CODE["BF16"])
    found = np.frombuffer(brain, "<u2")
    beneath = (bits >> 16).astype("<u2")
    is_tie = (bits & 0xFFFF) == 0x8000
    agrees = (found == np.frombuffer(rounded, "<u2")) | (
        is_tie & ((found == beneath) | (found == beneath + 1))
    )
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= _F16_HALF_STEP + np.abs(b) * _BF16_HALF_PLACE
    is_small = (np.abs(a) < _F16_NORMAL) & (np.signbit(a) == np.signbit(b))
    return agrees | (is_small & near)


def round_to(data: bytearray, dtype: DType, narrow: DType) -> bytearray:
    """Round elements to a narrower type."""
    from vaeconv.checkpoint.cast import cast_chunk

    if dtype is narrow:
        return data
    out = bytearray(len(data) // dtype.itemsize * narrow.itemsize)
    cast_chunk(memoryview(data), dtype, memoryview(out), narrow)
    return out


def _values(piece: bytearray, dtype: DType) -> Any:
    """Give elements as float64, whatever their type."""
    import numpy as np

    if dtype.code == "BF16":
        return (np.frombuffer(piece, "<u2").astype("<u4") << 16).view("<f4").astype("<f8")
    if dtype.code in ("F64", "F32", "F16"):
        return np.frombuffer(piece, f"<f{dtype.itemsize}").astype("<f8")
    return np.frombuffer(piece, f"<u{dtype.itemsize}").astype("<f8")  # an 8-bit float's bits


def hash_rounded(row: Row, dtype: DType) -> str:
    """Hash a tensor's values as they are in a narrower type."""
    data = bytearray(row.source.read())
    return hashlib.sha256(round_to(data, row.dtype, dtype)).hexdigest()
