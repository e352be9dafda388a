"""Files that strangers might send: hostile, malformed and good ones, made from one small model.

Each case writes its input into an empty folder. Nothing here is ever unpickled with Python's own
``pickle``; payloads are plain opcodes that would create a file named ``CANARY`` if they ran.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save
from torch import Tensor

from tests.support.lightning import fake_lightning

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
CANARY = Path("/tmp") / f"vaeconv-corpus-canary-{os.getuid()}"
BAD_INPUT = frozenset({3})

State = dict[str, Tensor]
Write = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: What is special about it.
        write: Writes it into a folder and returns the path to give to vaeconv.
        convert: Exit codes that ``convert`` may end with.
        inspect: Exit codes that ``inspect`` may end with.
        options: Further options of ``convert``.
        expected: CompVis weights that a good file converts to.
        mentions: Text that the error must contain.
        convert_to_file: Exit codes of ``convert`` to a CompVis file, where they are others.
        prune: Further exit codes of ``prune``.
    """

    name: str
    write: Write
    convert: frozenset[int] = BAD_INPUT
    inspect: frozenset[int] = BAD_INPUT
    options: tuple[str, ...] = ()
    expected: Callable[[], State] | None = None
    mentions: str = ""
    convert_to_file: frozenset[int] | None = None
    prune: frozenset[int] = BAD_INPUT

    @property
    def to_file(self) -> frozenset[int]:
        """Exit codes of ``convert`` to a CompVis file, which has no config."""
        return self.convert if self.convert_to_file is None else self.convert_to_file


@cache
def base() -> State:
    """The weights, float16, in the CompVis layout; diffusers' own conversion is a fixture."""
    return load_file(FIXTURES / "tiny-kl.safetensors")


@cache
def wide() -> State:
    """The same weights in float32."""
    return {name: tensor.float() for name, tensor in base().items()}


FIRST = "decoder.conv_in.bias"
BIG = "decoder.mid.block_1.conv1.weight"


def _file(name: str, data: Callable[[], bytes]) -> Write:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data())
        return path

    return write


# --- pickles, opcode by opcode -------------------------------------------------------------------


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """BININT or LONG1."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(name: str) -> bytes:
    """GLOBAL; the last dot parts module and name."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    """MARK … TUPLE."""
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *args: bytes) -> bytes:
    """REDUCE."""
    return function + tuple_of(*args) + b"R"


def mapping(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """EMPTY_DICT, filled at once."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


@dataclass(frozen=True)
class View:
    """A tensor as a pickle describes it; every part may lie."""

    key: str
    storage: str
    numel: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    rebuild: str = "torch._utils._rebuild_tensor_v2"
    storage_module: str = "torch"
    extra: bytes | None = None
    is_legacy: bool = False

    def pickled(self) -> bytes:
        """Opcodes that make it."""
        persistent = tuple_of(
            text("storage"),
            named(f"{self.storage_module}.{self.storage}"),
            text(self.key),
            text("cpu"),
            number(self.numel),
            *([b"N"] if self.is_legacy else []),
        )
        tail = b"\x89" + call(named("collections.OrderedDict"))
        return call(
            named(self.rebuild),
            persistent + b"Q",
            number(self.offset),
            tuple_of(*map(number, self.shape)),
            tuple_of(*map(number, self.stride)),
            self.extra if self.extra is not None else tail,
        )


_STORAGE = {
    torch.float16: "HalfStorage",
    torch.float32: "FloatStorage",
    torch.float64: "DoubleStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.complex64: "ComplexFloatStorage",
}


def raw(tensor: Tensor) -> bytes:
    """The elements as bytes, in C order."""
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else b""


def views(state: Mapping[str, Tensor]) -> dict[str, View]:
    """Honest descriptions, one storage each, keyed by number."""
    return {
        name: View(
            str(index),
            _STORAGE[tensor.dtype],
            tensor.numel(),
            tuple(tensor.shape),
            tensor.contiguous().stride(),
        )
        for index, (name, tensor) in enumerate(state.items())
    }


def pickled_state(
    described: Mapping[str, View],
    *,
    before: bytes = b"",
    beside: Sequence[tuple[bytes, bytes]] = (),
    inside: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A checkpoint's pickle, with opcodes of one's choice before, beside or in the state dict."""
    state = mapping(
        [(text(name), view.pickled()) for name, view in described.items()] + list(inside)
    )
    return b"\x80\x02" + before + mapping([(text("state_dict"), state), *beside]) + b"."


# --- zip files, field by field -------------------------------------------------------------------


@dataclass
class Member:
    """A member whose headers may lie; None means the truth."""

    name: str | bytes
    data: bytes
    method: int = 0
    stored: bytes | None = None
    crc: int | None = None
    size: int | None = None
    stored_size: int | None = None
    flags: int = 0
    local: dict[str, Any] = field(default_factory=dict)
    offset: int | None = None
    extra: bytes = b""
    attributes: int = 0

    @property
    def raw_name(self) -> bytes:
        """Its name as bytes."""
        return self.name if isinstance(self.name, bytes) else self.name.encode()


def zipped(
    members: Sequence[Member],
    *,
    comment: bytes = b"",
    end: Mapping[str, int] | None = None,
    zip64: bool = False,
    between: bytes = b"",
    tail: bytes = b"",
    hidden: frozenset[int] = frozenset(),
) -> bytes:
    """A zip file. ``end`` overrides numbers of its end record; ``hidden`` are left unlisted."""
    out, listing = bytearray(), bytearray()
    listed = 0
    for index, member in enumerate(members):
        packed = member.data
        if member.method == 8:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            packed = packer.compress(packed) + packer.flush()
        packed = packed if member.stored is None else member.stored
        fields = {
            "flags": member.flags,
            "method": member.method,
            "crc": zlib.crc32(member.data) if member.crc is None else member.crc,
            "stored": len(packed) if member.stored_size is None else member.stored_size,
            "size": len(member.data) if member.size is None else member.size,
        }
        offset = len(out) if member.offset is None else member.offset
        here = {**fields, "name": member.raw_name, **member.local}
        out += struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 45, here["flags"], here["method"], 0, 0x21, here["crc"],
            here["stored"], here["size"], len(here["name"]), len(here.get("extra", b"")),
        )  # fmt: skip
        out += here["name"] + here.get("extra", b"") + packed
        if index in hidden:
            continue
        listed += 1
        listing += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 45, 45, fields["flags"], fields["method"], 0, 0x21,
            fields["crc"], fields["stored"], fields["size"], len(member.raw_name),
            len(member.extra), 0, 0, 0, member.attributes, offset,
        )  # fmt: skip
        listing += member.raw_name + member.extra
    numbers = {"disk": 0, "first": 0, "here": listed, "count": listed, "size": len(listing),
               "offset": len(out), **(end or {})}  # fmt: skip
    start = len(out)
    out += listing + between
    if zip64:
        at = len(out)
        out += struct.pack(
            "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, numbers["here"], numbers["count"],
            numbers["size"], numbers["offset"],
        )  # fmt: skip
        out += struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
        numbers |= {"here": 0xFFFF, "count": 0xFFFF, "size": 0xFFFFFFFF, "offset": 0xFFFFFFFF}
    assert start <= len(out)
    out += struct.pack(
        "<4s4H2IH", b"PK\x05\x06", numbers["disk"], numbers["first"], numbers["here"],
        numbers["count"], numbers["size"], numbers["offset"], len(comment),
    )  # fmt: skip
    return bytes(out + comment + tail)


def torch_members(
    state: Mapping[str, Tensor], pickled: bytes | None = None, *, folder: str = "archive/"
) -> list[Member]:
    """The members of a torch file."""
    return [
        Member(folder + "data.pkl", pickled_state(views(state)) if pickled is None else pickled),
        Member(folder + "byteorder", b"little"),
        *(
            Member(f"{folder}data/{index}", raw(tensor))
            for index, tensor in enumerate(state.values())
        ),
        Member(folder + "version", b"3\n"),
    ]


def torch_zip(pickled: bytes | None = None, **options: Any) -> bytes:
    """A torch file of the base weights, with another pickle in it."""
    return zipped(torch_members(base(), pickled), **options)


def edited(edit: Callable[[list[Member]], object], **options: Any) -> bytes:
    """A torch file whose members were changed in place."""
    members = torch_members(base())
    edit(members)
    return zipped(members, **options)


def _at(members: list[Member], name: str) -> Member:
    return next(m for m in members if m.raw_name.endswith(name.encode()))


def _record(name: str) -> str:
    return f"/data/{list(base()).index(name)}"


def with_view(name: str, **changes: Any) -> bytes:
    """A torch file in which one tensor is described otherwise."""
    described = views(base())
    described[name] = replace(described[name], **changes)
    return torch_zip(pickled_state(described))


# --- torch's format before 1.6 -------------------------------------------------------------------

MAGIC = 0x1950A86A20F9469CFC6C
_FACTS = mapping(
    [
        (text("protocol_version"), number(1001)),
        (text("little_endian"), b"\x88"),
        (text("type_sizes"), mapping([(text("int"), number(4))])),
    ]
)


def legacy(
    state: Mapping[str, Tensor] | None = None,
    *,
    slots: Mapping[int, bytes] | None = None,
    keys: Sequence[bytes] | None = None,
    counts: Mapping[int, int] | None = None,
    tail: bytes = b"",
) -> bytes:
    """A legacy file; ``slots`` puts opcodes in front of the value of one of its five pickles."""
    state = base() if state is None else state
    described = {name: replace(view, is_legacy=True) for name, view in views(state).items()}
    listed = [text(view.key) for view in described.values()] if keys is None else list(keys)
    values = [
        number(MAGIC),
        number(1001),
        _FACTS,
        pickled_state(described)[2:-1],
        b"](" + b"".join(listed) + b"e",
    ]
    out = b"".join(
        b"\x80\x02" + (slots or {}).get(index, b"") + value + b"."
        for index, value in enumerate(values)
    )
    for index, tensor in enumerate(state.values()):
        out += struct.pack("<q", (counts or {}).get(index, tensor.numel())) + raw(tensor)
    return out + tail


# --- hostile -------------------------------------------------------------------------------------

COMMAND = f"echo ran > {CANARY}"
_SHELL = text(COMMAND)
_PYTHON = text(f"open({str(CANARY)!r}, 'w').close()")
_SYSTEM = call(named("os.system"), _SHELL)
_LIST = b"](" + text("sh") + text("-c") + _SHELL + b"e"

_CALLS: dict[str, tuple[bytes, ...]] = {
    "os.system": (_SHELL,),
    "posix.system": (_SHELL,),
    "nt.system": (_SHELL,),
    "os.popen": (_SHELL,),
    "os.execv": (text("/bin/sh"), _LIST),
    "os.remove": (text("/tmp/nothing"),),
    "os._exit": (number(0),),
    "sys.exit": (number(0),),
    "subprocess.Popen": (_LIST,),
    "subprocess.check_output": (_LIST,),
    "subprocess.getoutput": (_SHELL,),
    "commands.getoutput": (_SHELL,),
    "popen2.popen2": (_SHELL,),
    "pty.spawn": (_LIST,),
    "builtins.eval": (_PYTHON,),
    "builtins.exec": (_PYTHON,),
    "__builtin__.eval": (_PYTHON,),
    "builtins.compile": (_PYTHON, text("x"), text("exec")),
    "builtins.open": (text(str(CANARY)), text("w")),
    "builtins.getattr": (named("os.path"), text("os")),
    "builtins.setattr": (named("os.path"), text("x"), text("y")),
    "builtins.__import__": (text("antigravity"),),
    "builtins.breakpoint": (),
    "builtins.map": (named("builtins.eval"), b"](" + _PYTHON + b"e"),
    "builtins.globals": (),
    "builtins.bytearray": (number(1 << 40),),
    "builtins.range": (number(1 << 62),),
    "io.open": (text(str(CANARY)), text("w")),
    "_io.FileIO": (text(str(CANARY)), text("w")),
    "codecs.open": (text(str(CANARY)), text("w")),
    "importlib.import_module": (text("antigravity"),),
    "importlib.machinery.SourceFileLoader": (text("x"), text("/tmp/x.py")),
    "runpy._run_code": (_PYTHON, b"}"),
    "runpy.run_path": (text("/tmp/x.py"),),
    "code.InteractiveInterpreter": (),
    "timeit.timeit": (_PYTHON,),
    "profile.run": (_PYTHON,),
    "cProfile.runctx": (_PYTHON, b"}", b"}"),
    "pdb.run": (_PYTHON,),
    "bdb.Bdb.run": (_PYTHON,),
    "doctest.debug_script": (_PYTHON,),
    "operator.attrgetter": (text("system"),),
    "operator.methodcaller": (text("system"), _SHELL),
    "functools.partial": (named("os.system"), _SHELL),
    "types.FunctionType": (b"N", b"}"),
    "marshal.loads": (b"U\x01N",),
    "pickle.loads": (b"U\x02N.",),
    "_pickle.loads": (b"U\x02N.",),
    "cPickle.loads": (b"U\x02N.",),
    "dill.loads": (b"U\x02N.",),
    "cloudpickle.cloudpickle._make_function": (b"N",),
    "joblib.load": (text("/tmp/x"),),
    "numpy.load": (text("/tmp/x"),),
    "numpy.testing._private.utils.runstring": (_PYTHON, b"}"),
    "numpy.f2py.crackfortran.myeval": (_PYTHON,),
    "pandas.io.pickle.read_pickle": (text("/tmp/x"),),
    "torch.load": (text("/tmp/x"),),
    "torch.hub.load": (text("a/b"), text("c")),
    "torch.storage._load_from_bytes": (b"U\x02N.",),
    "torch._utils._import_dotted_name": (text("os.system"),),
    "torch.jit.unsupported_tensor_ops.execWrapper": (_PYTHON, b"}", b"}"),
    "torch.utils.collect_env.run": (_SHELL,),
    "torch.nn.Module": (),
    "torch.serialization.os.system": (_SHELL,),
    "shutil.rmtree": (text("/tmp/nothing-here"),),
    "shutil.os.system": (_SHELL,),
    "socket.create_connection": (tuple_of(text("127.0.0.1"), number(9)),),
    "urllib.request.urlopen": (text("http://127.0.0.1:9/"),),
    "urllib.request.urlretrieve": (text("http://127.0.0.1:9/"), text(str(CANARY))),
    "webbrowser.open": (text("http://127.0.0.1:9/"),),
    "ctypes.CDLL": (text("libc.so.6"),),
    "multiprocessing.util.spawnv_passfds": (text("/bin/sh"), _LIST, b")"),
    "multiprocessing.popen_spawn_posix.Popen": (b"N",),
    "logging.config.fileConfig": (text("/tmp/x"),),
    "pydoc.pipepager": (text("x"), _SHELL),
    "distutils.file_util.write_file": (text(str(CANARY)), _LIST),
    "pip._internal.main": (_LIST,),
    "setuptools.sandbox.run_setup": (text("/tmp/x"), b"]"),
    "venv.create": (text("/tmp/nothing-here"),),
    "zipimport.zipimporter": (text("/tmp/x"),),
    "signal.raise_signal": (number(9),),
    "sqlite3.connect": (text(str(CANARY)),),
    "yaml.unsafe_load": (text("!!python/object/apply:os.system [true]"),),
    "some_package.helpers.run_shell": (_SHELL,),
}


def _beside(opcodes: bytes) -> bytes:
    return torch_zip(pickled_state(views(base()), beside=[(text("callbacks"), opcodes)]))


def _before(opcodes: bytes) -> bytes:
    return torch_zip(pickled_state(views(base()), before=opcodes + b"0"))


_FORMS: dict[str, Callable[[], bytes]] = {
    "before_state": lambda: _before(_SYSTEM),
    "after_stop": lambda: torch_zip(pickled_state(views(base()))[:-1] + _SYSTEM + b"0."),
    "in_state": lambda: torch_zip(pickled_state(views(base()), inside=[(text("x"), _SYSTEM)])),
    "as_key": lambda: torch_zip(pickled_state(views(base()), beside=[(_SYSTEM, b"N")])),
    "as_metadata": lambda: with_view(BIG, extra=b"\x89" + _SYSTEM),
    "rebuild_by_hand": lambda: with_view(BIG, rebuild="os.system"),
    "inst": lambda: _beside(b"(" + _SHELL + b"ios\nsystem\n"),
    "obj": lambda: _beside(b"(" + named("os.system") + _SHELL + b"o"),
    "newobj": lambda: _beside(named("subprocess.Popen") + tuple_of(_LIST) + b"\x81"),
    "newobj_ex": lambda: _beside(named("subprocess.Popen") + tuple_of(_LIST) + b"}\x92"),
    "stack_global": lambda: _beside(text("os") + text("system") + b"\x93" + tuple_of(_SHELL) + b"R"),
    "stack_global_from_memo": lambda: _beside(
        text("os") + b"q\x070" + text("system") + b"q\x080h\x07h\x08\x93" + tuple_of(_SHELL) + b"R"
    ),
    "dotted_attribute": lambda: _beside(
        text("torch") + text("serialization.os.system") + b"\x93" + tuple_of(_SHELL) + b"R"
    ),
    "dunder_chain": lambda: _beside(
        text("builtins") + text("object.__subclasses__") + b"\x93" + b")R"
    ),
    "harmless_package_gateway": lambda: _beside(
        text("my_package") + text("utils.os.system") + b"\x93" + tuple_of(_SHELL) + b"R"
    ),
    "named_but_not_called": lambda: _beside(named("os.system")),
    "build_on_function": lambda: _beside(named("os.system") + mapping([(text("x"), b"N")]) + b"b"),
    "setstate_slots": lambda: _beside(
        named("some.Thing") + b")\x81N" + mapping([(text("__class__"), named("os.system"))])
        + b"\x86b"
    ),
    "protocol_0": lambda: _beside(b"cos\nsystem\n(S'" + COMMAND.encode() + b"'\ntR"),
    "without_proto": lambda: torch_zip(
        pickled_state(views(base()), beside=[(text("x"), _SYSTEM)])[2:]
    ),
    "ext1": lambda: _beside(b"\x82\x01"),
    "ext2": lambda: _beside(b"\x83\x01\x01"),
    "ext4": lambda: _beside(b"\x84\x01\x01\x01\x00"),
    "copyreg_add_extension": lambda: _beside(
        call(named("copyreg.add_extension"), text("os"), text("system"), number(7)) + b"0\x82\x07"
    ),
    "reconstructor": lambda: _beside(
        call(named("copyreg._reconstructor"), named("subprocess.Popen"), named("builtins.object"), b"N")
    ),
    "rebuild_from_type": lambda: _beside(
        call(named("torch._tensor._rebuild_from_type_v2"), named("os.system"),
             named("torch.Tensor"), tuple_of(_SHELL), b"N")
    ),
    "defaultdict_factory": lambda: _beside(
        call(named("collections.defaultdict"), named("os.system")) + text("x") + _SHELL + b"s"
    ),
    "lookalike": lambda: _beside(call("cｏs\nsystem\n".encode(), _SHELL)),
    "upper_case_module": lambda: _beside(call(named("OS.system"), _SHELL)),
    "result_called": lambda: _beside(call(call(named("some.Thing")), _SHELL)),
    "numpy_object_dtype": lambda: _beside(
        call(named("numpy.core.multiarray.scalar"),
             call(named("numpy.dtype"), text("O8")), b"U\x02N.")
    ),
    "module_opcode": lambda: _beside(
        tuple_of(text("module"), named("os.system"), text("x.py"), text("source")) + b"Q"
    ),
    "type_makes_class": lambda: _beside(
        call(named("builtins.type"), text("X"), b")", mapping([(text("__del__"), named("os.system"))]))
    ),
}  # fmt: skip


def _hostile_first() -> bytes:
    """Two data.pkl: torch would run the first, zipfile would show the last."""
    bad = pickled_state(views(base()), before=_SYSTEM + b"0")
    return zipped([Member("archive/data.pkl", bad), *torch_members(base())])


def _other_case_first() -> bytes:
    bad = pickled_state(views(base()), before=_SYSTEM + b"0")
    return zipped([Member("archive/DATA.PKL", bad), *torch_members(base())])


def _name_cut_by_zero() -> bytes:
    bad = pickled_state(views(base()), before=_SYSTEM + b"0")
    return zipped([*torch_members(base()), Member(b"archive/data.pkl\x00x", bad)])


def _hostile_folder(folder: Path) -> Path:
    (folder / "diffusion_pytorch_model.bin").write_bytes(_before(_SYSTEM))
    (folder / "config.json").write_bytes((FIXTURES / "tiny-diffusers/config.json").read_bytes())
    return folder


def _tar_of_torch(folder: Path) -> Path:
    import tarfile

    path = folder / "model.pt"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("sys_info", "pickle", "storages"):
            data = b"\x80\x02" + _SYSTEM + b"."
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def hostile_cases() -> list[Case]:
    """Files whose payload a loader might run."""
    cases = [
        Case(f"call_{name}", _file("model.ckpt", partial(_beside, call(named(name), *args))))
        for name, args in _CALLS.items()
    ]
    cases += [Case(name, _file("model.ckpt", make)) for name, make in _FORMS.items()]
    # What stands behind STOP is never read, a range costs nothing, and a class of training code is
    # a placeholder: nothing here can run.
    harmless = ("after_stop", "call_builtins.range", "call_torch.nn.Module")
    cases = [
        replace(c, convert=frozenset({0, 3}), inspect=frozenset({0, 3}))
        if c.name in harmless else c
        for c in cases
    ]  # fmt: skip
    for index in range(5):
        for form, opcodes in (("pop", _SYSTEM + b"0"), ("inst", b"(" + _SHELL + b"ios\nsystem\n0")):
            data = partial(legacy, slots={index: opcodes})
            cases.append(Case(f"legacy_slot_{index}_{form}", _file("model.pt", data)))
    cases += [
        Case("duplicate_hostile_first", _file("model.ckpt", _hostile_first)),
        Case("other_case_hostile_first", _file("model.ckpt", _other_case_first)),
        Case("name_cut_by_zero", _file("model.ckpt", _name_cut_by_zero)),
        Case(
            "deflated_pickle",
            _file("model.ckpt", lambda: edited(_deflate_hostile)),
        ),
        Case("in_bundle", _file("model.zip", lambda: zipped([Member("a.ckpt", _before(_SYSTEM))]))),
        Case(
            "in_deflated_bundle",
            _file("model.zip", lambda: zipped([Member("a.ckpt", _before(_SYSTEM), method=8)])),
        ),
        Case("in_folder", _hostile_folder),
        Case("in_tar", _tar_of_torch),
        Case("torchscript", _file("model.pt", _torchscript)),
        Case("bare_pickle", _file("model.pkl", lambda: b"\x80\x04" + _SYSTEM + b".")),
        Case("bare_protocol_0", _file("model.pkl", lambda: b"cos\nsystem\n(S'true'\ntR.")),
        Case(
            "named_safetensors",
            _file("model.safetensors", lambda: _before(_SYSTEM)),
        ),
    ]
    return cases


def _deflate_hostile(members: list[Member]) -> None:
    members[0].data = pickled_state(views(base()), before=_SYSTEM + b"0")
    members[0].method = 8


def _torchscript() -> bytes:
    return edited(
        lambda m: m.extend(
            [Member("archive/constants.pkl", b"\x80\x02)."), Member("archive/code/x.py", b"x = 1")]
        )
    )


# --- malformed: zip ------------------------------------------------------------------------------


def _set(name: str, **changes: Any) -> Callable[[], bytes]:
    def edit(members: list[Member]) -> None:
        member = _at(members, name)
        for key, value in changes.items():
            setattr(member, key, value(member) if callable(value) else value)

    return lambda: edited(edit)


def _flipped(data: bytes, at: int, bit: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]


def _cut(make: Callable[[], bytes], share: float) -> Callable[[], bytes]:
    def cut() -> bytes:
        data = make()
        return data[: int(len(data) * share)]

    return cut


def _zeroed_middle(data: bytes) -> bytes:
    start, end = len(data) // 3, len(data) // 3 + 65536
    return data[:start] + bytes(end - start) + data[end:]


def _patch(make: Callable[[], bytes], change: Callable[[bytearray], object]) -> Callable[[], bytes]:
    def patched() -> bytes:
        data = bytearray(make())
        change(data)
        return bytes(data)

    return patched


def _end_at(data: bytes | bytearray) -> int:
    return bytes(data).rindex(b"PK\x05\x06")


def _many_members() -> bytes:
    return edited(lambda m: m.extend(Member(f"archive/data/x{i}", b"") for i in range(60_000)))


def _bomb(records: int, size: int) -> bytes:
    """Records of zeros that shrink a thousandfold."""
    state = {
        f"model.diffusion_model.x{i}.weight": View(
            str(i), "FloatStorage", size // 4, (size // 4,), (1,)
        )
        for i in range(records)
    }
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    crc = 0
    for _ in range(size >> 20):
        crc = zlib.crc32(bytes(1 << 20), crc)
    return zipped(
        [
            Member("archive/data.pkl", pickled_state(state)),
            *(
                Member(f"archive/data/{i}", b"", method=8, stored=packed, crc=crc, size=size)
                for i in range(records)
            ),
            Member("archive/version", b"3\n"),
        ]
    )


def _deep_bundle() -> bytes:
    data = torch_zip()
    for _ in range(2000):
        data = zipped([Member("a.ckpt", data)])
    return data


def _many_configs() -> bytes:
    members = [Member(f"{i}.yaml", b"a: 1") for i in range(20_000)]
    return zipped(members + [Member(f"{i}.ckpt", bytes(512)) for i in range(20_000)])


def _end64(field_at: int, value: int) -> Callable[[], bytes]:
    def change(data: bytearray) -> None:
        at = bytes(data).rindex(b"PK\x06\x06")
        struct.pack_into("<Q", data, at + field_at, value)

    return _patch(lambda: torch_zip(zip64=True), change)


_ZIP: dict[str, Callable[[], bytes]] = {
    "zip_crc_tensor": _set(_record(BIG), crc=1),
    "zip_crc_pickle": _set("data.pkl", crc=1),
    "zip_bitflip_tensor": _set(
        _record(BIG), stored=lambda m: _flipped(m.data, 40), crc=lambda m: zlib.crc32(m.data)
    ),
    "zip_bitflip_pickle": lambda: edited(
        lambda m: setattr(m[0], "stored", _flipped(m[0].data, len(m[0].data) // 2))
    ),
    "zip_zero_filled_middle": lambda: _zeroed_middle(torch_zip()),
    "zip_short_record": _set(
        _record(BIG), data=lambda m: m.data[:-64]
    ),
    "zip_long_record": _set(_record(BIG), data=lambda m: m.data + bytes(64)),
    "zip_empty_record": _set(_record(BIG), data=b""),
    "zip_missing_record": lambda: edited(lambda m: m.remove(_at(m, _record(BIG)))),
    "zip_no_pickle": lambda: edited(lambda m: m.pop(0)),
    "zip_empty_pickle": _set("data.pkl", data=b""),
    "zip_two_pickles": lambda: edited(lambda m: m.append(Member("other/data.pkl", m[0].data))),
    "zip_bad_deflate": _set(_record(BIG), method=8, stored=b"\xff" * 500),
    "zip_deflate_too_short": _set(
        _record(BIG), method=8, size=lambda m: len(m.data) , stored=zlib.compress(bytes(10))[2:-4]
    ),
    "zip_deflate_ends_early": _set(
        _record(BIG), method=8, stored=lambda m: zlib.compress(m.data)[2:-4][:-200]
    ),
    "zip_unknown_method": _set(_record(BIG), method=14),
    "zip_bzip2_pickle": _set("data.pkl", method=12),
    "zip_encrypted_flag": _set(_record(BIG), flags=1),
    "zip_encrypted_pickle": _set("data.pkl", flags=1),
    "zip_strong_encryption": _set("data.pkl", flags=0x41),
    "zip_encrypted_local_only": _set(_record(BIG), local={"flags": 1}),
    "zip_stored_sizes_differ": _set(_record(BIG), size=lambda m: len(m.data) + 4),
    "zip_local_name_differs": _set(_record(BIG), local={"name": b"archive/data/999"}),
    "zip_local_crc_differs": _set(_record(BIG), local={"crc": 7}),
    "zip_local_size_differs": _set(_record(BIG), local={"size": 7, "stored": 7}),
    "zip_local_method_differs": _set(_record(BIG), local={"method": 8}),
    "zip_local_extra_pushes_data": _set(_record(BIG), local={"extra": b"\x00" * 400}, stored=b""),
    "zip_offset_outside": _set(_record(BIG), offset=0x7FFFFFFF),
    "zip_offset_into_other": _set(_record(BIG), offset=64),
    "zip_offset_of_other": _set(_record(BIG), offset=0),
    "zip_duplicate_record": lambda: edited(lambda m: m.append(_at(m, _record(BIG)))),
    "zip_duplicate_other_case": lambda: edited(
        lambda m: m.append(Member("archive/Version", b"3\n"))
    ),
    "zip_no_end": _cut(torch_zip, 0.999),
    "zip_cut_half": _cut(torch_zip, 0.5),
    "zip_cut_tenth": _cut(torch_zip, 0.1),
    "zip_cut_to_magic": lambda: torch_zip()[:4],
    "zip_cut_last_byte": lambda: torch_zip()[:-1],
    "zip_trailing_byte": lambda: torch_zip(tail=b"x"),
    "zip_comment_too_long": lambda: torch_zip(comment=b"x" * 10)[:-3],
    "zip_count_too_large": lambda: torch_zip(end={"here": 999, "count": 999}),
    "zip_count_too_small": lambda: torch_zip(end={"here": 5, "count": 5}),
    "zip_count_zero": lambda: torch_zip(end={"here": 0, "count": 0, "size": 0}),
    "zip_directory_offset": lambda: torch_zip(end={"offset": 10}),
    "zip_directory_offset_outside": lambda: torch_zip(end={"offset": 0x7FFFFFFF}),
    "zip_directory_size": lambda: torch_zip(end={"size": 0x7FFFFFFF}),
    "zip_gap_before_end": lambda: torch_zip(between=b"x" * 100),
    "zip_several_volumes": lambda: torch_zip(end={"disk": 1}),
    "zip_counts_differ": lambda: torch_zip(end={"here": 1}),
    "zip64_no_locator": lambda: torch_zip(end={"size": 0xFFFFFFFF}),
    "zip64_offset_outside": _end64(48, 1 << 62),
    "zip64_size_outside": _end64(40, 1 << 62),
    "zip64_count_huge": _end64(32, 1 << 62),
    "zip64_extra_missing": _set(_record(BIG), size=0xFFFFFFFF, stored_size=0xFFFFFFFF),
    "zip64_extra_short": _set(
        _record(BIG), size=0xFFFFFFFF, stored_size=0xFFFFFFFF, extra=struct.pack("<HHI", 1, 16, 5)
    ),
    "zip64_extra_huge": _set(
        _record(BIG), size=0xFFFFFFFF, stored_size=0xFFFFFFFF,
        extra=struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62),
    ),
    "zip_name_not_utf8": lambda: edited(lambda m: setattr(m[0], "name", b"archive/\xff.pkl")),
    "zip_name_with_controls": lambda: zipped([Member("\x1b[31m\n\rdata", bytes(600))]),
    "zip_empty": lambda: zipped([]),
    "zip_only_folders": lambda: zipped([Member("archive/", b"")]),
    "zip_no_version": lambda: edited(lambda m: m.pop()),
    "zip_version_unknown": _set("version", data=b"999\n"),
    "zip_version_junk": _set("version", data=b"\x1b[2Jhello"),
    "zip_byteorder_unknown": _set("byteorder", data=b"middle"),
    "zip_byteorder_long": _set("byteorder", data=b"little" * 100),
    "zip_byteorder_lies": _set("byteorder", data=b"big"),
    "zip_bomb_pickle": _set("data.pkl", method=8, data=bytes(100 << 20)),
    "zip_bomb_one": lambda: _bomb(1, 512 << 20),
    "zip_bomb_many": lambda: _bomb(40, 64 << 20),
    "zip_bundle_nested": _deep_bundle,
    "zip_bundle_two": lambda: zipped(
        [Member("a.ckpt", torch_zip()), Member("b.ckpt", torch_zip())]
    ),
    "zip_bundle_none": lambda: zipped([Member("README.md", b"x" * 2000)]),
    "zip_bundle_bad_crc": lambda: zipped([Member("a.ckpt", torch_zip(), method=8, crc=5)]),
    "zip_many_configs": _many_configs,
}  # fmt: skip


# --- malformed: what the pickle says of tensors --------------------------------------------------


def _aliased(count: int) -> bytes:
    """Many names for one record: little to read, much to write."""
    view = views(base())[BIG]
    described = {f"x{i}.weight": view for i in range(count)}
    return torch_zip(pickled_state({**views(base()), **described}))


def _expanded() -> bytes:
    """Every convolution repeats one element of a tiny record to the limit."""
    described = {
        name: replace(
            view,
            shape=tuple(n if n < 32 else 1024 for n in view.shape),
            stride=(0,) * len(view.shape),
        )
        for name, view in views(base()).items()
    }
    return torch_zip(pickled_state(described))


_BIG_NUMEL = base()[BIG].numel()
_BIG_SHAPE = tuple(base()[BIG].shape)
_TENSOR: dict[str, Callable[[], bytes]] = {
    "tensor_storage_short_by_one": lambda: with_view(BIG, numel=_BIG_NUMEL - 1),
    "tensor_storage_long_by_one": lambda: with_view(BIG, numel=_BIG_NUMEL + 1),
    "tensor_offset_by_one": lambda: with_view(BIG, offset=1),
    "tensor_offset_huge": lambda: with_view(BIG, offset=1 << 62),
    "tensor_offset_negative": lambda: with_view(BIG, offset=-1),
    "tensor_offset_over_64_bits": lambda: with_view(BIG, offset=1 << 70),
    "tensor_stride_too_large": lambda: with_view(BIG, stride=(1 << 40, 9, 3, 1)),
    "tensor_stride_negative": lambda: with_view(BIG, stride=(-288, 9, 3, 1)),
    "tensor_stride_missing": lambda: with_view(BIG, stride=(288, 9, 3)),
    "tensor_shape_huge": lambda: with_view(BIG, shape=(1 << 40, 32, 3, 3)),
    "tensor_shape_overflows": lambda: with_view(BIG, shape=(1 << 32, 1 << 32, 1 << 32, 1 << 32)),
    "tensor_shape_negative": lambda: with_view(BIG, shape=(-32, 32, 3, 3)),
    "tensor_shape_zero": lambda: with_view(BIG, shape=(0, 32, 3, 3)),
    "tensor_numel_negative": lambda: with_view(BIG, numel=-5),
    "tensor_numel_huge": lambda: with_view(BIG, numel=1 << 61),
    "tensor_1000_dims": lambda: with_view(BIG, shape=(1,) * 1000, stride=(1,) * 1000),
    "tensor_uninitialised_ctor": lambda: torch_zip(
        pickled_state(
            {n: v for n, v in views(base()).items() if n != BIG},
            inside=[(text(BIG), call(named("torch.Tensor"), *map(number, _BIG_SHAPE)))],
        )
    ),
    "tensor_uninitialised_storage": lambda: torch_zip(
        pickled_state(
            views(base()), beside=[(text("x"), call(named("torch.FloatStorage"), number(1 << 30)))]
        )
    ),
    "tensor_is_none": lambda: torch_zip(
        pickled_state({n: v for n, v in views(base()).items() if n != BIG}, inside=[(text(BIG), b"N")])
    ),
    "tensor_is_list": lambda: torch_zip(
        pickled_state({n: v for n, v in views(base()).items() if n != BIG}, inside=[(text(BIG), b"]")])
    ),
    "tensor_quantized": lambda: with_view(BIG, rebuild="torch._utils._rebuild_qtensor"),
    "tensor_sparse": lambda: with_view(BIG, rebuild="torch._utils._rebuild_sparse_tensor"),
    "tensor_negative_bit": lambda: with_view(
        BIG, extra=b"\x89" + call(named("collections.OrderedDict"))
        + mapping([(text("neg"), b"\x88")])
    ),
    "storage_type_lies": lambda: with_view(BIG, storage="FloatStorage"),
    "storage_type_lies_with_count": lambda: with_view(
        BIG, storage="FloatStorage", numel=_BIG_NUMEL // 2
    ),
    "storage_type_unknown": lambda: with_view(BIG, storage="FancyStorage", storage_module="fancy"),
    "storage_two_types": lambda: torch_zip(
        pickled_state(
            {**views(base()), "loss.x": replace(views(base())[BIG], storage="BFloat16Storage")}
        )
    ),
    "storage_key_traversal": lambda: with_view(BIG, key="../../../../etc/passwd"),
    "storage_key_absolute": lambda: with_view(BIG, key="/etc/passwd"),
    "storage_key_controls": lambda: with_view(BIG, key="\x1b[2J\n\u2028\x00"),
    "storage_key_unknown": lambda: with_view(BIG, key="999"),
    "tensor_expanded_bomb": _expanded,
    "tensor_aliased_bomb": lambda: _aliased(40_000),
}  # fmt: skip


# --- malformed: the pickle itself ----------------------------------------------------------------


def _self_containing() -> bytes:
    """A state dict that is its own entry ``state_dict``."""
    return torch_zip(b"\x80\x02}q\x00" + text("state_dict") + b"h\x00s.")


def _laughs(levels: int) -> bytes:
    """A list that doubles with each level."""
    return b"]q\x00" + b"".join(
        b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(levels)
    )


def _shared_dict(keys: int, size: int) -> bytes:
    """A dict whose entries are all the same large dict, in which there is one tensor."""
    inner = mapping((text(f"{i:x}"), b"K\x00") for i in range(size))
    tensor = views(base())[BIG].pickled()
    inner = b"}q\x00(" + inner[2:-1] + text("t") + tensor + b"u"
    return torch_zip(
        b"\x80\x02" + inner + b"0" + mapping((text(f"{i:x}"), b"h\x00") for i in range(keys)) + b"."
    )


def _shared_numbers(keys: int, size: int) -> bytes:
    """A state dict beside entries that are all the same large dict without a tensor."""
    inner = b"}q\x00(" + mapping((text(f"{i:x}"), b"K\x00") for i in range(size))[2:-1] + b"u"
    return torch_zip(
        b"\x80\x02"
        + inner
        + b"0"
        + mapping(
            [(text(f"{i:x}"), b"h\x00") for i in range(keys)]
            + [(text("model"), mapping((text(n), v.pickled()) for n, v in views(base()).items()))]
        )
        + b"."
    )


def _many_prefixes(count: int) -> bytes:
    """Autoencoders without end, all views of one record."""
    view = views(base())[BIG]
    return torch_zip(pickled_state({f"p{i}.encoder.conv_in.weight": view for i in range(count)}))


_PICKLE: dict[str, Callable[[], bytes]] = {
    "pickle_self_containing": _self_containing,
    "pickle_cut": lambda: torch_zip(pickled_state(views(base()))[:-500]),
    "pickle_no_stop": lambda: torch_zip(pickled_state(views(base()))[:-1]),
    "pickle_stack_underflow": lambda: torch_zip(b"\x80\x02RR."),
    "pickle_unknown_opcode": lambda: torch_zip(b"\x80\x02\xff."),
    "pickle_protocol_9": lambda: torch_zip(b"\x80\x09N."),
    "pickle_memo_missing": lambda: torch_zip(b"\x80\x02h\x05."),
    "pickle_memo_index_bomb": lambda: torch_zip(b"\x80\x02Nr\xfe\xff\xff\xff."),
    "pickle_memo_text_index": lambda: torch_zip(b"\x80\x02Np99999999999999999999\n."),
    "pickle_frame_huge": lambda: torch_zip(b"\x80\x04\x95" + b"\xff" * 8 + b"N."),
    "pickle_text_huge": lambda: torch_zip(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "pickle_bytes8_huge": lambda: torch_zip(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc."),
    "pickle_long4_negative": lambda: torch_zip(b"\x80\x02\x8b\xff\xff\xff\xff."),
    "pickle_long_digits": lambda: torch_zip(b"\x80\x02L" + b"9" * 100_000 + b"L\n."),
    "pickle_marks": lambda: torch_zip(b"\x80\x02" + b"(" * 500_000 + b"N."),
    "pickle_nested_lists": lambda: torch_zip(b"\x80\x02" + b"](" * 200_000 + b"e" * 200_000 + b"."),
    "pickle_nested_tuples": lambda: torch_zip(b"\x80\x02N" + b"\x85" * 500_000 + b"."),
    "pickle_tuple_key": lambda: torch_zip(
        b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns."
    ),
    "pickle_unhashable_key": lambda: torch_zip(b"\x80\x02}]Ns."),
    "pickle_dup_bomb": lambda: torch_zip(b"\x80\x02" + b"]2a" * 300_000 + b"."),
    "pickle_not_utf8": lambda: torch_zip(b"\x80\x02X\x02\x00\x00\x00\xff\xfe."),
    "pickle_doubling_list": lambda: torch_zip(
        b"\x80\x02" + _laughs(60) + b"."
    ),
    "pickle_list": lambda: torch_zip(b"\x80\x02]."),
    "pickle_number": lambda: torch_zip(b"\x80\x02K\x05."),
    "pickle_none": lambda: torch_zip(b"\x80\x02N."),
    "pickle_empty_state": lambda: torch_zip(b"\x80\x02" + mapping([(text("state_dict"), b"}")]) + b"."),
    "pickle_out_of_band": lambda: torch_zip(b"\x80\x05\x97."),
    "pickle_persistent_text": lambda: torch_zip(b"\x80\x02Pabc\n."),
    "pickle_zeros": lambda: torch_zip(bytes(4096)),
    "pickle_many_globals": lambda: torch_zip(
        b"\x80\x02(" + b"".join(f"cm{i}\nC\n".encode() for i in range(20_000)) + b"t."
    ),
    "pickle_shared_dict": lambda: _shared_dict(3000, 3000),
    "pickle_many_prefixes": lambda: _many_prefixes(5000),
    "pickle_dots": lambda: torch_zip(
        pickled_state({**views(base()), "encoder" + "." * 60_000: views(base())[BIG]})
    ),
    "pickle_same_name_twice": lambda: torch_zip(
        b"\x80\x02"
        + mapping(
            [
                (text("decoder"), mapping(
                    (text(n[8:]), v.pickled()) for n, v in views(base()).items()
                    if n.startswith("decoder."))),
                (text("rest"), mapping(
                    (text(n), v.pickled()) for n, v in views(base()).items()
                    if not n.startswith("decoder."))),
                (text("decoder.conv_in"), mapping(
                    [(text("bias"), views(base())["decoder.conv_out.bias"].pickled())])),
            ]
        )
        + b"."
    ),
}  # fmt: skip


# --- malformed: legacy ---------------------------------------------------------------------------


def _legacy_doubling() -> bytes:
    return legacy(keys=[_laughs(60)])


_LEGACY: dict[str, Callable[[], bytes]] = {
    "legacy_missing_keys": lambda: legacy(keys=[]),
    "legacy_missing_one_key": lambda: legacy(keys=[text(v.key) for v in views(base()).values()][:-1]),
    "legacy_twice_one_key": lambda: legacy(keys=[text("0"), text("0")]),
    "legacy_unknown_key": lambda: legacy(keys=[text("zzz")]),
    "legacy_keys_not_text": lambda: legacy(keys=[number(0)]),
    "legacy_keys_nested": _legacy_doubling,
    "legacy_count_short": lambda: legacy(counts={0: 3}),
    "legacy_count_negative": lambda: legacy(counts={0: -1}),
    "legacy_count_huge": lambda: legacy(counts={0: 1 << 62}),
    "legacy_cut_half": _cut(legacy, 0.5),
    "legacy_cut_pickle": _cut(legacy, 0.01),
    "legacy_cut_last_byte": lambda: legacy()[:-1],
    "legacy_bad_magic": lambda: b"\x80\x02" + number(5) + b"." + legacy()[14:],
    "legacy_magic_only": lambda: b"\x80\x02" + number(MAGIC) + b".",
    "legacy_bad_protocol": lambda: legacy().replace(b"\x80\x02J\xe9\x03", b"\x80\x02J\xea\x03", 1),
    "legacy_proto_only": lambda: b"\x80\x02",
}  # fmt: skip


# --- malformed: safetensors ----------------------------------------------------------------------


@cache
def safetensors_bytes() -> bytes:
    """The base weights as the library writes them."""
    return save(base(), {"format": "pt"})


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _safetensors(text_: bytes, body: bytes, size: int | None = None) -> bytes:
    return (len(text_) if size is None else size).to_bytes(8, "little") + text_ + body


def _with_header(
    change: Callable[[dict[str, Any]], object], tail: bytes = b""
) -> Callable[[], bytes]:
    def make() -> bytes:
        header, body = _header(safetensors_bytes())
        change(header)
        return _safetensors(json.dumps(header).encode(), body + tail)

    return make


def _length_like_json() -> bytes:
    """A header that is as long as a brace followed by zeros says."""
    header, body = _header(safetensors_bytes())
    text_ = json.dumps(header).encode()
    return _safetensors(text_ + b" " * ((0x7B - len(text_)) % 256), body)


def _entry(**changes: Any) -> Callable[[], bytes]:
    return _with_header(lambda header: header[BIG].update(changes))


def _raw_header(change: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    def make() -> bytes:
        data = safetensors_bytes()
        size = int.from_bytes(data[:8], "little")
        return _safetensors(change(data[8 : 8 + size]), data[8 + size :])

    return make


def _shifted(by: int) -> Callable[[], bytes]:
    def change(header: dict[str, Any]) -> None:
        header[BIG]["data_offsets"] = [n + by for n in header[BIG]["data_offsets"]]

    return _with_header(change)


def _duplicate_key(text_: bytes) -> bytes:
    entry = text_[text_.index(b'"' + BIG.encode()) :]
    entry = entry[: entry.index(b"}") + 1]
    return b"{" + entry + b"," + text_.strip()[1:]


def _hole(header: dict[str, Any]) -> None:
    end = max(entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__")
    header[BIG]["data_offsets"] = [end, end + 2 * _BIG_NUMEL]


_SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "st_bad_json": _raw_header(lambda t: t[:-20]),
    "st_json_list": _raw_header(lambda t: b"[" + t + b"]"),
    "st_json_nested": _raw_header(lambda t: b'{"a":' * 50_000),
    "st_json_many_lists": lambda: _safetensors(b'{"a":[' + b"[]," * 2_500_000 + b"0]}", b""),
    "st_json_infinity": _raw_header(lambda t: t.replace(b'"shape":[', b'"shape":[Infinity,', 1)),
    "st_json_number_digits": _raw_header(
        lambda t: t.replace(b'"shape":[', b'"shape":[' + b"9" * 10_000 + b",", 1)
    ),
    "st_not_utf8": _raw_header(lambda t: t.replace(b"decoder", b"dec\xff\xfer", 1)),
    "st_utf16": _raw_header(lambda t: t.decode().encode("utf-16")),
    "st_bom": _raw_header(lambda t: b"\xef\xbb\xbf" + t),
    "st_duplicate_key": _raw_header(_duplicate_key),
    "st_duplicate_field": _raw_header(lambda t: t.replace(b'"dtype":', b'"dtype":"F32","dtype":', 1)),
    "st_overlap": _shifted(-2),
    "st_hole": _with_header(_hole, bytes(2 * _BIG_NUMEL)),
    "st_tail": lambda: safetensors_bytes() + bytes(8),
    "st_short_body": lambda: safetensors_bytes()[:-8],
    "st_cut_half": _cut(safetensors_bytes, 0.5),
    "st_cut_header": lambda: safetensors_bytes()[:500],
    "st_only_length": lambda: safetensors_bytes()[:8],
    "st_header_longer_than_file": lambda: _safetensors(b"{}", b"", 1 << 20),
    "st_header_huge": lambda: _safetensors(b"{}", b"", (1 << 63) - 1),
    "st_header_all_ones": lambda: _safetensors(b"{}", b"", (1 << 64) - 1),
    "st_header_zero": lambda: bytes(8) + b"{}",
    "st_no_tensors": lambda: _safetensors(b"{}      ", b""),
    "st_wrong_dtype": _entry(dtype="F32"),
    "st_unknown_dtype": _entry(dtype="F13"),
    "st_dtype_number": _entry(dtype=7),
    "st_dtype_null": _entry(dtype=None),
    "st_shape_negative": _entry(shape=[-32, 32, 3, 3]),
    "st_shape_float": _entry(shape=[32.0, 32, 3, 3]),
    "st_shape_text": _entry(shape="32"),
    "st_shape_bool": _entry(shape=[True, 32, 3, 3]),
    "st_shape_huge": _entry(shape=[1 << 62, 1 << 62, 3, 3]),
    "st_shape_disagrees": _entry(shape=[32, 32, 3, 2]),
    "st_shape_1000_dims": _entry(shape=[1] * 1000),
    "st_offsets_swapped": _with_header(lambda h: h[BIG]["data_offsets"].reverse()),
    "st_offsets_three": _with_header(lambda h: h[BIG]["data_offsets"].append(0)),
    "st_offsets_negative": _entry(data_offsets=[-18432, 0]),
    "st_offsets_outside": _shifted(1 << 40),
    "st_offsets_float": _entry(data_offsets=[0.0, 18432.0]),
    "st_field_missing": _with_header(lambda h: h[BIG].pop("shape")),
    "st_entry_is_list": _with_header(lambda h: h.update({BIG: [1, 2]})),
    "st_metadata_number": _with_header(lambda h: h.update({"__metadata__": {"a": 1}})),
    "st_metadata_list": _with_header(lambda h: h.update({"__metadata__": []})),
    "st_name_controls": _with_header(lambda h: h.update({"enc\x1b[31m\n.x": h.pop(BIG)})),
    "st_name_surrogate": _with_header(lambda h: h.update({"\ud800.x": h.pop(BIG)})),
}  # fmt: skip


# --- malformed: models ---------------------------------------------------------------------------


def _model(change: Callable[[State], object], *, source: Callable[[], State] = base) -> Write:
    """A well-formed file of a model that is not right."""

    def make() -> bytes:
        state = dict(source())
        change(state)
        return save(state)

    return _file("model.safetensors", make)


def _filled(value: float, name: str = BIG) -> Callable[[State], None]:
    def change(state: State) -> None:
        state[name] = state[name].clone()
        state[name].view(-1)[-1] = value

    return change


def _conflict(state: State) -> None:
    other = {f"first_stage_model.{n}": t.clone() for n, t in state.items()}
    other["first_stage_model." + BIG] += 1
    state.update(other)


_ANY = frozenset({0, 3})
_MODEL: dict[str, tuple[Write, frozenset[int]]] = {
    "model_nan": (_model(_filled(float("nan"))), _ANY),
    "model_inf": (_model(_filled(float("inf"))), _ANY),
    "model_inf_float32": (_model(_filled(float("-inf")), source=wide), _ANY),
    "model_int64": (_model(lambda s: s.update({BIG: s[BIG].long()})), _ANY),
    "model_all_int64": (_model(lambda s: s.update({n: t.long() for n, t in s.items()})), _ANY),
    "model_bool": (_model(lambda s: s.update({BIG: s[BIG].bool()})), _ANY),
    "model_complex": (_model(lambda s: s.update({BIG: s[BIG].to(torch.complex64)})), _ANY),
    "model_missing_key": (_model(lambda s: s.pop(BIG)), BAD_INPUT),
    "model_missing_encoder": (
        _model(lambda s: [s.pop(n) for n in list(s) if n.startswith("encoder.")]), BAD_INPUT),
    "model_missing_quant": (_model(lambda s: s.pop("quant_conv.weight")), BAD_INPUT),
    "model_unknown_decoder_key": (
        _model(lambda s: s.update({"decoder.mid.block_9.conv1.weight": s[BIG].clone()})), BAD_INPUT),
    "model_unknown_key": (_model(lambda s: s.update({"zzz.weight": s[BIG].clone()})), BAD_INPUT),
    "model_wrong_shape": (_model(lambda s: s.update({BIG: s[BIG][:16].clone()})), BAD_INPUT),
    "model_wrong_rank": (_model(lambda s: s.update({BIG: s[BIG].flatten()})), BAD_INPUT),
    "model_scalar_weight": (_model(lambda s: s.update({BIG: torch.tensor(1.0)})), BAD_INPUT),
    "model_empty_tensor": (_model(lambda s: s.update({BIG: torch.zeros(0)})), BAD_INPUT),
    "model_conv_in_scalar": (
        _model(lambda s: s.update({"encoder.conv_in.weight": torch.tensor(1.0)})), BAD_INPUT),
    "model_both_layouts": (
        _model(lambda s: s.update({"decoder.mid_block.resnets.0.conv1.weight": s[BIG].clone()})),
        BAD_INPUT),
    "model_conflicting_prefixes": (_model(_conflict), BAD_INPUT),
    "model_level_999": (
        _model(lambda s: s.update({"encoder.down.999.block.0.conv1.weight": s[BIG].clone()})),
        BAD_INPUT),
    "model_level_superscript": (
        _model(lambda s: s.update({"encoder.down.\u00b2.block.0.conv1.weight": s[BIG].clone()})),
        BAD_INPUT),
    "model_only_unet": (
        _model(lambda s: [s.update({"model.diffusion_model." + n: s.pop(n)}) for n in list(s)]),
        BAD_INPUT),
    "model_scale_factor_inf": (
        _model(lambda s: s.update(scale_factor=torch.tensor(float("inf")))), BAD_INPUT),
    "model_scale_factor_nan": (
        _model(lambda s: s.update(scale_factor=torch.tensor(float("nan")))), BAD_INPUT),
    "model_edm_std_nan": (
        _model(lambda s: s.update(edm_mean=torch.zeros(4), edm_std=torch.full((4,), float("nan")))),
        BAD_INPUT),
    "model_ema_updates_nan": (
        _model(lambda s: s.update({
            "model_ema.num_updates": torch.tensor(float("nan")),
            "model_ema.decay": torch.tensor(0.9),
            "model_ema.decoderconv_inbias": s[FIRST].clone(),
        })), frozenset({0, 3})),
}  # fmt: skip


# --- malformed: other files, folders, configs ----------------------------------------------------

_LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
_OTHER: dict[str, bytes] = {
    "other_empty": b"",
    "other_one_byte": b"P",
    "other_two_bytes": b"\x80\x02",
    "other_lfs_pointer": _LFS,
    "other_html": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n",
    "other_html_upper": b"\n\n<HTML><BODY>Sign in</BODY></HTML>",
    "other_json_error": b'{"error":"Repository not found"}',
    "other_zeros": bytes(10_000),
    "other_ones": b"\xff" * 10_000,
    "other_text": b"hello\x1b[31m world\r\n" * 50,
    "other_gzip": b"\x1f\x8b\x08" + bytes(600),
    "other_zip_magic": b"PK\x03\x04" + b"\xff" * 600,
    "other_end_only": b"PK\x05\x06" + bytes(18),
    "other_png": b"\x89PNG\r\n\x1a\n" + bytes(600),
    "other_gguf": b"GGUF\x03\x00\x00\x00" + bytes(600),
    "other_pickle_magic": b"\x80\x04\x95" + bytes(600),
}


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.ckpt")
    return folder / "model.ckpt"


def _loop(folder: Path) -> Path:
    (folder / "model.ckpt").symlink_to("model.ckpt")
    return folder / "model.ckpt"


def _diffusers(
    folder: Path,
    *,
    config: object = None,
    weights: bytes | None = None,
    files: Mapping[str, bytes] | None = None,
    name: str = "diffusion_pytorch_model.safetensors",
) -> Path:
    """The fixture's folder, with another config or other files."""
    good = FIXTURES / "tiny-diffusers"
    root = folder / "model"
    root.mkdir()
    source = (good / "diffusion_pytorch_model.safetensors").read_bytes()
    if name:
        (root / name).write_bytes(source if weights is None else weights)
    text_ = (good / "config.json").read_bytes()
    if isinstance(config, bytes):
        text_ = config
    elif isinstance(config, dict):
        text_ = json.dumps({**json.loads(text_), **config}).encode()
    (root / "config.json").write_bytes(text_)
    for other, data in (files or {}).items():
        (root / other).parent.mkdir(parents=True, exist_ok=True)
        (root / other).write_bytes(data)
    return root


INDEX = "diffusion_pytorch_model.safetensors.index.json"


def _shards(names: Sequence[str] = ("a.safetensors", "b.safetensors")) -> dict[str, bytes]:
    """The fixture's weights in two shards, with their index."""
    state = load_file(FIXTURES / "tiny-diffusers/diffusion_pytorch_model.safetensors")
    half = len(state) // 2
    parts = [dict(list(state.items())[:half]), dict(list(state.items())[half:])]
    weight_map = {n: name for part, name in zip(parts, names, strict=True) for n in part}
    files = {name: save(part) for part, name in zip(parts, names, strict=True)}
    return {**files, INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


def _index(change: Callable[[dict[str, str]], object]) -> Write:
    def write(folder: Path) -> Path:
        files = _shards()
        document = json.loads(files[INDEX])
        change(document["weight_map"])
        files[INDEX] = json.dumps(document).encode()
        (folder / "outside.safetensors").write_bytes(files["b.safetensors"])
        return _diffusers(folder, files=files, name="")

    return write


def _to(shard: object) -> Callable[[dict[str, Any]], None]:
    return lambda weights: weights.update({next(iter(weights)): shard})


def _shard_link_only(folder: Path) -> Path:
    """A shard that is listed but is a dangling link."""
    files = _shards()
    del files["b.safetensors"]
    root = _diffusers(folder, files=files, name="")
    (root / "b.safetensors").symlink_to("nothing")
    return root


_FOLDER: dict[str, Write] = {
    "folder_empty": lambda folder: folder,
    "folder_no_weights": partial(_diffusers, name=""),
    "folder_weights_are_html": partial(_diffusers, weights=_OTHER["other_html"]),
    "folder_weights_are_lfs": partial(_diffusers, weights=_LFS),
    "folder_weights_cut": lambda folder: _diffusers(folder, weights=safetensors_bytes()[:-5]),
    "folder_two_variants": lambda folder: _diffusers(
        folder, name="diffusion_pytorch_model.fp16.safetensors",
        files={"diffusion_pytorch_model.bf16.safetensors": safetensors_bytes()}),
    "index_traversal": _index(_to("../outside.safetensors")),
    "index_absolute": _index(_to("/etc/passwd")),
    "index_nul": _index(_to("a\x00.safetensors")),
    "index_missing_shard": _index(_to("c.safetensors")),
    "index_itself": _index(_to(INDEX)),
    "index_number": _index(_to(5)),
    "index_list": _index(_to([])),
    "index_null": _index(_to(None)),
    "index_empty": _index(lambda weights: weights.clear()),
    "index_names_absent_tensor": _index(lambda weights: weights.update(x="a.safetensors")),
    "index_not_json": partial(_diffusers, files={INDEX: b"{"}, name=""),
    "index_list_document": partial(_diffusers, files={INDEX: b"[]"}, name=""),
    "index_no_map": partial(_diffusers, files={INDEX: b"{}"}, name=""),
    "index_map_is_list": partial(_diffusers, files={INDEX: b'{"weight_map": []}'}, name=""),
    "index_not_utf8": partial(_diffusers, files={INDEX: b'{"\xff": 1}'}, name=""),
    "index_deep": partial(_diffusers, files={INDEX: b"[" * 200_000}, name=""),
    "index_two_shards_one_tensor": lambda folder: _diffusers(
        folder, name="",
        files={**_shards(), "a.safetensors": (
            FIXTURES / "tiny-diffusers/diffusion_pytorch_model.safetensors").read_bytes()}),
    "index_shard_dangling": _shard_link_only,
    "config_not_json": partial(_diffusers, config=b"\x00\x01{"),
    "config_not_utf8": partial(_diffusers, config=b'{"a": "\xff"}'),
    "config_list": partial(_diffusers, config=b"[]"),
    "config_text": partial(_diffusers, config=b'"hello"'),
    "config_deep": partial(_diffusers, config=b"[" * 100_000),
    "config_too_long": partial(_diffusers, config=b'{"a": "' + b"x" * (2 << 20) + b'"}'),
    "config_yaml_bomb": partial(
        _diffusers,
        config=b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 200)),
    ),
    "config_yaml_python": partial(
        _diffusers, config=b"a: !!python/object/apply:os.system ['" + COMMAND.encode() + b"']\n"),
    "config_other_class": partial(_diffusers, config={"_class_name": "VQModel"}),
    "config_channels_lie": partial(_diffusers, config={"block_out_channels": [64, 64]}),
    "config_latent_lies": partial(_diffusers, config={"latent_channels": 16}),
    "config_layers_lie": partial(_diffusers, config={"layers_per_block": 7}),
    "config_quant_lies": partial(_diffusers, config={"use_quant_conv": False}),
    "config_channels_text": partial(_diffusers, config={"block_out_channels": "many"}),
    "config_channels_number": partial(_diffusers, config={"block_out_channels": 32}),
    "config_channels_nested": partial(_diffusers, config={"block_out_channels": [[32], {}]}),
    "config_scaling_text": partial(_diffusers, config={"scaling_factor": "big\x1b[31m"}),
    "config_scaling_list": partial(_diffusers, config={"scaling_factor": [1]}),
    "config_scaling_infinite": partial(_diffusers, config={"scaling_factor": float("inf")}),
    "config_scaling_nan": partial(_diffusers, config={"scaling_factor": float("nan")}),
    "config_groups_zero": partial(_diffusers, config={"norm_num_groups": 0}),
    "config_groups_odd": partial(_diffusers, config={"norm_num_groups": 7}),
    "config_blocks_unknown": partial(_diffusers, config={"down_block_types": ["A", "B"]}),
    "config_blocks_number": partial(_diffusers, config={"down_block_types": 5}),
}  # fmt: skip

# What a hostile config must not do is crash; these are read by other rooms.
CONFIGS_BY_OTHERS: dict[str, Write] = {
    "config_scaling_huge_integer": partial(_diffusers, config={"scaling_factor": 10**400}),
    "config_channels_infinite": partial(_diffusers, config={"block_out_channels": [float("inf")]}),
    "config_yaml_bool": partial(_diffusers, config=b"a: !!bool maybe\n"),
    "config_yaml_timestamp": partial(_diffusers, config=b"a: !!timestamp soon\n"),
    "config_yaml_int": partial(_diffusers, config=b'a: !!int ""\n'),
}


def malformed_cases() -> list[Case]:
    """Files whose bytes contradict themselves, or that hold no usable autoencoder."""
    cases = []
    for table, name in (
        (_ZIP, "model.ckpt"),
        (_TENSOR, "model.ckpt"),
        (_PICKLE, "model.ckpt"),
        (_LEGACY, "model.pt"),
        (_SAFETENSORS, "model.safetensors"),
    ):
        cases += [Case(key, _file(name, make)) for key, make in table.items()]
    cases += [Case(key, make, inspect=codes) for key, (make, codes) in _MODEL.items()]
    cases += [Case(key, _file("model.ckpt", lambda d=data: d)) for key, data in _OTHER.items()]
    cases += [Case(key, make) for key, make in _FOLDER.items()]
    cases += [
        Case("other_missing", lambda folder: folder / "nothing.ckpt"),
        Case("other_long_name", lambda folder: folder / ("x" * 300)),
        Case("other_below_a_file", _file("f", lambda: b"x")),
        Case("other_fifo", _fifo),
        Case("other_link_loop", _loop),
        Case("other_dev_zero", lambda folder: Path("/dev/zero")),
        Case("other_dev_null", lambda folder: Path("/dev/null")),
    ]
    return [_soften(case) for case in cases]


# Whole autoencoders all the same: nothing that is wrong touches what is read.
_TOLERATED: dict[str, dict[str, frozenset[int]]] = {
    "zip_byteorder_lies": {"inspect": _ANY},
    "model_scale_factor_inf": {"convert_to_file": frozenset({0})},
    "model_scale_factor_nan": {"convert_to_file": frozenset({0})},
    "model_edm_std_nan": {"convert_to_file": frozenset({0})},
    "model_ema_updates_nan": {"convert": frozenset({0})},
    "model_only_unet": {"prune": frozenset({0})},  # a diffusion model may come alone
}


def _soften(case: Case) -> Case:
    return replace(case, **_TOLERATED.get(case.name, {}))


# --- good ----------------------------------------------------------------------------------------


def saved(value: object, **options: Any) -> Callable[[], bytes]:
    """What ``torch.save`` writes."""

    def make() -> bytes:
        buffer = io.BytesIO()
        torch.save(value() if callable(value) else value, buffer, **options)
        return buffer.getvalue()

    return make


class _Plain:
    """Stands for a class of the author's own."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


def _foreign(module: str, name: str, kind: type = _Plain) -> type:
    return type(name, (kind,), {"__module__": module})


def _save_with_class(
    module: str, name: str, build: Callable[[type], object], kind: type = _Plain
) -> bytes:
    """Save an object of a class that is not installed."""
    parts = module.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    before = {n: sys.modules.get(n) for n in names}
    made = _foreign(module, name, kind)
    try:
        for n in names:
            if before[n] is None:
                sys.modules[n] = ModuleType(n)
        previous = vars(sys.modules[module]).get(name)
        setattr(sys.modules[module], name, made)
        return saved({"state_dict": base(), "beside": build(made)})()
    finally:
        if previous is None:
            delattr(sys.modules[module], name)
        for n, old in before.items():
            if old is None:
                del sys.modules[n]


def _lightning() -> bytes:
    with fake_lightning() as callback:
        return saved(
            {
                "state_dict": base(),
                "epoch": 1,
                "callbacks": {callback: {"best_model_score": torch.tensor(0.5)}},
                "hyper_parameters": OmegaConf.create({"ddconfig": {"ch": 32, "ch_mult": [1, 1]}}),
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(7)}}}],
            }
        )()


def _facts() -> dict[str, Any]:
    return {
        "state_dict": collections.OrderedDict(base()),
        "score": np.float64(0.25),
        "array": np.arange(5, dtype=np.float32),
        "when": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "where": pathlib.PurePosixPath("/data/run"),
        "args": argparse.Namespace(lr=1e-4, layers=[1, 2]),
        "space": SimpleNamespace(a=1),
        "counts": collections.Counter("aab"),
        "nested": {"deep": [{"x": (1, 2, None, 1j)}], 5: {1, 2}},
        "rng": torch.get_rng_state(),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
    }


def _noncontiguous() -> State:
    state = dict(base())
    state[BIG] = base()[BIG].transpose(0, 1).contiguous().transpose(0, 1)
    state["encoder.conv_in.weight"] = base()["encoder.conv_in.weight"].contiguous(
        memory_format=torch.channels_last
    )
    state[FIRST] = torch.stack([base()[FIRST]] * 3, 1)[:, 1]
    return state


def _one_storage() -> State:
    """All tensors as views of one storage, in other places than their order."""
    flat = torch.cat(
        [t.flatten() for t in reversed(list(base().values()))] + [torch.ones(3).half()]
    )
    state, end = {}, flat.numel() - 3
    for name, tensor in base().items():
        end -= tensor.numel()
        state[name] = flat[end : end + tensor.numel()].view(tensor.shape)
    return state


def _big_endian() -> bytes:
    members = torch_members(base())
    _at(members, "byteorder").data = b"big"
    for member in members:
        if b"/data/" in member.raw_name:
            member.data = np.frombuffer(member.data, "<u2").byteswap().tobytes()
    return zipped(members)


def _deflated() -> bytes:
    members = torch_members(base())
    for member in members:
        member.method = 8
    return zipped(members)


def _through_zipfile() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        target.comment = b"a comment"
        for member in torch_members(base(), folder="my model/"):
            target.writestr(member.raw_name.decode(), member.data)
    return buffer.getvalue()


def _bundle(method: int) -> bytes:
    config = b"model:\n  params:\n    embed_dim: 4\n    ddconfig: {ch: 32, ch_mult: [1, 1], z_channels: 4}\n"
    return zipped(
        [Member("config.yaml", config), Member("last.ckpt", torch_zip(), method=method),
         Member("notes/", b"")]
    )  # fmt: skip


def _prefixed(prefix: str, source: Callable[[], State] = base) -> State:
    return {prefix + name: tensor for name, tensor in source().items()}


def _full_checkpoint() -> bytes:
    state = {
        "model.diffusion_model.out.2.weight": torch.zeros(4, 8, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77),
        **_prefixed("first_stage_model."),
        "betas": torch.linspace(0, 1, 10, dtype=torch.float64),
        "scale_factor": torch.tensor(0.18215),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(5),
    }
    return saved({"state_dict": state, "global_step": 7})()


def _twice() -> bytes:
    return saved({**_prefixed("first_stage_model."), **_prefixed("vae.")})()


class _Wrapper(torch.nn.Module):
    """A module around parameters whose names are all but dots."""


def _parameters() -> dict[str, Any]:
    return {name: torch.nn.Parameter(tensor.clone()) for name, tensor in base().items()}


def _good(name: str, make: Callable[[], bytes], *, file: str = "model.ckpt", **fields: Any) -> Case:
    fields.setdefault("expected", base)
    return Case(
        f"ok_{name}", _file(file, make), convert=frozenset({0}), inspect=frozenset({0}), **fields
    )


def _sharded_bin(folder: Path) -> Path:
    root = _diffusers(folder, name="")
    state = load_file(FIXTURES / "tiny-diffusers/diffusion_pytorch_model.safetensors")
    (root / "diffusion_pytorch_model.bin").write_bytes(saved(state)())
    return root


def _pipeline(folder: Path) -> Path:
    _diffusers(folder)
    (folder / "model").rename(folder / "vae")
    (folder / "unet").mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


def _linked(folder: Path) -> Path:
    root = _diffusers(folder)
    (root / "diffusion_pytorch_model.safetensors").rename(folder / "blob")
    (root / "diffusion_pytorch_model.safetensors").symlink_to(folder / "blob")
    (root / "loop").symlink_to("loop")
    return root


def good_cases() -> list[Case]:
    """Files that must convert, with every bit in its place."""
    protocols = [
        _good(
            f"protocol_{n}", saved({"state_dict": base(), "x": {"y": [1, "z"]}}, pickle_protocol=n)
        )
        for n in range(2, 6)
    ]
    trees: dict[str, Write] = {
        "folder": _diffusers,
        "folder_sharded": lambda folder: _diffusers(folder, files=_shards(), name=""),
        "folder_bin": _sharded_bin,
        "folder_pipeline": _pipeline,
        "folder_links": _linked,
        "folder_config_extra_fields": partial(
            _diffusers, config={"_name_or_path": "x", "new": [1]}
        ),
    }
    ok = frozenset({0})
    return [
        *protocols,
        *(
            Case(f"ok_{key}", write, convert=ok, inspect=ok, expected=base)
            for key, write in trees.items()
        ),
        _good("hand_made", torch_zip),
        _good("protocol_0", lambda: torch_zip(_protocol_0())),
        _good("protocol_1", lambda: torch_zip(_protocol_0(1))),
        _good("bare_state", saved(base)),
        _good("float32", saved(wide), expected=wide),
        _good("ordered", saved(lambda: collections.OrderedDict(base()))),
        _good("lightning", _lightning),
        _good("facts", saved(_facts)),
        _good("parameters", saved(_parameters)),
        _good("noncontiguous", saved(_noncontiguous)),
        _good("one_storage", saved(_one_storage)),
        _good("big_endian", _big_endian),
        _good("zip_deflated", _deflated),
        _good("zip_through_zipfile", _through_zipfile),
        _good("zip64", lambda: torch_zip(zip64=True)),
        _good("zip_comment", lambda: torch_zip(comment=b"PK\x05\x06 is a comment")),
        _good("zip_many_members", _many_members),
        _good("zip_other_folder", lambda: zipped(torch_members(base(), folder="last/"))),
        _good("zip_no_folder", lambda: zipped(torch_members(base(), folder=""))),
        _good("zip_no_byteorder", lambda: edited(lambda m: m.pop(1))),
        _good("bundle_stored", lambda: _bundle(0), file="model.zip"),
        _good("bundle_deflated", lambda: _bundle(8), file="model.zip"),
        _good("legacy", saved(base, _use_new_zipfile_serialization=False), file="model.pt"),
        _good("legacy_hand_made", legacy, file="model.pt"),
        _good("legacy_one_storage", saved(_one_storage, _use_new_zipfile_serialization=False)),
        _good("safetensors", safetensors_bytes, file="model.safetensors"),
        _good("safetensors_as_ckpt", safetensors_bytes),
        _good("ckpt_as_safetensors", torch_zip, file="model.safetensors"),
        _good("safetensors_no_metadata", lambda: save(base())),
        _good("safetensors_padding", _raw_header(lambda t: t + b"  \n\t ")),
        _good(
            "safetensors_null_metadata",
            _with_header(lambda h: h.update({"__metadata__": None})),
            file="model.safetensors",
        ),
        _good("safetensors_later_field", _entry(stride=[1]), file="model.safetensors"),
        _good("safetensors_length_like_json", _length_like_json, file="model.safetensors"),
        _good("full_checkpoint", _full_checkpoint),
        _good("prefix", saved(lambda: _prefixed("first_stage_model."))),
        _good("same_twice", _twice),
        _good("nested_state", saved(lambda: {"module": {"state_dict": base()}})),
        _good("shared_siblings", lambda: _shared_numbers(1500, 1500)),
        _good("doubling_list", lambda: _beside(_laughs(60))),
        _good(
            "main_class",
            lambda: _save_with_class("__main__", "TrainingConfig", lambda c: c(lr=1, x=[1])),
        ),
        _good(
            "attribute_dict",
            lambda: _save_with_class(
                "pytorch_lightning.utilities.parsing", "AttributeDict", lambda c: c(a=1), dict
            ),
        ),
        _good(
            "checkpoint_object",
            lambda: _save_with_class(
                "lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint",
                lambda c: {"callback": c(monitor="x"), "kind": c},
            ),
        ),
        _good(
            "list_subclass",
            lambda: _save_with_class("ldm.util", "Names", lambda c: c(["a", "b"]), list),
        ),
        _good(
            "unsafe_word_as_text",
            saved({"state_dict": base(), "notes": "os.system __import__('os') eval\n"}),
        ),
        _good("names_with_controls", saved({"state_dict": base(), "a\x1b[31m\n": {"b\u2028": 1}})),
    ]  # fmt: skip


def _protocol_0(protocol: int = 0) -> bytes:
    """Protocols that ``torch.save`` does not write: made by Python's pickler from stand-ins."""

    class Storage:
        def __init__(self, key: str, kind: type, numel: int) -> None:
            self.pid = ("storage", kind, key, "cpu", numel)

    class Rebuilt:
        def __init__(self, key: str, tensor: Tensor) -> None:
            self.key, self.tensor = key, tensor

        def __reduce__(self) -> tuple[Any, ...]:
            storage = Storage(self.key, torch.HalfStorage, self.tensor.numel())
            shape = tuple(self.tensor.shape)
            return (
                torch._utils._rebuild_tensor_v2,
                (storage, 0, shape, self.tensor.stride(), False, collections.OrderedDict()),
            )

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, value: object) -> object:
            return value.pid if isinstance(value, Storage) else None

        def save_pers(self, pid: object) -> None:
            # Protocol 0 can name text only; torch's tuples need the binary opcode.
            self.save(pid, save_persistent_id=False)
            self.write(pickle.BINPERSID)

    buffer = io.BytesIO()
    state = {name: Rebuilt(str(i), tensor) for i, (name, tensor) in enumerate(base().items())}
    Pickler(buffer, protocol).dump({"state_dict": state, "epoch": 3})
    return buffer.getvalue()
