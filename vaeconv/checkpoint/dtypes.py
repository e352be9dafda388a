"""Element types: one table for the names that safetensors, torch and the command line use."""

from __future__ import annotations

from typing import NamedTuple


class DType(NamedTuple):
    """Element type of a tensor.

    Attributes:
        code: Name in a safetensors header, such as ``F32``; empty where there is none, so that
            such elements can be read past but not written.
        itemsize: Bytes per element as torch counts them.
        torch_name: Attribute of ``torch``, such as ``float32``.
        storage: Prefix of torch's storage class, such as ``Float`` (``FloatStorage``);
            empty where torch has none and the dtype travels beside an untyped storage.
        option: What the command line calls it; empty where it cannot be cast to.
        nonfinite_high: Values of an element's most significant byte that may mean NaN or
            infinity and never occur in sane weights; empty for types without them.
        packed: Values in one such element. A safetensors header counts values, torch counts
            elements: of the last size of a shape, the header says ``packed`` times as much.
    """

    code: str
    itemsize: int
    torch_name: str
    storage: str = ""
    option: str = ""
    nonfinite_high: bytes = b""
    packed: int = 1

    @property
    def label(self) -> str:
        """The name that people are shown: as the command line has it, else torch's."""
        return self.option or self.torch_name

    @property
    def is_float(self) -> bool:
        """True for a real floating-point type, which casts apply to."""
        return bool(self.nonfinite_high)

    @property
    def is_complex(self) -> bool:
        """True if an element is a real and an imaginary part, one behind the other."""
        return self.torch_name.startswith("complex")


class CastLoss(NamedTuple):
    """Losses of a cast beyond rounding, and values that were no numbers before it.

    Attributes:
        overflow: The largest finite magnitude that did not fit; 0.0 where all did.
        clamped: Number of such elements.
        flushed: Number of elements that were not zero and became zero.
        nonfinite: Number of elements that were NaN or infinite before.
    """

    overflow: float = 0.0
    clamped: int = 0
    flushed: int = 0
    nonfinite: int = 0

    def joined(self, other: CastLoss) -> CastLoss:
        """Join what two parts of a tensor lost."""
        return CastLoss(
            max(self.overflow, other.overflow),
            self.clamped + other.clamped,
            self.flushed + other.flushed,
            self.nonfinite + other.nonfinite,
        )


# Most significant byte of a little-endian float whose exponent is all ones, or, where one byte
# does not hold the whole exponent (F32, BF16, F64), within a factor of two of it.
_WIDE = b"\x7f\xff"
_HALF = bytes([*range(0x7C, 0x80), *range(0xFC, 0x100)])

DTYPES: tuple[DType, ...] = (
    DType("F64", 8, "float64", "Double", "fp64", _WIDE),
    DType("F32", 4, "float32", "Float", "fp32", _WIDE),
    DType("F16", 2, "float16", "Half", "fp16", _HALF),
    DType("BF16", 2, "bfloat16", "BFloat16", "bf16", _WIDE),
    DType("I64", 8, "int64", "Long"),
    DType("I32", 4, "int32", "Int"),
    DType("I16", 2, "int16", "Short"),
    DType("I8", 1, "int8", "Char"),
    DType("U64", 8, "uint64"),
    DType("U32", 4, "uint32"),
    DType("U16", 2, "uint16"),
    DType("U8", 1, "uint8", "Byte"),
    DType("BOOL", 1, "bool", "Bool"),
    DType("C64", 8, "complex64", "ComplexFloat"),
    DType("F8_E5M2", 1, "float8_e5m2"),
    DType("F8_E4M3", 1, "float8_e4m3fn"),
    DType("F8_E8M0", 1, "float8_e8m0fnu"),
    DType("F8_E4M3FNUZ", 1, "float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 1, "float8_e5m2fnuz"),
    DType("F4", 1, "float4_e2m1fn_x2", packed=2),
)

# Element types of storages that torch saves and safetensors has no code for. No tensor has them;
# their sizes tell where the next storage of a legacy file begins.
UNSUPPORTED: tuple[DType, ...] = (
    DType("", 16, "complex128", "ComplexDouble"),
    DType("", 1, "qint8", "QInt8"),
    DType("", 1, "quint8", "QUInt8"),
    DType("", 4, "qint32", "QInt32"),
    DType("", 1, "quint4x2", "QUInt4x2"),
    DType("", 1, "quint2x4", "QUInt2x4"),
)

# Bits of a number behind the point; the 8-bit floats are not compared by value.
MANTISSA_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}

BY_CODE = {dtype.code: dtype for dtype in DTYPES}
BY_TORCH_NAME = {dtype.torch_name: dtype for dtype in DTYPES}
BY_STORAGE = {
    f"{dtype.storage}Storage": dtype for dtype in (*DTYPES, *UNSUPPORTED) if dtype.storage
}
BY_OPTION = {dtype.option: dtype for dtype in DTYPES if dtype.option}


def narrower(one: DType, other: DType) -> DType:
    """Tell which of two types holds fewer bits of a number."""
    return one if MANTISSA_BITS.get(one.code, 0) <= MANTISSA_BITS.get(other.code, 0) else other
