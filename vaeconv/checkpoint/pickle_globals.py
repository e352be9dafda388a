"""What the names in a pickle mean: their verdicts, and what a call of a known one makes.

Nothing here imports, resolves or calls a name; a verdict is about its text alone.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import calcsize, unpack
from typing import Any

from vaeconv.checkpoint.dtypes import BY_CODE, BY_STORAGE, BY_TORCH_NAME, DType


class Verdict(str, Enum):
    """What a name means for the pickle that holds it."""

    PLAIN = "plain"  # plain data of the standard library, torch or numpy: not worth reporting
    REBUILDER = "rebuilder"  # a function that we stand in for ourselves
    PLACEHOLDER = "placeholder"  # somebody's class: inert, and reported
    UNSAFE = "unsafe"  # no checkpoint needs it: the file is refused


@dataclass(frozen=True, slots=True)
class GlobalUse:
    """One name that a pickle refers to, and what we think of it."""

    name: str
    verdict: Verdict


def _names(module: str, names: str) -> set[str]:
    return {f"{module}.{name}" for name in names.split()}


_ALIASES = {"half": "float16", "float": "float32", "double": "float64"} | {
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

BUILTIN_MODULES = ("builtins", "__builtin__")
COPYREG_MODULES = ("copyreg", "copy_reg")
NUMPY_CORES = ("numpy.core", "numpy._core")
_FORMATS = "contiguous_format channels_last channels_last_3d preserve_format"
_SCHEMES = (
    "per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric "
    "per_channel_affine_float_qparams"
)
_LAYOUTS = "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc _mkldnn jagged"

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

_REBUILDERS = (
    set(UNSUPPORTED_TENSORS)
    | _names("torch._utils", "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3")
    | _names("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state")
    | _names("torch._tensor", "_rebuild_from_type _rebuild_from_type_v2")
    | _names("torch.tensor", "_rebuild_from_type _rebuild_from_type_v2")
    | _names("torch.serialization", "_get_layout")
    | _names("_codecs", "encode")
    | {name for m in COPYREG_MODULES for name in _names(m, "_reconstructor __newobj__")}
    | _names("copyreg", "__newobj_ex__")
    | _names("builtins", "type")
    | _names("__builtin__", "type")
    | {name for m in NUMPY_CORES for name in _names(f"{m}.multiarray", "scalar _reconstruct")}
    | {name for m in NUMPY_CORES for name in _names(f"{m}.numeric", "_frombuffer")}
)

_PLAIN = (
    {
        name
        for module in BUILTIN_MODULES
        for name in _names(
            module,
            "dict list tuple set frozenset int long float complex str unicode bytes bytearray bool "
            "slice range xrange object NoneType Ellipsis NotImplemented",
        )
    }
    | _names("collections", "OrderedDict defaultdict deque Counter")
    | _names("datetime", "date time datetime timedelta timezone")
    | {
        name
        for module in ("pathlib", "pathlib._local")
        for name in _names(
            module, "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
        )
    }
    | _names("decimal", "Decimal")
    | _names("_decimal", "Decimal")
    | _names("fractions", "Fraction")
    | _names("uuid", "UUID SafeUUID")
    | _names("argparse", "Namespace")
    | _names("types", "SimpleNamespace NoneType")
    | _names("enum", "Enum IntEnum StrEnum Flag IntFlag")
    | _names("numbers", "Number Complex Real Rational Integral")
    | _names("abc", "ABC ABCMeta")
    | _names(
        "typing",
        "Any Union Optional Dict List Tuple Set FrozenSet Type Callable Sequence Mapping Iterable "
        "MutableMapping MutableSequence Literal Hashable Text NamedTuple Generic NoReturn",
    )
    | set(DTYPE_NAMES)
    | set(STORAGE_NAMES)
    | _names("torch", "Tensor Size device dtype layout memory_format strided finfo iinfo")
    | _names("torch", "float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2")
    | _names("torch", "complex32 complex128 qint8 quint8 qint32 quint4x2 quint2x4")
    | _names("torch", "ComplexDoubleStorage QInt8Storage QUInt8Storage QInt32Storage")
    | _names("torch", "QUInt4x2Storage QUInt2x4Storage TypedStorage")
    | _names("torch.storage", "TypedStorage _TypedStorage")
    | _names("torch", _FORMATS)
    | _names("torch", _LAYOUTS)
    | _names("torch", _SCHEMES)
    | _names("torch._C", _LAYOUTS)
    | _names("torch.nn", "Parameter Buffer")
    | _names("torch.nn.parameter", "Parameter Buffer")
    | _names("torch.torch_version", "TorchVersion")
    | _names(
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


class PickleFault(Exception):
    """What is wrong with the opcode at hand."""


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage that a persistent id refers to; nothing is loaded.

    Attributes:
        key: Name of its record.
        dtype: Element type; None for an untyped storage, which counts bytes.
        numel: Number of elements.
        location: Device that it was saved from.
    """

    key: str
    dtype: DType | None
    numel: int
    location: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A strided view into a storage; offset and strides count elements of ``dtype``."""

    storage: StorageRef
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder:
    """An inert stand-in for a class, a function or an object of somebody else's.

    Attributes:
        name: Dotted name; for an object that of its class, for a tensor that cannot be
            described by strides ``torch.Tensor (why)``.
        is_object: Whether it stands for an object and not for the named thing itself.
        args: What it was made from; after NEWOBJ_EX the positional and the keyword arguments.
        state: What BUILD gave it.
        items: Pairs that were put into it, for lists with the position as the key.
    """

    __slots__ = ("args", "is_object", "items", "name", "state")

    def __init__(self, name: str, args: tuple[object, ...] | None = None) -> None:
        """Stand for ``name`` itself, or for an object of it where arguments are given."""
        self.name = name
        self.is_object = args is not None
        self.args = args or ()
        self.state: object = None
        self.items: list[tuple[object, object]] = []

    def __repr__(self) -> str:
        """Tell what it stands for; what it holds may go in circles."""
        return f"<{'object of ' if self.is_object else ''}{self.name}>"


_MAX_GLOBALS = 10_000
_MAX_NAME = 512
_MAX_COPIED = 10_000_000
_MAX_ODD_KEYS = 4096
_MAX_KEY_NODES = 16
_SMALL_KEY = 1 << 20
_LIMIT = 1 << 63
_MAX_DIMS = 64


def is_size(value: object) -> bool:
    """Tell whether this is a count that fits a signed 64-bit integer; a bool is none."""
    return type(value) is int and 0 <= value < _LIMIT


class Builder:
    """Makes values for one pickle, and keeps the books on what it refers to.

    Attributes:
        verdicts: Verdict per name, in order of appearance.
        objects: How many objects were made.
        storages: Every storage of a known type, by key.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.verdicts: dict[str, Verdict] = {}
        self.objects = 0
        self.storages: dict[str, StorageRef] = {}
        self._found: dict[tuple[str, str], object] = {}
        self._by_name: dict[str, object] = {}
        self._encoded: dict[str, bytes] = {}
        self._odd_keys = 0
        self._copied = 0

    def find(self, module: object, name: object) -> object:
        """Give what stands for a global."""
        if type(module) is not str or type(name) is not str:
            raise PickleFault("the name of a global is not text")
        found = self._found.get((module, name))
        if found is not None:
            return found
        if len(module) + len(name) > _MAX_NAME:
            raise PickleFault(f"the name of a global has {len(module) + len(name)} characters")
        if len(self._found) >= _MAX_GLOBALS:
            raise PickleFault(f"refers to more than {_MAX_GLOBALS} globals, which is too complex")
        full = f"{module}.{name}"
        self.verdicts.setdefault(full, judge(full))
        found = DTYPE_NAMES.get(full) or self._by_name.setdefault(full, Placeholder(full))
        self._found[module, name] = found
        return found

    def refuse(self, name: str, args: tuple[object, ...]) -> Placeholder:
        """Mark a name as unsafe for what is done with it; the result is inert."""
        self.verdicts[name] = Verdict.UNSAFE
        self.objects += 1
        return Placeholder(name, args)

    def call(self, function: object, args: object) -> object:
        """Give what stands for the result of a call."""
        if type(args) is not tuple:
            raise PickleFault(f"arguments are a {type(args).__name__} and not a tuple")
        if type(function) is not Placeholder:
            raise PickleFault(f"calls a {type(function).__name__}")
        name = function.name
        if function.is_object:
            return self.refuse(f"{name}.__call__", args)
        build = _CALLS.get(name)
        if build is not None:
            return build(self, name, args)
        if self.verdicts[name] is Verdict.PLACEHOLDER and looks_like_function(name):
            return self.refuse(name, args)
        self.objects += 1
        return Placeholder(name, args)

    def new(self, cls: object, args: object) -> object:
        """Give what stands for a new object of a class, which is not called."""
        if type(cls) is Placeholder and not cls.is_object:
            verdict = self.verdicts[cls.name]
            if verdict is Verdict.REBUILDER:
                raise PickleFault(f"{cls.name} is not a class")
            if verdict is Verdict.PLACEHOLDER and type(args) is tuple:
                self.objects += 1
                return Placeholder(cls.name, args)
        return self.call(cls, args)

    def change(self, target: Placeholder) -> bool:
        """Tell whether an object may take items or state; a class or function may not."""
        if not target.is_object:
            self.verdicts[target.name] = Verdict.UNSAFE
        return target.is_object

    def copying(self, count: int) -> None:
        """Count elements that a call copies, since it can be repeated on one large argument."""
        self._copied += count
        if self._copied > _MAX_COPIED:
            raise PickleFault("copies too many elements")

    def check_key(self, key: object) -> None:
        """Check that a value can be a key, and that hashing and comparing it stays cheap."""
        nodes = [key]
        odd = type(key) is tuple
        for seen, node in enumerate(nodes):  # grows on the way
            kind = type(node)
            if kind is tuple:
                if seen + len(node) > _MAX_KEY_NODES:  # type: ignore[arg-type]
                    raise PickleFault("a key is a tuple that is too large or too deep")
                nodes.extend(node)  # type: ignore[arg-type]
                if len(nodes) > _MAX_KEY_NODES:
                    raise PickleFault("a key is a tuple that is too large or too deep")
            elif kind is int:
                odd |= not -_SMALL_KEY < node < _SMALL_KEY  # type: ignore[operator]
            elif kind is float:
                odd = True
            elif kind not in _KEY_TYPES:
                raise PickleFault(f"a {kind.__name__} cannot be a key")
        # Numbers, unlike text, can be chosen to collide; a large table of them would never end.
        self._odd_keys += odd
        if self._odd_keys > _MAX_ODD_KEYS:
            raise PickleFault(f"more than {_MAX_ODD_KEYS} keys are unusual numbers or tuples")

    def encode(self, text: str) -> bytes:
        """Turn text with one character per byte into these bytes, once per text."""
        found = self._encoded.get(text)
        if found is None:
            try:
                found = self._encoded[text] = text.encode("latin-1")
            except UnicodeEncodeError:
                raise PickleFault("text that stands for bytes has wider characters") from None
        return found

    def storage(self, pid: object) -> object:
        """Give the storage that a persistent id refers to."""
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # the class of a module, beside its source text, in old legacy files
        if type(pid) is not tuple or not 5 <= len(pid) <= 6 or pid[0] != "storage":
            raise PickleFault("a persistent id is not that of a torch storage")
        _, kind, key, location, numel = pid[:5]
        if len(pid) == 6 and pid[5] is not None:
            raise PickleFault("a storage is a view of another one, as torch before 0.4 wrote them")
        if type(kind) is not Placeholder or type(key) is not str or type(location) is not str:
            raise PickleFault("a persistent id has parts of wrong types")
        if not is_size(numel):
            raise PickleFault("a storage has an impossible size")
        self.objects += 1
        if kind.name in STORAGE_NAMES and not kind.is_object:
            dtype = STORAGE_NAMES[kind.name]
            ref = self.storages.setdefault(key, StorageRef(key, dtype, numel, location))
            if ref.dtype is not dtype or ref.numel != numel:
                raise PickleFault(f"storage {key} is described twice, and differently")
            return ref
        return Placeholder(kind.name, pid)

    def tensor(
        self, storage: object, dtype: object, offset: Any, shape: Any, stride: Any
    ) -> TensorRef | Placeholder:
        """Describe a tensor; what cannot be described gets a placeholder that says why."""
        if type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride):
            raise PickleFault("shape and strides of a tensor are not tuples of one length")
        if len(shape) > _MAX_DIMS:
            raise PickleFault(f"a tensor has {len(shape)} dimensions")
        if type(offset) is not int or not 0 <= offset < _LIMIT:
            raise PickleFault("the offset of a tensor is not a valid integer")
        for number in (*shape, *stride):
            if type(number) is not int or not 0 <= number < _LIMIT:
                raise PickleFault("shape or strides of a tensor are not valid integers")
        self.objects += 1
        for part in (storage, dtype):
            if type(part) is Placeholder:
                return Placeholder(f"torch.Tensor ({part.name})", (storage, offset, shape, stride))
        if type(storage) is not StorageRef or type(dtype) is not DType:
            raise PickleFault("a tensor is made from something that is not a storage or dtype")
        return TensorRef(storage, dtype, offset, shape, stride)


_KEY_TYPES = frozenset({str, bool, type(None), bytes, Placeholder, DType})
_U8 = BY_CODE["U8"]


def _arity(name: str, args: tuple[object, ...], least: int, most: int) -> None:
    if not least <= len(args) <= most:
        raise PickleFault(f"{name} gets {len(args)} arguments")


def _rebuild_tensor(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    least, most = {"r": (4, 4), "2": (6, 7), "3": (7, 8)}[name[-1]]
    _arity(name, args, least, most)
    storage, offset, shape, stride = args[:4]
    if most == 8:
        dtype = args[6]
        if type(storage) is StorageRef and storage.dtype is not None:
            raise PickleFault("a typed storage stands where an untyped one belongs")
    else:
        dtype = (storage.dtype or _U8) if type(storage) is StorageRef else None
    found = builder.tensor(storage, dtype, offset, shape, stride)
    metadata = args[-1] if len(args) == most > 4 else None
    if metadata is not None:
        if type(metadata) is not dict:
            raise PickleFault("a tensor's metadata is not a dict")
        # The bytes are not the values then: a negation or conjugation is still to be done.
        for bit in ("conj", "neg"):
            if metadata.get(bit):
                return Placeholder(f"torch.Tensor ({bit})", args)
    return found


def _rebuild_parameter(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    _arity(name, args, 2, 4)
    if type(args[0]) not in (TensorRef, Placeholder):
        raise PickleFault(f"{name} gets a {type(args[0]).__name__} and not a tensor")
    return args[0]


def _rebuild_from_type(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    _arity(name, args, 4, 4)
    function, kind, inner, _ = args
    if type(kind) is not Placeholder or kind.is_object or type(inner) is not tuple:
        raise PickleFault(f"{name} gets arguments of wrong types")
    if type(function) is not Placeholder or function.is_object:
        raise PickleFault(f"{name} gets no function")
    build = _CALLS.get(function.name)
    # No other one, in particular not this one again: the file would control our recursion.
    if build in (_rebuild_tensor, _rebuild_parameter, _unsupported_tensor):
        return build(builder, function.name, inner)
    return builder.refuse(function.name, inner)


def _unsupported_tensor(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    builder.objects += 1
    return Placeholder(f"torch.Tensor ({UNSUPPORTED_TENSORS[name]})", args)


def _mapping(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if name.endswith("defaultdict"):
        args = args[1:] if len(args) < 3 else args  # without the factory
    _arity(name, args, 0, 1)
    builder.objects += 1
    if not args:
        return {}
    if type(args[0]) is dict:
        builder.copying(len(args[0]))
        return dict(args[0])
    made: dict[object, object] = {}
    for pair in _elements(builder, name, args[0]):
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise PickleFault(f"{name} gets something that is not pairs")
        if type(pair[0]) is not str:
            builder.check_key(pair[0])
        made[pair[0]] = pair[1]
    return made


def _elements(builder: Builder, name: str, source: Any) -> Any:
    if type(source) not in (list, tuple, set, frozenset):
        raise PickleFault(f"{name} gets a {type(source).__name__}")
    builder.copying(len(source))
    return source


def _sequence(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    _arity(name, args, 0, 2 if name.endswith("deque") else 1)
    builder.objects += 4
    source = _elements(builder, name, args[0]) if args else ()
    kind = _SEQUENCES[name.rpartition(".")[2]]
    if kind in (set, frozenset):
        for element in source:
            builder.check_key(element)
    return kind(source)


def _bytes(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if not args:
        return b""
    if type(args[0]) is bytes:
        return args[0]
    if type(args[0]) is str and args[1:] in (("latin-1",), ("latin1",)):
        return builder.encode(args[0])
    return builder.refuse(name, args)  # such as a length: memory out of nothing


def _encode(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if len(args) == 2 and type(args[0]) is str and args[1] in ("latin1", "latin-1"):
        return builder.encode(args[0])
    return builder.refuse(name, args)


def _refused(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    return builder.refuse(name, args)


def _complex(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    builder.objects += 1
    if len(args) == 2 and type(args[0]) is float and type(args[1]) is float:
        return complex(*args)
    return Placeholder(name, args)


def _type(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    # type(None) is how NoneType is spelled; three arguments would make a class.
    if args == (None,):
        return builder.find("builtins", "NoneType")
    if len(args) == 1 and type(args[0]) is Placeholder and not args[0].is_object:
        if args[0].name.rpartition(".")[2] in ("Ellipsis", "NotImplemented"):
            return Placeholder(name, args)
    return builder.refuse(name, args)


def _first(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    _arity(name, args, 1, 1)
    if type(args[0]) not in (tuple, str):
        raise PickleFault(f"{name} gets a {type(args[0]).__name__}")
    return args[0]


_DICT_NAMES = tuple(f"{module}.dict" for module in BUILTIN_MODULES)
_LIST_NAMES = tuple(f"{module}.list" for module in BUILTIN_MODULES)


def _reconstructor(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    _arity(name, args, 3, 3)
    cls, base, content = args
    if content is None:
        return builder.new(cls, ())
    made = builder.new(cls, (content,))
    # Protocols 0 and 1 hand over what a dict or list subclass holds; later ones put it in.
    if type(made) is Placeholder and type(base) is Placeholder:
        pairs: Any = ()
        if type(content) is dict and base.name in _DICT_NAMES:
            pairs = content.items()
        elif type(content) is list and base.name in _LIST_NAMES:
            pairs = enumerate(content)
        else:
            return made
        builder.objects += len(content)
        builder.copying(len(content))
        made.args, made.items = (), list(pairs)
    return made


def _newobj(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if name.endswith("ex__"):
        _arity(name, args, 3, 3)
        return builder.new(args[0], (args[1], args[2]) if args[2] else args[1])
    if not args:
        raise PickleFault(f"{name} gets no class")
    builder.copying(len(args))
    return builder.new(args[0], args[1:])


_SCALARS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?"} | {
    f"{sign}{size}": code.upper() if sign == "u" else code
    for sign in "iu"
    for size, code in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))
}


def _numpy_scalar(builder: Builder, name: str, args: tuple[Any, ...]) -> object:
    if len(args) == 2 and type(args[0]) is Placeholder and type(args[1]) is bytes:
        kind, state = args[0].args[:1], args[0].state
        code = _SCALARS.get(kind[0]) if kind and type(kind[0]) is str else None
        order = state[1] if type(state) is tuple and len(state) > 1 else "<"
        if code and args[0].name == "numpy.dtype" and len(args[1]) == calcsize(f"<{code}"):
            found: object = unpack((">" if order == ">" else "<") + code, args[1])[0]
            return found
    builder.objects += 1
    return Placeholder(name, args)


_Call = Callable[[Builder, str, "tuple[Any, ...]"], object]
_SEQUENCES: dict[str, Callable[[Any], object]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": list,
}


def _calls() -> dict[str, _Call]:
    table: dict[str, _Call] = {
        "_codecs.encode": _encode,
        "torch.Size": _first,
        "torch.torch_version.TorchVersion": _first,
        "collections.OrderedDict": _mapping,
        "collections.Counter": _mapping,
        "collections.defaultdict": _mapping,
        "collections.deque": _sequence,
    }
    for suffix in ("", "_v2", "_v3"):
        table[f"torch._utils._rebuild_tensor{suffix}"] = _rebuild_tensor
    for suffix in ("", "_with_state"):
        table[f"torch._utils._rebuild_parameter{suffix}"] = _rebuild_parameter
    for name in ("_tensor._rebuild_from_type", "_tensor._rebuild_from_type_v2"):
        table[f"torch.{name}"] = table[f"torch.{name[1:]}"] = _rebuild_from_type
    for name in UNSUPPORTED_TENSORS:
        table[name] = _unsupported_tensor
    for module in BUILTIN_MODULES:
        table[f"{module}.dict"] = _mapping
        table |= {f"{module}.{name}": _sequence for name in ("list", "tuple", "set", "frozenset")}
        table |= {f"{module}.{name}": _bytes for name in ("bytes", "bytearray")}
        table |= {f"{module}.complex": _complex, f"{module}.type": _type}
    for module in COPYREG_MODULES:
        table[f"{module}._reconstructor"] = _reconstructor
        table |= {f"{module}.{name}": _newobj for name in ("__newobj__", "__newobj_ex__")}
    for module in NUMPY_CORES:
        table[f"{module}.multiarray.scalar"] = _numpy_scalar
    # Uninitialised memory: what was in the process, published as weights.
    constructors = ("torch.Tensor", "torch.nn.Parameter", "torch.nn.parameter.Parameter")
    for name in (*STORAGE_NAMES, *constructors, "torch.nn.parameter.Buffer"):
        table[name] = _refused
    return table


_CALLS = _calls()
