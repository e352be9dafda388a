"""What the names in a pickle mean: a verdict on each.

Nothing here imports, resolves or calls a name; a verdict is about its text alone.
"""

from __future__ import annotations

import sys
import unicodedata
from enum import Enum
from typing import NamedTuple

from vaeconv.checkpoint.dtypes import BY_STORAGE, BY_TORCH_NAME, UNSUPPORTED, DType


class Verdict(str, Enum):
    """What a name means for the pickle that holds it."""

    PLAIN = "plain"  # plain data of the standard library, torch or numpy: not worth reporting
    REBUILDER = "rebuilder"  # a function that we stand in for ourselves
    PLACEHOLDER = "placeholder"  # somebody's class: inert, and reported
    UNSAFE = "unsafe"  # no checkpoint needs it: the file is refused


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
    | full_names("types", "SimpleNamespace NoneType")
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

# Top-level modules that never occur in an honest checkpoint outside the tables above. The
# running Python's own list comes on top, so the older and newer names need to be spelled out.
_FORBIDDEN = {name.casefold() for name in sys.stdlib_module_names} | set(
    # Standard library of Python 2, and what later versions dropped or renamed.
    "__builtin__ __builtins__ anydbm asynchat asyncore audioop aifc basehttpserver binhex cgi "
    "cgitb cgihttpserver chunk commands compiler configparser cookielib copy_reg cpickle crypt "
    "cstringio dbhash distutils dircache dl dummy_thread dummy_threading exceptions fcntl fpformat "
    "formatter future_builtins gopherlib htmlparser httplib hotshot ihooks imghdr imp imputil "
    "lib2to3 macpath mailcap md5 mhlib mimetools msilib multifile mutex new nis nntplib "
    "nt ntpath os2 os2emxpath ossaudiodev parser pipes popen2 posix posixfile posixpath pty queue "
    "rexec rfc822 robotparser sets sgmllib sha simplehttpserver simplexmlrpclib smtpd sndhdr "
    "socketserver spwd statvfs stringio sunau sunaudio symbol telnetlib thread tkinter toaiff "
    "urllib2 urlparse userdict userlist userstring uu whichdb winreg _winreg xdrlib xmllib "
    "xmlrpclib tomllib annotationlib compression _pyrepl _aix_support "
    "_posixsubprocess _winapi _socket _ctypes _io _pickle _operator _functools _thread _imp "
    # Frameworks: everything plain of theirs is in the table.
    "torch numpy functorch torchgen caffe2 "
    # Installers.
    "pip setuptools pkg_resources _distutils_hack ensurepip easy_install conda mamba wheel uv "
    "poetry pipenv pipx virtualenv pdm hatch flit "
    # Packages that load, run or compile what they are given.
    "dill cloudpickle joblib ipython ipykernel jedi sh pexpect ptyprocess plumbum numba cffi "
    "jinja2 yaml ruamel fire invoke fabric paramiko jsonpickle srsly shelve execnet py pytest "
    "_pytest nose gevent eventlet twisted celery six".split()
)

# As a later component: a way from a harmless module into its imports.
_GATEWAYS = frozenset(
    "os sys subprocess builtins posix nt ntpath posixpath shutil ctypes importlib socket pty runpy "
    "marshal pickle cpickle _pickle dill cloudpickle pdb bdb imp commands popen2 webbrowser codeop "
    "pip setuptools read_pickle eval exec execfile system popen globals locals getattr setattr "
    "delattr _os _sys _subprocess".split()
)


def _is_dunder(part: str) -> bool:
    return part.startswith("__") and part.endswith("__") and len(part) > 4


def judge(name: str) -> Verdict:
    """Judge a name that is referred to, but not called.

    Args:
        name: Module and qualified name, joined by a dot.
    """
    if name in _PLAIN:
        return Verdict.PLAIN
    if name in _REBUILDERS:
        return Verdict.REBUILDER
    if not all(part.isidentifier() for part in name.split(".")):
        return Verdict.UNSAFE
    if name.startswith(_NUMPY_DTYPES) and name.endswith("DType") and name.count(".") == 2:
        return Verdict.PLAIN
    # Lookalikes count as what they look like, whether or not Python would import them.
    top, *rest = unicodedata.normalize("NFKC", name).casefold().split(".")
    if top in _FORBIDDEN or (_is_dunder(top) and top not in ("__main__", "__mp_main__")):
        return Verdict.UNSAFE
    if any(part in _GATEWAYS or _is_dunder(part) for part in rest):
        return Verdict.UNSAFE
    return Verdict.PLACEHOLDER


def looks_like_function(name: str) -> bool:
    """Tell whether the last component is spelled like a function and not like a class."""
    first = name.rpartition(".")[2].lstrip("_")[:1]
    return not first.isalpha() or first.islower()
