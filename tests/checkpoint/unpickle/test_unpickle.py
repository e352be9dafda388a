from __future__ import annotations

import argparse
import builtins
import codecs
import collections
import datetime
import decimal
import fractions
import io
import os
import pathlib
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time
import types
import uuid
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from omegaconf import OmegaConf

from tests.support.slow import slow_row
from vaeconv.checkpoint.dtypes import DTYPES, DType
from vaeconv.checkpoint.readers.torch_legacy import open_torch_legacy
from vaeconv.checkpoint.source import FileSource
from vaeconv.checkpoint.unpickle.interpreter import Placeholder, StorageRef, TensorRef, unpickle
from vaeconv.checkpoint.unpickle.policy import GlobalUse, Verdict, judge
from vaeconv.errors import MalformedCheckpointError, UnsafeCheckpointError, VaeconvError

PROTOCOLS = range(6)


def load(data, **options):
    return unpickle(data, where="x.ckpt: data.pkl", **options).root


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return zipfile.ZipFile(buffer).read("archive/data.pkl")


def verdicts(data, **options):
    return {use.name: use.verdict for use in unpickle(data, where="x", **options).globals}


# Plain data ---------------------------------------------------------------------------------

SHARED = ["shared"]
PLAIN = [
    None,
    True,
    False,
    [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**70), 2**2000],
    [0.0, -1.5, 1e300, float("inf")],
    ["", "ascii", "äöü\n\\ \u2028 \U0001f600", "x" * 300, "a" * 70_000, "\ud800"],
    [b"", b"bytes\x00\xff\\\n", b"y" * 300, b"z" * 70_000],
    [bytearray(b"ab\xff"), bytearray()],
    [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1,), [2])],
    [{}, {"a": {"b": [1]}}, {1: 2, None: 3, (1, "x"): 4, 1.5: 5, b"k": 6, False: 7}],
    [set(), {1, 2}, frozenset(), frozenset({"a"})],
    [SHARED, SHARED],
    list(range(3000)),
    {f"k{i}": i for i in range(3000)},
    3 + 4j,
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_data_comes_back(value, protocol):
    data = pickle.dumps(value, protocol)
    for source in (data, bytearray(data), memoryview(data)):
        found = unpickle(source, where="x")
        assert found.root == value
        assert found.end == len(data)
        assert {use.verdict for use in found.globals} <= {Verdict.PLAIN, Verdict.REBUILDER}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_collections_become_plain_containers(protocol):
    def cycle(value):
        return load(pickle.dumps(value, protocol))

    assert cycle(collections.OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}
    assert list(cycle(collections.OrderedDict(b=1, a=2))) == ["b", "a"]
    assert cycle(collections.defaultdict(list, {"x": [1]})) == {"x": [1]}
    assert cycle(collections.defaultdict(None, {"x": [1]})) == {"x": [1]}
    assert cycle(collections.Counter("aab")) == {"a": 2, "b": 1}
    assert cycle(collections.deque([1, 2], 5)) == [1, 2]


def test_shared_and_circular_values_keep_their_identity():
    ring = []
    ring.append(ring)
    found = load(pickle.dumps([ring, SHARED, SHARED]))
    assert found[0][0] is found[0]
    assert found[1] is found[2]


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    ),
    st.sampled_from(PROTOCOLS),
)
@settings(max_examples=150, deadline=None)
def test_any_plain_data_comes_back(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=1e-4),
        types.SimpleNamespace(a=1),
        pathlib.PurePosixPath("/a/b"),
        datetime.datetime(2022, 8, 22, tzinfo=datetime.timezone.utc),
        decimal.Decimal("1.5"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        range(5),
        slice(1, 2),
        type(None),
        Ellipsis,
        int,
        collections.OrderedDict,
    ],
    ids=repr,
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_standard_objects_are_inert_and_not_reported(value, protocol):
    data = pickle.dumps({"value": value, "n": 1}, protocol)
    found = load(data)
    assert found["n"] == 1
    assert isinstance(found["value"], Placeholder)
    assert set(verdicts(data).values()) <= {Verdict.PLAIN, Verdict.REBUILDER}


def test_placeholder_keeps_what_the_object_holds():
    found = load(pickle.dumps(argparse.Namespace(lr=1e-4, steps=[1])))
    assert found.name == "argparse.Namespace"
    assert found.state == {"lr": 1e-4, "steps": [1]}
    assert repr(found) == "<object of argparse.Namespace>"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_real_omegaconf(protocol):
    config = OmegaConf.create({"lr": 1e-4, "ch_mult": [1, 2, 4], "x": "${lr}", "n": None})
    data = pickle.dumps({"hyper_parameters": config, "list": config.ch_mult, "n": 1}, protocol)
    found = load(data)
    assert found["hyper_parameters"].name == "omegaconf.dictconfig.DictConfig"
    assert found["list"].name == "omegaconf.listconfig.ListConfig"
    content = found["hyper_parameters"].state["_content"]
    assert content["lr"].name == "omegaconf.nodes.AnyNode"
    assert content["lr"].state["_val"] == 1e-4
    for name, verdict in verdicts(data).items():
        third_party = name.startswith("omegaconf.")
        assert verdict is Verdict.PLACEHOLDER if third_party else verdict is not Verdict.UNSAFE


@pytest.fixture
def fake_lightning(monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    for name, base in [("ModelCheckpoint", object), ("AttributeDict", dict), ("Items", list)]:
        cls = type(name, (base,), {"__module__": module.__name__})
        setattr(module, name, cls)
    for package in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lightning_callback_as_key_and_object(fake_lightning, protocol):
    checkpoint = fake_lightning.ModelCheckpoint()
    checkpoint.best = torch.float32
    cls = fake_lightning.ModelCheckpoint
    hparams = fake_lightning.AttributeDict(lr=1.0)
    hparams["b"] = 2
    items = fake_lightning.Items([1, 2])
    data = pickle.dumps([{cls: {"best": 1.0}}, cls, checkpoint, hparams, items], protocol)
    keyed, same, instance, hparams, items = load(data)
    (key,) = keyed
    name = "pytorch_lightning.callbacks.model_checkpoint"
    assert key is same and key.name == f"{name}.ModelCheckpoint" and not key.is_object
    assert instance.is_object and instance.state == {"best": DTYPES[1]}
    assert hparams.items == [("lr", 1.0), ("b", 2)]
    assert items.items == [(0, 1), (1, 2)]
    assert verdicts(data)[key.name] is Verdict.PLACEHOLDER


def test_calling_somebodys_function_is_unsafe_but_naming_it_is_not():
    name = "pytorch_lightning.utilities.argparse_utils._gpus_arg_default"
    module, _, function = name.rpartition(".")
    glob = f"c{module}\n{function}\n".encode()
    assert verdicts(glob + b".") == {name: Verdict.PLACEHOLDER}
    for call in (glob + b")R.", f"(i{module}\n{function}\n.".encode(), b"(" + glob + b"o."):
        with pytest.raises(UnsafeCheckpointError) as caught:
            load(call)
        assert caught.value.names == (name,)
    assert isinstance(load(glob + b")R.", salvage=True), Placeholder)


# Torch ----------------------------------------------------------------------------------------


def expected(tensor):
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset()


def described(ref):
    assert type(ref) is TensorRef
    return ref.shape, ref.stride, ref.offset


def test_real_tensors():
    base = torch.arange(24, dtype=torch.float32)
    values = {
        "plain": torch.zeros(2, 3),
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0, 4),
        "view": base[3:9],
        "transposed": base.view(4, 6).t(),
        "expanded": torch.zeros(1, 3).expand(5, 3),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "buffer": torch.nn.Buffer(torch.ones(2, 2)),
        "large": torch.zeros(70_000, dtype=torch.uint8),
    }
    values["attributes"] = torch.nn.Parameter(torch.ones(4))
    values["attributes"].note = "kept elsewhere"
    data = saved(values)
    found = unpickle(data, where="x")
    assert found.end == len(data)
    assert {key: described(ref) for key, ref in found.root.items()} == {
        key: expected(value) for key, value in values.items()
    }
    assert found.root["view"].storage == found.root["transposed"].storage
    assert found.root["view"].storage.numel == 24
    assert found.storages == {ref.storage.key: ref.storage for ref in found.root.values()}
    assert found.root["large"].storage == StorageRef(
        found.root["large"].storage.key, load(b"ctorch\nuint8\n."), 70_000, "cpu"
    )
    assert {u.verdict for u in found.globals} == {Verdict.PLAIN, Verdict.REBUILDER}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.code)
def test_every_dtype(dtype):
    kind = getattr(torch, dtype.torch_name, None)
    if kind is None:
        pytest.skip("this torch does not know it")
    ref, named = load(saved([torch.zeros(3, dtype=kind), kind]))
    assert ref.dtype is dtype and named is dtype
    assert ref.storage.dtype in (dtype, None)
    assert ref.storage.numel == (3 if ref.storage.dtype else 3 * dtype.itemsize)


def test_state_dict_with_metadata():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm2d(3))
    state = module.state_dict()
    found = load(saved({"state_dict": state, "epoch": 3}))
    assert list(found["state_dict"]) == list(state)
    assert [described(r) for r in found["state_dict"].values()] == [
        expected(t) for t in state.values()
    ]


def test_real_optimizer_state():
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = load(saved(optimizer.state_dict()))
    assert type(found["state"][0]["exp_avg"]) is TensorRef


@pytest.mark.parametrize("protocol", range(2, 6))
def test_other_protocols_of_torch_save(protocol):
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2, 3).t()}, buffer, pickle_protocol=protocol)
    data = zipfile.ZipFile(buffer).read("archive/data.pkl")
    assert described(load(data)["w"]) == ((3, 2), (1, 3), 0)


def test_legacy_file_holds_pickles_in_a_row():
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    for data in (buffer.getvalue(), memoryview(buffer.getvalue())):
        position, roots = 0, []
        for _ in range(5):
            found = unpickle(data, where="x", start=position, is_legacy=True)
            roots.append(found.root)
            position = found.end
        assert roots[0] == 0x1950A86A20F9469CFC6C and roots[1] == 1001
        assert described(roots[3]["w"]) == ((2,), (1,), 0)
        assert roots[4] == [roots[3]["w"].storage.key]


def save_legacy(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return FileSource(path)


def quantized(kind):
    return torch.quantize_per_tensor(torch.zeros(5), 0.1, 0, kind)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(5, dtype=torch.complex128),
        lambda: torch.ones(5, dtype=torch.complex64).conj(),
        lambda: quantized(torch.qint8),
        lambda: quantized(torch.quint8),
        lambda: quantized(torch.qint32),
        lambda: torch.quantize_per_channel(
            torch.zeros(5, 3), torch.ones(5), torch.zeros(5), 0, torch.quint4x2
        ),
    ],
)
@pytest.mark.parametrize("is_beside", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_legacy_file_with_unsupported_tensors_opens(make, is_beside, tmp_path):
    # Storages lie in a row in order of their keys, which are addresses: several make sure that
    # one of the others comes behind.
    extra = {f"extra.{i}": make() for i in range(4)}
    weights = {f"w{i}": torch.full((2, 3), float(i)) for i in range(4)}
    value = {"state_dict": weights, "extra": extra} if is_beside else weights | extra
    with open_torch_legacy(save_legacy(value, tmp_path / "x.ckpt"), salvage=False) as checkpoint:
        assert list(checkpoint.tensors) == list(weights)
        for name, tensor in checkpoint.tensors.items():
            assert bytes(tensor.read()) == weights[name].numpy().tobytes()
        if not is_beside:
            assert set(checkpoint.non_tensors) == set(extra)
            assert all(
                kind.startswith("torch.Tensor (") for kind in checkpoint.non_tensors.values()
            )


def test_legacy_storage_of_unknown_type_is_refused(tmp_path):
    path = tmp_path / "x.ckpt"
    save_legacy({"w": torch.zeros(2), "x": torch.zeros(3, dtype=torch.int32)}, path).close()
    path.write_bytes(path.read_bytes().replace(b"ctorch\nIntStorage\n", b"cmylib\nStorage\n"))
    source = FileSource(path)
    with pytest.raises(MalformedCheckpointError, match="is no type of storage"):
        open_torch_legacy(source, salvage=False)
    source.close()


def test_large_pickle_in_a_memoryview():
    data = pickle.dumps(["x" * 6_000_000, b"y" * 3_000_000])
    padded = memoryview(b"junk" + data + bytes(50_000_000))
    found = unpickle(padded, where="x", start=4)
    assert found.end == 4 + len(data)
    assert len(found.root[1]) == 3_000_000


def test_torch_plain_values():
    value = [
        torch.Size([1, 2]),
        torch.device("cuda", 1),
        torch.strided,
        torch.__version__,
        torch.zeros(2).untyped_storage(),
    ]
    size, device, layout, version, storage = load(saved(value))
    assert size == (1, 2)
    assert (device.name, device.args) == ("torch.device", ("cuda", 1))
    assert layout.args == ("torch.strided",)
    assert version == str(torch.__version__)
    assert (storage.dtype, storage.numel) == (None, 8)
    for name in ("channels_last", "strided", "memory_format"):
        assert judge(f"torch.{name}") is Verdict.PLAIN


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex128), "torch.complex128"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "conj"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj().imag, "neg"),
        (lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.zeros(2, 2).to_sparse(), "sparse"),
        (lambda: torch.zeros(2, device="meta"), "meta"),
    ],
    ids=lambda value: value if type(value) is str else "x",
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_strides_cannot_describe_say_why(make, why):
    found = load(saved({"x": make()}))["x"]
    assert type(found) is Placeholder and found.name == f"torch.Tensor ({why})"


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\6tQ"


def tensor_pickle(middle, function="_rebuild_tensor_v2", storage=STORAGE, tail=b"\x89}t"):
    return f"ctorch._utils\n{function}\n(".encode() + storage + middle + tail + b"R."


def test_hand_made_tensor():
    ref = load(tensor_pickle(b"K\1K\2K\2\x86K\2K\1\x86"))
    assert described(ref) == ((2, 2), (2, 1), 1)
    old = load(tensor_pickle(b"K\0K\6\x85K\1\x85", "_rebuild_tensor", tail=b"t"))
    assert described(old) == ((6,), (1,), 0)


@pytest.mark.parametrize(
    "data",
    [
        tensor_pickle(b"K\0K\2\x85K\1K\1\x86"),  # lengths differ
        tensor_pickle(b"J\xff\xff\xff\xffK\2\x85K\1\x85"),  # negative offset
        tensor_pickle(b"K\0J\xff\xff\xff\xff\x85K\1\x85"),  # negative size
        tensor_pickle(b"K\0K\2\x85J\xff\xff\xff\xff\x85"),  # negative stride
        tensor_pickle(b"\x88K\2\x85K\1\x85"),  # bool offset
        tensor_pickle(b"K\0\x88\x85K\1\x85"),  # bool size
        tensor_pickle(b"K\0G" + bytes(8) + b"\x85K\1\x85"),  # float size
        tensor_pickle(b"K\0\x8a\x09" + bytes(8) + b"\x01\x85K\1\x85"),  # 2**64
        tensor_pickle(b"K\0]K\1\x85"),  # list for a shape
        tensor_pickle(b"K\0(" + b"K\1" * 65 + b"t(" + b"K\1" * 65 + b"t"),  # 65 dimensions
        tensor_pickle(b"K\0K\2\x85K\1\x85", storage=b"N"),
        tensor_pickle(b"K\0K\2\x85K\1\x85", tail=b"t"),  # too few arguments
        tensor_pickle(b"K\0K\2\x85K\1\x85", tail=b"\x89}K\1t"),  # metadata is a number
        b"(" + STORAGE + STORAGE.replace(b"K\6", b"K\5") + b"t.",  # one key, two sizes
        b"(" + STORAGE + STORAGE.replace(b"Float", b"Int") + b"t.",
        STORAGE.replace(b"storage", b"strange") + b".",
        STORAGE.replace(b"K\6", b"J\xff\xff\xff\xff") + b".",
        STORAGE.replace(b"K\6", b"\x88") + b".",
        STORAGE.replace(b"K\6t", b"t") + b".",
        STORAGE.replace(b"K\6", b"K\6(K\1K\2K\3t") + b".",
        STORAGE.replace(b"X\1\0\0\x000", b"K\0") + b".",
        b"Pstorage\n.",
        b"ctorch._utils\n_rebuild_parameter\n(K\1\x88}tR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(K\1ctorch\nTensor\n)}tR.",
        b"ctorch\nSize\nK\1\x85R.",
    ],
)
def test_malformed_tensors(data):
    pickletools.dis(data, io.StringIO())  # well-formed as far as a pickle goes
    with pytest.raises(MalformedCheckpointError, match=r"byte [0-9]+, [A-Z]"):
        load(data)


@pytest.mark.parametrize(
    "name",
    ["torch FloatStorage", "torch.storage UntypedStorage", "torch FloatTensor", "torch Tensor",
     "torch.nn.parameter Parameter"],
)  # fmt: skip
def test_uninitialised_memory_is_refused(name):
    module, attribute = name.split()
    data = f"c{module}\n{attribute}\n".encode() + b"K\x0a\x85R."
    with pytest.raises(UnsafeCheckpointError, match=attribute):
        load(data)
    assert type(load(data, salvage=True)) is Placeholder


# Numpy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "kind", "float64 float32 float16 int64 int32 int8 uint8 uint64 bool_".split()
)
def test_numpy_scalars_are_numbers(kind, protocol):
    value = getattr(np, kind)(1)
    data = pickle.dumps(value, protocol)
    for spelling in (data, data.replace(b"numpy._core", b"numpy.core") if protocol < 4 else data):
        assert load(spelling) == value.item()
        assert type(load(spelling)) is type(value.item())
    assert set(verdicts(data).values()) <= {Verdict.PLAIN, Verdict.REBUILDER}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        np.arange(3.0),
        np.zeros((2, 2), order="F"),
        np.array(["a", None], dtype=object),
        np.dtype("f4"),
        np.float64,
        np.complex64(1),
        np.datetime64("2020-01-01"),
        np.str_("a"),
    ],
    ids=repr,
)
def test_other_numpy_values_are_inert(value, protocol):
    data = pickle.dumps(value, protocol)
    assert type(load(data)) is Placeholder
    assert set(verdicts(data).values()) <= {Verdict.PLAIN, Verdict.REBUILDER}


# Hostile --------------------------------------------------------------------------------------


def call(module, name, *args, protocol=0):
    """A pickle that calls a global on text or numbers, unless one cannot say that."""
    text = b"".join(
        b"I%d\n" % a if isinstance(a, int) else b"V" + a.encode("raw-unicode-escape") + b"\n"
        for a in args
    )
    if protocol == 0:
        return f"c{module}\n{name}\n(".encode() + text + b"tR."
    if protocol == 1:
        return b"(" + text + f"i{module}\n{name}\n.".encode()
    short = b"".join(b"\x8c" + bytes([len(p.encode())]) + p.encode() for p in (module, name))
    return b"\x80\x04" + short + b"\x93(" + text + b"tR."


TARGETS = (
    """
os system|posix system|nt system|os popen|os.path os.system|os execv|posix spawnl
subprocess Popen|subprocess check_output|subprocess.os system
builtins eval|builtins exec|__builtin__ eval|__builtin__ execfile|__builtins__ exec|builtins open
builtins getattr|builtins __import__|builtins globals|builtins compile|builtins map|builtins vars
builtins print|builtins breakpoint|builtins type.mro|builtins object.__subclasses__|builtins super
importlib import_module|imp load_source|runpy run_path|code InteractiveInterpreter|codeop Compile
commands getoutput|popen2 popen3|pty spawn|platform popen|webbrowser open|pdb run|bdb Bdb
timeit timeit|cProfile run|profile run|trace Trace.run|doctest debug_script
test.support run_in_subinterp
operator attrgetter|_operator methodcaller|functools partialmethod|functools reduce
itertools starmap
multiprocessing.util spawnv_passfds|multiprocessing Process|threading Thread|asyncio run
signal alarm
socket create_connection|urllib.request urlopen|urllib2 urlopen|httplib HTTPSConnection
ssl wrap_socket
shutil rmtree|shutil move|tempfile mktemp|glob glob|pathlib Path.unlink|io open|_io FileIO|_io open
pickle loads|cPickle loads|_pickle loads|marshal loads|shelve open|types FunctionType|types CodeType
ctypes CDLL|ctypes.util find_library|sys exit|sys settrace|sys modules|logging.config fileConfig
torch load|torch.serialization load|torch._utils _import_dotted_name|torch.storage _load_from_bytes
torch.hub load|torch.utils.cpp_extension load|torch.serialization os.system|torch.jit load
torch._inductor.codecache compile_file|torch.fx._symbolic_trace os.system|torch _utils.sys.exit
torch.nn.init normal_|torch.package PackageImporter|torch.distributed.rpc remote
numpy load|numpy.testing._private.utils runstring|numpy.f2py.crackfortran myeval|numpy memmap
numpy.core.multiarray fromfile|numpy._core.records fromfile|numpy os.system|numpy fromregex
pip main|pip._internal main|setuptools setup|pkg_resources load_entry_point|ensurepip bootstrap
distutils.core run_setup|distutils.spawn spawn|_distutils_hack do_override|easy_install main
conda main
dill loads|cloudpickle loads|joblib load|pandas.io.pickle read_pickle|pandas read_pickle
IPython start_ipython|jedi Script|sh bash|pexpect run|numba jit|cffi FFI|jinja2 Template|yaml load
fire Fire|invoke run|lightning.x os.system|pytorch_lightning.utilities subprocess.Popen
lightning.fabric.os system|my.module __globals__|my.module f.__globals__.x|my __builtins__.eval
__main__ os.system|__main__ f|mylib do_something|mylib.sub _helper|OS system|Builtins eval
\uff4f\uff53 system|\uff42uiltins eval|foo bar baz|foo-bar x|. .|os\u2024path join
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "ran"


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_names_are_refused_and_nothing_runs(target, marker, monkeypatch):
    # Whatever would import a module for a name goes through one of these.
    def trap(*args, **kwargs):
        raise AssertionError("something from the file was looked up")

    codecs.lookup("raw_unicode_escape")  # protocol 0 has its text in it
    before = set(sys.modules)
    module, _, name = target.partition(" ")
    for protocol in (0, 1, 4):
        data = call(module, name, f"touch {marker}", protocol=protocol)
        with monkeypatch.context() as patched:
            patched.setattr(builtins, "__import__", trap)
            with pytest.raises(UnsafeCheckpointError) as caught:
                load(data)
            salvaged = unpickle(data, where="x", salvage=True)
        assert caught.value.names == (f"{module}.{name}",)
        assert caught.value.where == "x.ckpt: data.pkl"
        assert type(salvaged.root) is Placeholder
        assert salvaged.globals == (GlobalUse(f"{module}.{name}", Verdict.UNSAFE),)
    assert set(sys.modules) == before
    assert not marker.exists()


def test_the_hostile_pickles_are_live(marker):
    # The same bytes do run in the ordinary unpickler: the test above tests something.
    pickle.loads(call("os", "system", f"touch {marker}"))
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"cos\nsystem\n(cbuiltins\neval\nt.", ["os.system", "builtins.eval"]),
        (b"cos\nsystem\n0cbuiltins\neval\n0K\1", ["os.system", "builtins.eval"]),  # no STOP
        (b"cos\nsystem\n\xff", ["os.system"]),
        (b"(cos\nsystem\nVx\no.", ["os.system"]),
        (b"\x80\x02cos\n_wrap_close\n)\x81.", ["os._wrap_close"]),
        (b"\x80\x04cos\n_wrap_close\n)}\x92.", ["os._wrap_close"]),
        (b"cbuiltins\ngetattr\n(cos\nx\nVsystem\ntRVls\n\x85R.",
         ["builtins.getattr", "os.x", "builtins.getattr.__call__"]),
        (b"cmylib\nThing\n)R)R.", ["mylib.Thing.__call__"]),
        (b"\x82\x01.", ["copyreg extension 1"]),
        (b"\x83\x01\x02)R.", ["copyreg extension 513"]),
        (b"\x84\x01\0\0\0.", ["copyreg extension 1"]),
        (b"cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.", ["builtins.bytearray"]),
        (b"cbuiltins\nbytes\nK\x05\x85R.", ["builtins.bytes"]),
        (b"cbuiltins\ntype\n(VX\n)}tR.", ["builtins.type"]),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", ["_codecs.encode"]),
        (b"cmylib\nThing\n}b.", ["mylib.Thing"]),  # state of a class
        (b"cmylib\nregistry\nK\1K\1s.", ["mylib.registry"]),  # item of a module's table
        (b"cmylib\nregistry\nK\1a.", ["mylib.registry"]),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(cmylib\nfunction\nctorch\nTensor\n)}tR.",
         ["mylib.function"]),
        (b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\n"
         b"ctorch\nTensor\n)}tR.", ["torch._tensor._rebuild_from_type_v2"]),
    ],
)  # fmt: skip
def test_unsafe_names_are_all_listed_in_order(data, names):
    with pytest.raises(UnsafeCheckpointError) as caught:
        load(data)
    assert list(caught.value.names) == names


def test_salvage_reads_the_weights_beside_a_payload():
    payload = call("os", "system", "true")[:-1]
    inner = saved({"w": torch.zeros(2)})
    data = b"(" + payload + inner[2:-1] + b"t."
    with pytest.raises(UnsafeCheckpointError):
        load(data)
    found = unpickle(data, where="x", salvage=True)
    assert described(found.root[1]["w"]) == ((2,), (1,), 0)
    assert GlobalUse("os.system", Verdict.UNSAFE) in found.globals


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("collections.OrderedDict", Verdict.PLAIN),
        ("collections.namedtuple", Verdict.UNSAFE),
        ("torch._utils._rebuild_tensor_v2", Verdict.REBUILDER),
        ("numpy.dtypes.Float64DType", Verdict.PLAIN),
        ("numpy.dtypes.os.DType", Verdict.UNSAFE),
        ("pathlib._local.PosixPath", Verdict.PLAIN),
        ("typing.Any", Verdict.PLAIN),
        ("typing.get_type_hints", Verdict.UNSAFE),
        ("__main__.Config", Verdict.PLACEHOLDER),
        ("__builtin__.NoneType", Verdict.PLAIN),
        ("lightning.pytorch.utilities.types.X", Verdict.PLACEHOLDER),
        ("lightning_fabric.utilities.data.AttributeDict", Verdict.PLACEHOLDER),
        ("pytorch_lightning.utilities.enums.DeviceType", Verdict.PLACEHOLDER),
        ("torchvision.transforms.Resize", Verdict.PLACEHOLDER),
        ("ldm.models.autoencoder.AutoencoderKL", Verdict.PLACEHOLDER),
        ("yacs.config.CfgNode", Verdict.PLACEHOLDER),
        ("easydict.EasyDict", Verdict.PLACEHOLDER),
        ("torchmetrics.x.Ｔest", Verdict.PLACEHOLDER),  # noqa: RUF001
        ("collections.ＯrderedDict", Verdict.UNSAFE),  # noqa: RUF001
        ("", Verdict.UNSAFE),
        ("x", Verdict.PLACEHOLDER),
    ],
)
def test_judge(name, verdict):
    assert judge(name) is verdict


def test_no_standard_module_is_a_placeholder():
    for module in sys.stdlib_module_names:
        if module != "__main__":
            assert judge(f"{module}.whatever") is Verdict.UNSAFE
            assert judge(f"{module.upper()}.whatever") is Verdict.UNSAFE


# Malformed ------------------------------------------------------------------------------------

REAL = saved(
    {
        "state_dict": torch.nn.Linear(2, 2).state_dict(),
        "lr": 0.1,
        "n": [1, -5, 300, 70_000, 2**40, None],
        "ns": argparse.Namespace(a={1}),
        "np": np.float64(2.0),
        "u16": torch.zeros(2, dtype=torch.uint16),
    }
)
ASSORTED = [
    REAL,
    *(
        pickle.dumps([1, 2.5, "text\n", b"\xff", {"a": (1, 2)}, {3}, frozenset({4}), True, None,
                      argparse.Namespace(x=1), 2**70, collections.OrderedDict(a=1)], protocol)
        for protocol in PROTOCOLS
    ),
]  # fmt: skip


@pytest.mark.parametrize("data", ASSORTED, ids=["torch", *PROTOCOLS])
def test_truncated_at_every_byte(data):
    assert unpickle(data, where="x").end == len(data)
    for end in range(len(data)):
        with pytest.raises(MalformedCheckpointError):
            load(data[:end])
        with pytest.raises(MalformedCheckpointError):
            load(memoryview(data)[:end])


DEEP_KEY = b"}" + b")" + b"\x85" * 1_000_000 + b"K\1s."
WIDE_KEY = b"})" + b"2\x86" * 60 + b"K\1s."  # 2**60 leaves in 60 shared tuples


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the end"),
        (b".", "STOP"),
        (b"0.", "POP"),
        (b"1.", "POP_MARK"),
        (b"t.", "TUPLE"),
        (b"K\1\x86.", "TUPLE2"),
        (b"K\1K\1\x87.", "TUPLE3"),
        (b"R.", "REDUCE"),
        (b"2.", "DUP"),
        (b"a.", "APPEND"),
        (b"K\1K\1s.", "SETITEM"),
        (b"](K\1u.", "SETITEMS"),
        (b"}(K\1u.", "no value"),
        (b"}(K\1K\1u", "the end"),
        (b"K\1)R.", "calls a int"),
        (b"ccollections\nOrderedDict\n]R.", "not a tuple"),
        (b"ccollections\nOrderedDict\nK\1\x85R.", "gets a int"),
        (b"ccollections\nOrderedDict\n(K\1K\2tR.", "gets 2 arguments"),
        (b"ccollections\nOrderedDict\n](K\1K\2e\x85R.", "not pairs"),
        (b"cbuiltins\nset\nVx\n\x85R.", "gets a str"),
        (b"c_codecs\nencode\n(V\\u2028\nVlatin1\ntR.", "wider"),
        (b"ccopyreg\n_reconstructor\n)R.", "0 arguments"),
        (b"ccopyreg\n__newobj__\n)R.", "no class"),
        (b"ccopyreg\n__newobj__\n(" + b"ccopyreg\n__newobj__\n" + b"2" * 5000 + b"tR.", "a class"),
        (b"(o.", "OBJ"),
        (b"\xff.", "opcode 0xff"),
        (b"\x80\x06.", "protocol 6"),
        (b"\x80\xff.", "protocol 255"),
        (b"\x97.", "out-of-band"),
        (b"\x98.", "out-of-band"),
        (b"h\5.", "memo"),
        (b"g99\n.", "memo"),
        (b"j\xff\xff\xff\xff.", "memo"),
        (b"Nr\xff\xff\xff\xff.", "out of range"),
        (b"Np4294967294\n.", "out of range"),
        (b"Np-1\n.", "out of range"),
        (b"Npx\n.", "number"),
        (b"X\xff\xff\xff\xffx.", "too early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.", "announced"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", "announced"),
        (b"\x96\xff\xff\xff\xff\0\0\0\0x.", "announced"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", "frame"),
        (b"B\xff\xff\xff\x7fx.", "announced"),
        (b"T\xff\xff\xff\xffx.", "announced"),
        (b"\x8b\xff\xff\xff\xff.", "announced"),
        (b"\x8b\xff\xff\xff\x7f.", "announced"),
        (b"\x8b\xd0\x07\0\0" + b"9" * 2000 + b".", "number of"),
        (b"I" + b"9" * 5000 + b"\n.", "number of"),
        (b"L" + b"9" * 5000 + b"L\n.", "number of"),
        (b"F1" + b"0" * 5000 + b"\n.", "number of"),
        (b"Iabc\n.", "number"),
        (b"Fx\n.", "number"),
        (b"I\xff\n.", "number"),
        (b"I1", "line"),
        (b"Sx\n.", "quotes"),
        (b"S'\n.", "quotes"),
        (b"X\1\0\0\0\xff.", "UTF-8"),
        (b"c\xff\nx\n.", "UTF-8"),
        (b"V\\ud8zz\n.", "UTF-8"),
        (b"K\1K\2\x93.", "not text"),
        (b"c" + b"x" * 600 + b"\nX\n.", "600|601"),
        (b"K\1}b.", "state of a int"),
        (b"]}b.", "state of a list"),
        (b"K\1K\1a.", "adds items"),
        (b"\x8f(]\x90.", "cannot be a key"),
        (b"(]\x91.", "cannot be a key"),
        (b"}]K\1s.", "cannot be a key"),
        (b"cmylib\nThing\n)\x81]K\1s.", "cannot be a key"),
        (b"}]\x85K\1s.", "cannot be a key"),
        (DEEP_KEY, "too deep"),
        (WIDE_KEY, "too deep"),
        (b"}" + b"G" + bytes(8) + b"N" + b"s" + b"(" + b"".join(
            b"G" + struct.pack(">d", i) + b"N" for i in range(5000)) + b"u.", "unusual"),
        (b"(" * 2_000_000, "complex"),
        (b"N" + b"\x94" * 3_000_000 + b".", "complex"),
        slow_row(b"]" * 2_000_000, "complex"),
        slow_row(b"N0" * 6_000_000, "complex"),
        (b"".join(b"cm%d\nX\n0" % i for i in range(11_000)) + b"N.", "complex"),
        (b"](" + b"N" * 100_000 + b"eq\0" + b"cbuiltins\nlist\nh\0\x85R" * 200 + b".", "complex"),
    ],
    ids=lambda value: value if type(value) is str else value[:12].hex(),
)  # fmt: skip
def test_malformed(data, words):
    began = time.process_time()
    with pytest.raises(MalformedCheckpointError, match=words) as caught:
        load(data)
    assert time.process_time() - began < 10
    message = str(caught.value)
    assert message.startswith("x.ckpt: data.pkl: broken pickle: ")
    assert "byte " in message and "\n" not in message


@pytest.mark.parametrize(
    "data",
    [
        b"]" + b"]" * 300_000 + b"a" * 300_000 + b".",  # nested lists
        b")" + b"\x85" * 900_000 + b".",  # nested tuples
        b"cmylib\nThing\nq\0)\x81" + b"h\0)\x81" * 1000 + b"b" * 1000 + b".",  # states in states
    ],
)
def test_deep_values_are_read_and_let_go(data):
    assert load(data) is not None


def test_expansion_is_bounded():
    # One long text, encoded over and over, stays one object.
    text = b"V" + b"x" * 1_000_000 + b"\n"
    data = b"(" + text + b"q\0000" + b"c_codecs\nencode\n(h\0Vlatin1\ntR" * 2000 + b"t."
    assert len({id(value) for value in load(data)}) == 1


def test_message_of_a_hostile_name_is_one_line():
    with pytest.raises(UnsafeCheckpointError) as caught:
        load(b"\x8c\x08os\n\x1b[31m\x8c\x01s\x93.")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


# Fuzz -----------------------------------------------------------------------------------------


def survives(data):
    for salvage in (False, True):
        try:
            unpickle(data, where="x", salvage=salvage)
        except VaeconvError as error:
            assert "\n" not in str(error)


@given(st.sampled_from(ASSORTED), st.data())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutants_give_a_value_or_our_error(data, draw):
    mutant = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 6))):
        position = draw.draw(st.integers(0, len(mutant) - 1))
        if draw.draw(st.booleans()):
            mutant[position] = draw.draw(st.integers(0, 255))
        else:
            del mutant[position : position + draw.draw(st.integers(0, 8))]
            mutant += b"."
    survives(bytes(mutant))


OPCODES = [bytes([ord(op.code)]) for op in pickletools.opcodes]
PIECES = [
    *OPCODES, b"K\1", b"K\0", b"X\1\0\0\0x", b"\x8c\1y", b"(", b")", b"]", b"}", b"\x8f", b"N",
    b"q\0",
    b"h\0", b"h\1", b"p2\n", b"\x94", b"I5\n", b"V7\n", b"S'a\\x41\\7\\q'\n", b"F1e400\n", b"L5L\n",
    b"0",
    b"ccollections\nOrderedDict\n", b"ccollections\ndefaultdict\n", b"ccollections\ndeque\n",
    b"ccollections\nCounter\n", b"cbuiltins\nset\n", b"cbuiltins\ntype\n",
    b"cbuiltins\nbytearray\n",
    b"cbuiltins\ncomplex\n", b"cmylib\nThing\n", b"cmylib\nfunction\n", b"cos\nsystem\n", STORAGE,
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch._utils\n_rebuild_qtensor\n", b"ctorch\nSize\n", b"ctorch\nTensor\n",
    b"ctorch\nfloat32\n",
    b"ccopyreg\n_reconstructor\n", b"ccopyreg\n__newobj__\n", b"ccopyreg\n__newobj_ex__\n",
    b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n", b"c_codecs\nencode\n", b"Vf8\n",
    b"B\1\0\0\0x",
    b"Vlatin1\n", b"Vstorage\n", b"Vneg\n", b"\x85", b"\x86", b"\x87", b"t", b"R", b"\x81", b"b",
    b"Q",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
@settings(max_examples=1500, deadline=None)
@example(b"F1e400\n.")
@example(b"cbuiltins\ntype\nN\x85R)R.")
def test_opcode_soup_gives_a_value_or_our_error(data):
    survives(data + b".")


def test_much_more_soup():
    # Cheaper than hypothesis, so there is a lot of it; the stack is primed to get further.
    rng = random.Random(20220822)
    for _ in range(30_000):
        primer = b"(" * rng.randrange(4) + b"".join(rng.choices(PIECES[70:], k=6))
        survives(primer + b"".join(rng.choices(PIECES, k=rng.randrange(12))) + b".")


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_value_or_our_error(data):
    survives(data)


# The whole ------------------------------------------------------------------------------------


def test_speed():
    state = {f"decoder.up.{i}.block.conv.weight": torch.zeros(2, 3, 1, 1) for i in range(2000)}
    data = saved(state)
    times = []
    for _ in range(5):
        began = time.process_time()
        load(data)
        times.append(time.process_time() - began)
    assert min(times) < 0.5  # 0.02 as a rule; this only catches another order of growth


def test_import_is_light():
    code = (
        "import sys, vaeconv.checkpoint.unpickle.interpreter\n"
        "heavy = {'pickle', '_pickle', 'pickletools', 'torch', 'numpy', 'importlib.metadata'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = pathlib.Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_dtype_keys_and_class_keys():
    assert load(b"}ctorch\nfloat16\nK\1s.") == {load(b"ctorch\nfloat16\n."): 1}
    assert isinstance(load(b"ctorch\nhalf\n."), DType)
