"""Verdicts on the names in a pickle.

Nothing here imports, resolves or calls a name; a verdict is about its text alone.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vaeconv.checkpoint.dtypes import BY_STORAGE, BY_TORCH_NAME, UNSUPPORTED, DType
from vaeconv.checkpoint.unpickle.refused import why_refused


class Verdict(str, Enum):
    """Verdict on a name in a pickle."""

    PLAIN = "plain"  # plain data of the standard library, torch or numpy: not worth reporting
    REBUILDER = "rebuilder"  # a function that we stand in for ourselves
    PLACEHOLDER = "placeholder"  # of training code: inert, and reported
    UNSAFE = "unsafe"  # does harm in an ordinary unpickler: the file is refused


class GlobalUse(NamedTuple):
    """One name that a pickle refers to, and what we think of it."""

    name: str
    verdict: Verdict


def full_names(modules: str, names: str) -> set[str]:
    """Join every one of the modules to every one of the names; both are separated by spaces."""
    return {f"{module}.{name}" for module in modules.split() for name in names.split()}


_ALIASES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}

DTYPE_NAMES: dict[str, DType] = {f"torch.{name}": d for name, d in BY_TORCH_NAME.items()} | {
    f"torch.{alias}": BY_TORCH_NAME[name] for alias, name in _ALIASES.items()
}
"""Dtypes that have a global of their own."""

STORAGE_NAMES: dict[str, DType | None] = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, dtype in [*BY_STORAGE.items(), ("UntypedStorage", None), ("_UntypedStorage", None)]
}
"""Storage classes of a persistent id; None counts bytes."""

TENSOR_CLASSES = {
    f"{module}.{dtype.storage}Tensor"
    for module in ("torch", "torch.cuda")
    for dtype in BY_STORAGE.values()
}
"""Old classes of tensors; a call of one gives memory as it is."""

UNSUPPORTED_TENSORS = {
    f"torch._utils._rebuild_{name}": why
    for name, why in {
        "sparse_tensor": "sparse",
        "sparse_csr_tensor": "sparse",
        "nested_tensor": "nested",
        "qtensor": "quantized",
        "meta_tensor_no_storage": "meta",
        "device_tensor_from_numpy": "numpy",
        "device_tensor_from_cpu_tensor": "device",
        "xla_tensor": "xla",
        "wrapper_subclass": "wrapper subclass",
    }.items()
}
"""Functions that rebuild tensors without plain storage, and what those are."""

BUILTINS = "builtins __builtin__"
COPYREG = "copyreg copy_reg"
NUMPY_MULTIARRAY = "numpy.core.multiarray numpy._core.multiarray"

_REBUILDERS = (
    set(UNSUPPORTED_TENSORS)
    | full_names("torch._utils", "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3")
    | full_names("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state")
    | full_names("torch._tensor torch.tensor", "_rebuild_from_type _rebuild_from_type_v2")
    | full_names("torch.serialization", "_get_layout")
    | full_names("_codecs", "encode")
    | full_names(COPYREG, "_reconstructor __newobj__")
    | full_names("copyreg", "__newobj_ex__")
    | full_names(BUILTINS, "type")
    | full_names(NUMPY_MULTIARRAY, "scalar _reconstruct")
    | full_names("numpy.core.numeric numpy._core.numeric", "_frombuffer")
)

_LAYOUTS = "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc _mkldnn jagged"

_PLAIN = (
    full_names(
        BUILTINS,
        "dict list tuple set frozenset int long float complex str unicode bytes bytearray bool "
        "slice range xrange object NoneType Ellipsis NotImplemented",
    )
    | full_names("collections", "OrderedDict defaultdict deque Counter")
    | full_names("datetime", "date time datetime timedelta timezone")
    | full_names(
        "pathlib pathlib._local",
        "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    )
    | full_names("decimal _decimal", "Decimal")
    | full_names("fractions", "Fraction")
    | full_names("uuid", "UUID SafeUUID")
    | full_names("argparse", "Namespace")
    | full_names("types", "SimpleNamespace NoneType GenericAlias UnionType")
    | full_names(
        "collections.abc",
        "Callable Collection Container Generator Hashable Iterable Iterator Mapping "
        "MutableMapping MutableSequence MutableSet Sequence Set Sized",
    )
    | full_names("enum", "Enum IntEnum StrEnum Flag IntFlag")
    | full_names("numbers", "Number Complex Real Rational Integral")
    | full_names("abc", "ABC ABCMeta")
    | full_names(
        "typing",
        "Any Union Optional Dict List Tuple Set FrozenSet Type Callable Sequence Mapping Iterable "
        "MutableMapping MutableSequence Literal Hashable Text NamedTuple Generic NoReturn",
    )
    | set(DTYPE_NAMES)
    | set(STORAGE_NAMES)
    | {f"torch.{dtype.torch_name}" for dtype in UNSUPPORTED}
    | full_names(
        "torch",
        "Tensor Size device dtype layout memory_format finfo iinfo TypedStorage "
        "complex32 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 "
        "contiguous_format channels_last channels_last_3d preserve_format "
        "per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric "
        "per_channel_affine_float_qparams",
    )
    | full_names("torch torch._C", _LAYOUTS)
    | full_names("torch.storage", "TypedStorage _TypedStorage")
    | full_names("torch.nn torch.nn.parameter", "Parameter Buffer")
    | full_names("torch.torch_version", "TorchVersion")
    | full_names(
        "numpy",
        "ndarray dtype bool bool_ float16 float32 float64 longdouble int8 int16 int32 int64 uint8 "
        "uint16 uint32 uint64 longlong ulonglong intc uintc complex64 complex128 str_ bytes_ void "
        "datetime64 timedelta64 object_",
    )
)

# Members of these are data descriptions by their very kind; the name must look like one, too.
_NUMPY_DTYPES = "numpy.dtypes."

# Of training code, although their modules are refused as a whole.
_INERT = (
    full_names("inspect", "_empty _ParameterKind")
    | full_names("logging", "Logger RootLogger")
    | full_names("re", "Pattern")
    | full_names("dataclasses", "_MISSING_TYPE _HAS_DEFAULT_FACTORY_CLASS")
)

# Functions that honest pickles call to make an object: all others are refused where they are
# called, as nobody knows what they would do. What they make is inert here.
_CALLED = (
    full_names("functools _functools", "partial")
    | full_names("logging", "getLogger")
    | full_names("operator _operator", "getitem")  # typing's generic types
    | full_names("re", "compile _compile")
    | full_names("numpy.ma.core", "_mareconstruct")
    | full_names(
        "numpy.random numpy.random._pickle",
        "__RandomState_ctor __randomstate_ctor __generator_ctor __bit_generator_ctor",
    )
    | full_names("pandas.core.indexes.base", "_new_Index")
    | full_names("pandas.core.indexes.datetimes", "_new_DatetimeIndex")
    | full_names("pandas.core.internals.blocks", "new_block")
    | full_names("pandas._libs.internals", "_unpickle_block")
    | full_names("pandas._libs.tslibs.timestamps", "_unpickle_timestamp")
    | full_names("pandas._libs.tslibs.nattype", "_nat_unpickle")
)
# How such functions are called throughout a package.
_MADE_BY = {"torch": "_rebuild_"} | dict.fromkeys(
    "numpy pandas scipy sklearn".split(), "__pyx_unpickle_"
)


def judge(name: str) -> Verdict:
    """Judge a name that is referred to, but not called.

    Args:
        name: Module and qualified name, joined by a dot.
    """
    if name in _PLAIN:
        return Verdict.PLAIN
    if name in _REBUILDERS:
        return Verdict.REBUILDER
    if name in _INERT or name in _CALLED:
        return Verdict.PLACEHOLDER
    if name.startswith(_NUMPY_DTYPES) and name.endswith("DType") and name.count(".") == 2:
        return Verdict.PLAIN
    return Verdict.UNSAFE if why_refused(name) else Verdict.PLACEHOLDER


def may_be_called(name: str) -> bool:
    """Tell whether a placeholder's call is what pickles do to make an object.

    A class makes one, and so do few functions; others may do anything. By their spelling: a
    function's name begins in lower case.
    """
    last = name.rpartition(".")[2]
    made = _MADE_BY.get(name.partition(".")[0])
    if name in _CALLED or (made and last.startswith(made)):
        return True
    first = last.lstrip("_")[:1]
    return first.isalpha() and not first.islower()
