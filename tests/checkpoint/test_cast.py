"""Casts against torch, bit for bit; the search for NaN and infinity against ``torch.isfinite``."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeconv.checkpoint import cast
from vaeconv.checkpoint.cast import find_nonfinite
from vaeconv.checkpoint.dtypes import BY_OPTION, DTYPES, CastLoss, DType
from vaeconv.checkpoint.scan import has_nonfinite

FLOATS = ("fp64", "fp32", "fp16", "bf16")


PAIRS = [(one, other) for one in FLOATS for other in FLOATS]
# Bits of the exponent and of the mantissa.
WIDTHS = {"fp64": (11, 52), "fp32": (8, 23), "fp16": (5, 10), "bf16": (8, 7)}
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def torch_dtype(option: str) -> torch.dtype:
    found = getattr(torch, BY_OPTION[option].torch_name)
    assert isinstance(found, torch.dtype)
    return found


def tensor_of(data: bytes, option: str) -> torch.Tensor:
    if not data:
        return torch.empty(0, dtype=torch_dtype(option))
    return torch.frombuffer(bytearray(data), dtype=torch_dtype(option))


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(INTEGERS[tensor.element_size()])


def pack(patterns: Sequence[int], option: str) -> bytes:
    return np.array(patterns, dtype=f"<u{BY_OPTION[option].itemsize}").tobytes()


@contextmanager
def numpy_alone() -> Iterator[None]:
    """Cast from fp32 to fp16 as where there is no wheel of numkong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cast, "_vector_cast", lambda: None)
        yield


ENGINES = (nullcontext, numpy_alone)


def run_cast(
    data: bytes, source: str, target: str, *, clamp: bool = False, shift: int = 0, shift_in: int = 0
) -> tuple[torch.Tensor, CastLoss]:
    """Cast from and into buffers with something before and behind, which must stay as it is."""
    count = len(data) // BY_OPTION[source].itemsize
    size = count * BY_OPTION[target].itemsize
    before, behind = b"\xa5" * shift, b"\x5a" * 9
    buffer = bytearray(before + bytes(size) + behind)
    out = memoryview(buffer)[shift : shift + size]
    elements = memoryview(bytes(shift_in) + data)[shift_in:]
    loss = cast.cast_chunk(elements, BY_OPTION[source], out, BY_OPTION[target], clamp=clamp)
    assert (buffer[:shift], buffer[shift + size :]) == (before, behind)
    return tensor_of(bytes(out), target), loss


def assert_casts_like_torch(data: bytes, source: str, target: str) -> None:
    values = tensor_of(data, source)
    expected = values.to(torch_dtype(target))
    lost = values.isfinite() & ~expected.isfinite()
    magnitudes = values[lost].double().abs()
    loss = CastLoss(
        overflow=magnitudes.max().item() if len(magnitudes) else 0.0,
        clamped=int(lost.sum()),
        flushed=int(((values != 0) & (expected == 0)).sum()),
        nonfinite=int((~values.isfinite()).sum()),
    )
    saturated = torch.finfo(torch_dtype(target)).max * values.sign().to(torch_dtype(target))
    for clamp in (False, True):
        if clamp:
            expected = torch.where(lost, saturated, expected)
        for engine in ENGINES if target == "fp16" else ENGINES[:1]:
            with engine():
                found, found_loss = run_cast(data, source, target, clamp=clamp)
            assert_same(found, expected, values)
            assert found_loss == loss


def assert_same(found: torch.Tensor, expected: torch.Tensor, values: torch.Tensor) -> None:
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan)
    wrong = (bits_of(found) != bits_of(expected)) & ~nan
    first = wrong.nonzero().flatten()[:3]
    assert not wrong.any(), [(values[i], found[i], expected[i]) for i in first]


def spread(option: str, exponents: Sequence[int], highs: int) -> bytes:
    """Patterns around every place where a shorter mantissa could end: ties, and beside them."""
    exponent_bits, mantissa_bits = WIDTHS[option]
    rng = random.Random(1)
    full = (1 << mantissa_bits) - 1
    mantissas = {0, 1, 2, full, full - 1}
    for dropped in range(1, mantissa_bits + 1):
        kept = mantissa_bits - dropped
        half = 1 << (dropped - 1)
        some = {0, 1, 2, 3, (1 << kept) - 1, (1 << kept) - 2}
        some |= {rng.getrandbits(kept) if kept else 0 for _ in range(highs)}
        for high in some:
            if 0 <= high < 1 << kept:
                mantissas |= {(high << dropped) + half + near for near in (-1, 0, 1)}
    fractions = np.array(sorted(m for m in mantissas if m <= full), dtype=np.uint64)
    tops = [(sign << exponent_bits | e) << mantissa_bits for sign in (0, 1) for e in exponents]
    patterns = np.array(tops, dtype=np.uint64)[:, None] | fractions[None, :]
    return patterns.astype(f"<u{BY_OPTION[option].itemsize}").tobytes()


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", ["fp16", "bf16"])
def test_every_half_width_pattern_is_cast_as_torch_does(source: str, target: str) -> None:
    assert_casts_like_torch(pack(range(1 << 16), source), source, target)


@pytest.mark.parametrize("target", FLOATS)
def test_all_exponents_of_fp32_round_as_in_torch(target: str) -> None:
    assert_casts_like_torch(spread("fp32", range(256), highs=6), "fp32", target)


@pytest.mark.parametrize("target", FLOATS)
def test_exponents_of_fp64_around_those_of_fp32_round_as_in_torch(target: str) -> None:
    exponents = [0, 1, *range(1023 - 160, 1023 + 140), 2045, 2046, 2047]
    assert_casts_like_torch(spread("fp64", exponents, highs=2), "fp64", target)


@given(data=st.data(), pair=st.sampled_from(PAIRS))
@settings(max_examples=300, deadline=None)
def test_random_patterns_are_cast_as_torch_does(data: st.DataObject, pair: tuple[str, str]) -> None:
    source, target = pair
    pattern = st.integers(0, (1 << 8 * BY_OPTION[source].itemsize) - 1)
    assert_casts_like_torch(pack(data.draw(st.lists(pattern, max_size=40)), source), source, target)


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("length", [0, 1, 3, 16_385, 65_535, 65_536, 65_537, 150_001])
def test_any_length_is_cast_whole(source: str, target: str, length: int) -> None:
    values = torch.linspace(-3, 3, length, dtype=torch.float64).to(torch_dtype(source))
    data = bits_of(values).numpy().tobytes() if length else b""
    assert_casts_like_torch(data, source, target)


LARGEST = {option: torch.finfo(torch_dtype(option)).max for option in FLOATS}
NARROWING = [(one, other) for one, other in PAIRS if LARGEST[one] > LARGEST[other]]


@pytest.mark.parametrize(("source", "target"), NARROWING)
@pytest.mark.parametrize(
    "places", [(0,), (16_384,), (65_535,), (65_536,), (99_998,), (5, 40_000), (70_000, 3)]
)
def test_largest_lost_magnitude_is_told_wherever_it_is(
    source: str, target: str, places: tuple[int, ...]
) -> None:
    values = torch.ones(99_999, dtype=torch_dtype(source))
    less = 0.999 if target == "bf16" else 0.5  # fp32 reaches hardly further than bf16
    for step, place in enumerate(places):
        values[place] = LARGEST[source] * (-less) ** step
    found, loss = run_cast(bits_of(values).numpy().tobytes(), source, target)
    assert loss == CastLoss(max(abs(values[place].item()) for place in places), len(places), 0)
    assert torch.isinf(found).nonzero().flatten().tolist() == sorted(places)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_nothing_is_lost_where_it_was_not_finite_before(source: str, target: str) -> None:
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([inf, -inf, nan, 0.0, -0.0, 1.0], dtype=torch_dtype(source))
    for clamp in (False, True):
        data = bits_of(values).numpy().tobytes()
        found, loss = run_cast(data, source, target, clamp=clamp)
        assert loss == CastLoss(nonfinite=3)
        assert str(found.tolist()) == "[inf, -inf, nan, 0.0, -0.0, 1.0]"


@pytest.mark.parametrize(("shift_in", "shift"), [(0, 1), (0, 7), (1, 0), (2, 0), (3, 0), (1, 3)])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_buffers_need_no_alignment(source: str, target: str, shift_in: int, shift: int) -> None:
    values = torch.linspace(-3, 3, 1001, dtype=torch.float64).to(torch_dtype(source))
    data = bits_of(values).numpy().tobytes()
    found, _ = run_cast(data, source, target, shift=shift, shift_in=shift_in)
    assert torch.equal(found, values.to(torch_dtype(target)))


@pytest.mark.parametrize(
    ("source", "target", "kept", "flushed"),
    [
        # Half of the smallest value is a tie, which rounds down to zero.
        ("fp64", "fp32", "0x1.000002p-150", "0x1p-150"),
        ("fp32", "fp16", "0x1.000002p-25", "0x1p-25"),
        ("bf16", "fp16", "0x1.02p-25", "0x1p-25"),
        ("fp32", "bf16", "0x1.4p-134", "0x1p-134"),
    ],
)
def test_flushed_values_are_counted_wherever_they_are(
    source: str, target: str, kept: str, flushed: str
) -> None:
    values = torch.zeros(80_000, dtype=torch_dtype(source))
    places = [0, 1, 16_384, 65_535, 65_536, 79_999]
    for index, place in enumerate(places):
        values[place] = float.fromhex(flushed) * (-1) ** index
    values[7] = float.fromhex(kept)
    found, loss = run_cast(bits_of(values).numpy().tobytes(), source, target)
    assert loss == CastLoss(0.0, 0, len(places))
    assert found.nonzero().flatten().tolist() == [7]
    assert found.signbit().nonzero().flatten().tolist() == places[1::2]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("target", "fits", "lost"),
    [
        # Half a step above the largest value is a tie, which rounds up to infinity.
        ("fp16", "0x1.ffdffep+15", "0x1.ffep+15"),
        ("bf16", "0x1.fefffep+127", "0x1.ffp+127"),
    ],
)
def test_overflow_begins_half_a_step_above_the_largest_value(
    target: str, fits: str, lost: str, sign: int
) -> None:
    for text, expected in ((fits, 0.0), (lost, float.fromhex(lost))):
        data = torch.tensor([sign * float.fromhex(text)]).numpy().tobytes()
        _, loss = run_cast(data, "fp32", target)
        assert loss == CastLoss(expected, int(expected > 0), 0)
        assert_casts_like_torch(data, "fp32", target)


def test_vector_cast_is_used_where_it_is_installed_and_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numkong = pytest.importorskip("numkong")
    honest = numkong.astype
    assert inspect.unwrap(cast._vector_cast)() is honest

    def rough(values: npt.NDArray[Any], dtype: str, *, out: npt.NDArray[Any]) -> None:
        honest(values, dtype, out=out)
        out.view("<u2")[5] ^= 1

    monkeypatch.setattr(numkong, "astype", rough)
    assert inspect.unwrap(cast._vector_cast)() is None
    monkeypatch.setitem(sys.modules, "numkong", None)
    assert inspect.unwrap(cast._vector_cast)() is None


# --- NaN and infinity ---


def judge(data: bytearray, at: int, size: int, dtype: DType) -> int | None:
    """Index of the first element that torch calls not finite."""
    tensor = tensor_of(bytes(data[at : at + size]), dtype.option)
    bad = (~torch.isfinite(tensor)).nonzero().flatten()
    return int(bad[0]) if len(bad) else None


def assert_found(data: bytearray, at: int, size: int, dtype: DType) -> None:
    expected = judge(data, at, size, dtype)
    assert find_nonfinite(memoryview(data)[at : at + size], dtype) == expected
    assert has_nonfinite(data, at, size, dtype) is (expected is not None)


@pytest.mark.parametrize("option", FLOATS)
def test_every_bad_pattern_is_found_at_any_place(option: str) -> None:
    dtype = BY_OPTION[option]
    exponent_bits, mantissa_bits = WIDTHS[option]
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    sign = 1 << (exponent_bits + mantissa_bits)
    bad = [
        top | low
        for top in (infinity, sign | infinity)
        for low in (0, *(1 << bit for bit in range(mantissa_bits)), (1 << mantissa_bits) - 1)
    ]
    size = dtype.itemsize
    for index, pattern in enumerate(bad):
        for at in (0, size, 3 * size):
            for place in (0, 1, 7 + index % 90, 99):
                data = bytearray(pack([0] * 110, option))
                data[at + place * size : at + (place + 1) * size] = pack([pattern], option)
                assert judge(data, at, 100 * size, dtype) == place
                assert_found(data, at, 100 * size, dtype)


@pytest.mark.parametrize("option", ["fp16", "bf16"])
def test_every_half_width_pattern_is_judged_as_torch_does(option: str) -> None:
    dtype = BY_OPTION[option]
    data = bytearray(pack(range(1 << 16), option))
    expected = (~torch.isfinite(tensor_of(bytes(data), option))).tolist()
    for pattern, bad in enumerate(expected):
        assert has_nonfinite(data, 2 * pattern, 2, dtype) is bad, hex(pattern)


@pytest.mark.parametrize("option", FLOATS)
def test_what_lies_outside_the_range_is_not_looked_at(option: str) -> None:
    dtype = BY_OPTION[option]
    size = dtype.itemsize
    data = bytearray(bits_of(torch.full((10,), torch.nan, dtype=torch_dtype(option))).numpy())
    data[2 * size : 8 * size] = bytes(6 * size)
    assert not has_nonfinite(data, 2 * size, 6 * size, dtype)
    assert has_nonfinite(data, 2 * size, 7 * size, dtype)
    assert has_nonfinite(data, size, 6 * size, dtype)


@given(
    option=st.sampled_from(FLOATS),
    seed=st.integers(0, 1 << 32),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 100.0, 30_000.0]),
    place=st.integers(0, 400),
    bad=st.sampled_from([None, float("inf"), float("-inf"), float("nan")]),
)
@settings(max_examples=200, deadline=None)
def test_random_weights_are_judged_as_torch_does(
    option: str, seed: int, scale: float, place: int, bad: float | None
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = (2 * torch.rand(401, generator=generator) - 1).mul(scale).to(torch_dtype(option))
    if bad is not None:
        values[place] = bad
    data = bytearray(bits_of(values).numpy())
    assert judge(data, 0, len(data), BY_OPTION[option]) == (None if bad is None else place)
    assert_found(data, 0, len(data), BY_OPTION[option])


@given(option=st.sampled_from(FLOATS), data=st.data())
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_judged_as_torch_does(option: str, data: st.DataObject) -> None:
    dtype = BY_OPTION[option]
    count = data.draw(st.integers(0, 20))
    size = count * dtype.itemsize
    drawn = data.draw(st.binary(min_size=size, max_size=size))
    assert_found(bytearray(drawn), 0, size, dtype)


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in DTYPES if not dtype.option], ids=lambda dtype: dtype.code
)
def test_other_types_are_not_judged(dtype: DType) -> None:
    assert not has_nonfinite(bytearray(b"\xff" * 16), 0, 16, dtype)


@given(option=st.sampled_from(FLOATS), data=st.data())
@settings(max_examples=200, deadline=None)
def test_largest_magnitude_is_what_torch_says(option: str, data: st.DataObject) -> None:
    pattern = st.integers(0, (1 << 8 * BY_OPTION[option].itemsize) - 1)
    packed = pack(data.draw(st.lists(pattern, max_size=20)), option)
    values = tensor_of(packed, option).double().abs()
    finite = values[values.isfinite()]
    expected = finite.max().item() if len(finite) else 0.0
    assert cast.largest_magnitude(memoryview(packed), BY_OPTION[option]) == expected


@pytest.mark.parametrize("option", FLOATS)
def test_signalling_nan_is_passed_without_a_warning(option: str) -> None:
    """Warnings are errors here; in use they would be printed."""
    exponent_bits, mantissa_bits = WIDTHS[option]
    signalling = (((1 << exponent_bits) - 1) << mantissa_bits) | 1
    data = pack([signalling, 1], option)
    smallest = tensor_of(data, option)[1].item()
    assert cast.largest_magnitude(memoryview(data), BY_OPTION[option]) == smallest
    assert find_nonfinite(memoryview(data), BY_OPTION[option]) == 0
    for target in FLOATS:
        assert_casts_like_torch(data, option, target)


# --- planted faults: each must turn a check red ---


def round_away(values: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
    result[:] = (values.view("<u4") + 0x8000) >> 16


def truncate(values: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
    result[:] = values.view("<u4") >> 16


@pytest.mark.parametrize("fault", [round_away, truncate])
def test_planted_wrong_rounding_is_found(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    monkeypatch.setattr(cast, "_round_to_bf16", fault)
    with pytest.raises(AssertionError):
        assert_casts_like_torch(spread("fp32", [127], highs=1), "fp32", "bf16")


@pytest.mark.parametrize("value", [-1e6, 1e6, 1e-12])
def test_planted_blindness_for_loss_is_found(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(cast, "_look_for_loss", lambda *args, **options: CastLoss())
    with pytest.raises(AssertionError):
        assert_casts_like_torch(torch.tensor([value]).numpy().tobytes(), "fp32", "fp16")


def test_planted_missing_cast_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast, "_cast", lambda values, result, dtype: None)
    with pytest.raises(AssertionError):
        assert_casts_like_torch(torch.tensor([1.0]).numpy().tobytes(), "fp32", "fp16")


def test_planted_sparse_search_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = BY_OPTION["fp16"]._replace(nonfinite_high=b"\x7c\xfc")
    monkeypatch.setitem(BY_OPTION, "fp16", blind)
    with pytest.raises(AssertionError):
        test_every_bad_pattern_is_found_at_any_place("fp16")
