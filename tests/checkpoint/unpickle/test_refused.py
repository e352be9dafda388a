"""Which names refuse a file, and why: against picklescan, and against what training code leaves."""

from __future__ import annotations

import functools
import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from picklescan import scanner

from tests.support import corpus
from tests.support.corpus import call, named, number, text, tuple_of
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.unpickle.interpreter import Placeholder, unpickle
from vaeconv.checkpoint.unpickle.policy import Verdict, judge
from vaeconv.checkpoint.unpickle.refused import _STANDARD, _TABLE, why_refused
from vaeconv.errors import UnsafeCheckpointError

# Dangerous to picklescan for what it may be given: it does nothing by itself, checkpoints hold
# it, and what it is given is judged as well.
HARMLESS = ("functools", "partial")


def dangerous() -> list[tuple[str, str]]:
    found = []
    for module, names in scanner._unsafe_globals.items():
        if names == "*":
            found += [(module, "whatever"), (f"{module}.sub", "Whatever")]
        else:
            found += [(module, n) for n in ([names] if isinstance(names, str) else sorted(names))]
    return [pair for pair in found if pair != HARMLESS]


def beside(opcodes: bytes) -> bytes:
    """The pickle of a checkpoint with something beside the weights."""
    return corpus.pickled_state(corpus.views(corpus.base()), beside=[(text("x"), opcodes)])


@pytest.mark.parametrize("module, attribute", dangerous())
def test_what_picklescan_calls_dangerous_is_refused(module: str, attribute: str) -> None:
    name, said = f"{module}.{attribute}", f"c{module}\n{attribute}\n".encode()
    for opcodes in (
        said,
        text(module) + text(attribute) + b"\x93",
        call(said, text("x")),
        call(named("functools.partial"), said, text("x")),
    ):
        data = beside(opcodes)
        assert scanner.scan_pickle_bytes(io.BytesIO(data), "x").issues_count
        with pytest.raises(UnsafeCheckpointError) as caught:
            unpickle(data, where="x")
        assert f"{name} ({caught.value.reasons[name]})" in str(caught.value)


def test_picklescan_is_asked() -> None:
    assert len(dangerous()) > 60
    assert not scanner.scan_pickle_bytes(io.BytesIO(beside(b"N")), "x").issues_count


@pytest.mark.parametrize(
    "module, name",
    [("torch.nn.functional", "torch.load"), ("my.module", "np.load"), ("my.module", "pd.eval"),
     ("my.module", "functools.reduce"), ("torch.optim.adam", "torch._dynamo.x"),
     ("einops.layers", "torch.load"), ("collections", "abc.sys")],
)  # fmt: skip
def test_a_module_that_another_one_imports_is_refused_as_itself(module: str, name: str) -> None:
    for data in (f"c{module}\n{name}\n".encode(), text(module) + text(name) + b"\x93"):
        with pytest.raises(UnsafeCheckpointError):
            unpickle(beside(data), where="x")
    assert unpickle(beside(b"ceinops.layers.torch\nRearrange\n"), where="x")
    assert unpickle(beside(b"cmy.module\nOuter.Inner\n"), where="x")


def test_a_partial_that_is_called_is_refused() -> None:
    inner = call(named("functools.partial"), named("torch.optim.adam.Adam"))
    assert unpickle(beside(inner), where="x")
    with pytest.raises(UnsafeCheckpointError, match=r"functools\.partial\.__call__"):
        unpickle(beside(inner + b")R"), where="x")


# Names of harm that picklescan does not list.
WORSE = """
torch.load torch.hub.load torch.jit.load torch.jit._script.RecursiveScriptModule
torch.serialization.load torch.storage._load_from_bytes torch.package.PackageImporter
torch.package.package_importer.PackageImporter torch._utils._import_dotted_name
torch.utils.cpp_extension.load_inline torch._dynamo.eval_frame.OptimizedModule
torch._inductor.codecache.PyCodeCache torch.fx.graph_module.reduce_graph_module
torch.fx.experimental.proxy_tensor.make_fx torch.distributed.rpc.api.rpc_sync
torch.multiprocessing.spawn.spawn torch.utils.benchmark.utils.timer.Timer torch.ops.load_library
torch.classes.load_library torch.compile torch.export.load torch.save torch.from_file
torch.utils.model_zoo.load_url torch.cuda._memory_viz._main torch.testing._internal.common_utils.run
torch.os.system torch.nn.modules.module.os torch.sys.exit torch.utils.data.dataloader.os.system
torch.Load TORCH.load
numpy.load numpy.lib.npyio.load numpy.memmap numpy.fromfile numpy.core.multiarray.fromfile
numpy.testing._private.utils.runstring numpy.f2py.crackfortran.myeval numpy.ctypeslib.load_library
numpy.distutils.exec_command.exec_command numpy.os.system pandas.read_pickle
pandas.io.pickle.read_pickle pandas.eval
builtins.eval builtins.exec builtins.__import__ builtins.getattr builtins.compile builtins.open
os.system posix.system nt.system subprocess.Popen runpy.run_path importlib.import_module
ctypes.CDLL webbrowser.open pip.main setuptools.setup operator.attrgetter operator.methodcaller
operator.itemgetter functools.reduce requests.get requests.sessions.Session urllib.request.urlopen
urllib3.PoolManager aiohttp.ClientSession test.support.script_helper.assert_python_ok
hydra.utils.instantiate dill.loads cloudpickle.loads joblib.load marshal.loads shelve.open
types.FunctionType types.CodeType code.InteractiveConsole inspect.getsource io.open io.BytesIO
logging.FileHandler logging.config.dictConfig re.sre_compile.os uuid._get_command_stdout
ray.cloudpickle.loads my.utils.subprocess my.thing.__globals__ lightning.pytorch.cli.os
""".split()


@pytest.mark.parametrize("name", WORSE)
def test_harm_is_refused_with_its_reason(name: str) -> None:
    for opcodes in (named(name), call(named(name), text("x"))):
        with pytest.raises(UnsafeCheckpointError) as caught:
            unpickle(beside(opcodes), where="x")
        (reason,) = (why for each, why in caught.value.reasons.items() if each == name)
        assert f"{name} ({reason})" in str(caught.value)


# Left behind by trainers, named and made.
TRAINING = """
torch.nn.modules.container.ModuleList torch.nn.modules.linear.Linear torch.nn.modules.loss.L1Loss
torch.nn.functional.binary_cross_entropy torch.nn.functional.relu torch._C._nn.gelu torch.relu
torch.nn.init.xavier_uniform_ torch.optim.adamw.AdamW torch.optim.lr_scheduler.LambdaLR
torch.distributions.normal.Normal torch.distributions.constraints._GreaterThan
torch.distributions.transforms.ExpTransform torch.utils.data.dataloader.DataLoader
torch.utils.data.dataset.TensorDataset torch.utils.data.sampler.RandomSampler torch.Generator
torch.cuda.amp.grad_scaler.GradScaler torch.amp.grad_scaler.GradScaler torch.FloatTensor
torch.distributed.tensor.DTensor torch.nn.utils.parametrizations._SpectralNorm
torch.get_default_dtype torch.ao.quantization.qconfig.QConfig torch.profiler.profiler.profile
torchvision.transforms.transforms.Compose torchvision.models.resnet.resnet18
torchmetrics.utilities.data.dim_zero_sum torchmetrics.aggregation.MeanMetric
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
lightning.pytorch.trainer.states.TrainerFn lightning_fabric.utilities.data.AttributeDict
pytorch_lightning.loggers.wandb.WandbLogger
omegaconf.dictconfig.DictConfig omegaconf.base.ContainerMetadata omegaconf.nodes.AnyNode
diffusers.models.autoencoders.autoencoder_kl.AutoencoderKL transformers.models.clip.CLIPConfig
numpy.sqrt numpy.random.mtrand.RandomState sklearn.preprocessing._data.StandardScaler
pandas.core.frame.DataFrame ldm.models.autoencoder.AutoencoderKL taming.modules.losses.LPIPS
my_project.train.lr_lambda __main__.Config functools.partial inspect._empty
""".split()


@pytest.mark.parametrize("name", TRAINING)
def test_training_code_is_listed_and_inert(name: str) -> None:
    found = unpickle(beside(named(name)), where="x")
    assert type(found.root["x"]) is Placeholder and found.root["x"].name == name
    assert (name, Verdict.PLACEHOLDER) in found.globals
    if name.rpartition(".")[2].lstrip("_")[0].isupper() and "Tensor" not in name[:20]:
        made = unpickle(beside(named(name) + b")\x81}b"), where="x")
        assert made.root["x"].is_object


def test_real_objects_of_training_code_stay_inert(tmp_path: Path) -> None:
    import numpy as np

    layer = torch.nn.Linear(2, 2)
    value = {
        "state_dict": {"encoder.conv_in.weight": torch.ones(2, 2)},
        "hyper_parameters": {
            "module": torch.nn.ModuleList([layer, torch.nn.Sequential(torch.nn.ReLU())]),
            "loss": torch.nn.functional.binary_cross_entropy,
            "optimizer": functools.partial(torch.optim.AdamW, lr=1e-4),
            "made": torch.optim.Adam(layer.parameters()),
            "prior": torch.distributions.Normal(0.0, 1.0),
            "data": torch.utils.data.TensorDataset(torch.zeros(3)),
            "generic": list[int],
            "annotation": dict[str, Any],
            "random": np.random.RandomState(0),
            "generator": np.random.default_rng(0),
            "masked": np.ma.array([1.0, 2.0], mask=[0, 1]),
            "activation": torch.nn.functional.gelu,
            "pattern": __import__("re").compile("x.*"),
        },
    }
    torch.save(value, tmp_path / "x.ckpt")
    with open_checkpoint(tmp_path / "x.ckpt") as checkpoint:
        assert list(checkpoint.tensors) == ["encoder.conv_in.weight"]
        listed = {name for name, verdict in checkpoint.globals if verdict == "placeholder"}
        assert not [name for name, verdict in checkpoint.globals if verdict == "unsafe"]
    assert {
        "torch.nn.modules.container.ModuleList",
        "torch.nn.functional.binary_cross_entropy",
        "functools.partial",
        "torch.optim.adamw.AdamW",
        "torch.distributions.normal.Normal",
    } <= listed


def test_a_nested_pickle_is_refused() -> None:
    buffer = io.BytesIO()
    pickle.dump({"w": torch.ones(2)}, buffer)  # tensors outside of torch.save
    with pytest.raises(UnsafeCheckpointError, match=r"_load_from_bytes \(reads another pickle"):
        unpickle(buffer.getvalue(), where="x")


@pytest.mark.parametrize("name", ["my.make", "torch.tensor", "torch.nn.init.ones_", "numpy.full"])
def test_calling_a_function_is_refused_where_naming_it_is_not(name: str) -> None:
    assert unpickle(beside(named(name)), where="x")
    with pytest.raises(UnsafeCheckpointError, match="is called, with unknown effects"):
        unpickle(beside(call(named(name), number(1))), where="x")


def test_memory_is_refused_with_its_reason() -> None:
    for name in ("torch.FloatTensor", "torch.FloatStorage", "torch.Tensor"):
        with pytest.raises(UnsafeCheckpointError, match="memory that was never written"):
            unpickle(beside(call(named(name), number(8))), where="x")


def test_every_standard_module_has_a_reason_of_its_own() -> None:
    public = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    lacking = {name for name in public if why_refused(f"{name}.x") in (None, _STANDARD)}
    assert lacking <= {"nt_future"}
    assert why_refused("_json.x") == _STANDARD


def test_the_table_says_each_thing_once() -> None:
    entries = [entry for names in _TABLE.values() for entry in names.split()]
    assert len(entries) == len(set(entries))
    # What an entry covers need not be said again.
    assert not [e for e in entries for o in entries if e.startswith(f"{o}.")]


def test_no_table_hides_plain_data() -> None:
    for module in (torch.nn, torch.optim, torch.distributions):
        for name, value in vars(module).items():
            if isinstance(value, type) and not name.startswith("_"):
                assert judge(f"{value.__module__}.{name}") in (Verdict.PLAIN, Verdict.PLACEHOLDER)
    assert isinstance(types.SimpleNamespace(), object)


def test_planted_hole_in_the_table_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from vaeconv.checkpoint.unpickle import refused as pickle_refused

    holed = {k: v for k, v in pickle_refused._REASONS.items() if k != "torch._dynamo"}
    monkeypatch.setattr(pickle_refused, "_REASONS", holed)
    with pytest.raises(pytest.fail.Exception):
        test_what_picklescan_calls_dangerous_is_refused("torch._dynamo.guards", "GuardBuilder.get")


def test_a_partial_of_harm_is_refused_for_the_harm() -> None:
    opcodes = (
        call(named("functools.partial"), named("os.system"), text("x")) + tuple_of(b"N") + b"b"
    )
    with pytest.raises(UnsafeCheckpointError, match=r"os\.system \(starts programs\)"):
        unpickle(beside(opcodes), where="x")
