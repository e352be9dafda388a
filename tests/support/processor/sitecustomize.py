"""Makes of this machine another processor, in every Python process that finds this on its path.

``PYTHONPATH=tests/support/processor`` brings it in, also where a test starts vaeconv by its entry
point; ``python -m tests.support.processors`` (``make test-numerics``) sets that and these:

VAECONV_TESTS_JITTER
    A seed. The result of every convolution, matrix product and normalisation is changed by up to
    ``JITTER`` of each value, as the order of a sum does. A processor gives equal results for equal
    calls, so the change follows from seed, function and shapes alone: a batch of another size, or
    the same product by another function, gets another one.
VAECONV_TESTS_NO_ONEDNN
    Convolutions and products by torch's own code, not by oneDNN.
VAECONV_TESTS_BLOCK
    Names of modules, separated by commas, that are not installed as far as an import can tell.
VAECONV_TESTS_NO_POSIX
    Set: what Windows has not is taken away, and what it refuses is refused (``no_posix.py``).
VAECONV_TESTS_RECORD
    A folder, where every test that computes leaves an empty file of its name; one that casts or
    checks by numkong or isal leaves it in the folder ``replaced``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.abc
import importlib.machinery
import os
import sys
import threading
from pathlib import Path
from typing import Any

JITTER = 5e-7  # of a value: four roundings of fp32
BLOCKED = frozenset(filter(None, os.environ.get("VAECONV_TESTS_BLOCK", "").split(",")))
SEED = os.environ.get("VAECONV_TESTS_JITTER", "")
RECORD = os.environ.get("VAECONV_TESTS_RECORD", "")

# Modules that the product can do without, and their functions that it calls.
REPLACED = {"numkong": "astype", "isal.isal_zlib": "crc32"}
PRODUCTS = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "matmul mm bmm mv addmm addmv addbmm baddbmm einsum tensordot inner "
    "group_norm layer_norm batch_norm instance_norm rms_norm native_group_norm native_layer_norm"
).split()
FUNCTIONALS = (
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear bilinear "
    "scaled_dot_product_attention group_norm layer_norm batch_norm instance_norm rms_norm "
    "local_response_norm"
).split()
METHODS = (
    "matmul __matmul__ __rmatmul__ mm bmm mv addmm addmv addbmm baddbmm inner addmm_ baddbmm_"
).split()

_inside = threading.local()  # what such a function calls is its own affair


def _jitter(name: str, result: Any) -> Any:
    import torch

    if not isinstance(result, torch.Tensor) or not result.is_floating_point() or result.is_meta:
        return result
    shape = tuple(result.shape)
    seed = hashlib.blake2b(repr((SEED, name, shape)).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "big"))
    # In half precision a change of the sum shows as a change of the last place, or not at all.
    size = max(JITTER, torch.finfo(result.dtype).eps / 2)
    with torch.no_grad():
        change = torch.rand(shape, generator=generator).mul_(2 * size).sub_(size).to(result.device)
        wide = result.detach() if result.dtype == torch.float64 else result.detach().float()
        moved = (wide * (1 + change)).to(result.dtype)
    # In inference mode nothing can be added to; else the gradient goes past the change.
    return result + (moved - result.detach()) if result.requires_grad else moved


def _wrap(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def computed(*args: Any, **kwargs: Any) -> Any:
        if getattr(_inside, "call", False):
            return function(*args, **kwargs)
        _inside.call = True
        try:
            result = function(*args, **kwargs)
            if RECORD and not getattr(result, "is_meta", False):
                _record()
            return _jitter(name, result) if SEED else result
        finally:
            _inside.call = False

    return computed


@functools.cache
def _record_of(test: str, kind: str) -> None:
    name = test.rsplit(" (", 1)[0].replace("/", "|")
    Path(RECORD, kind, name[:200]).touch()


def _record(kind: str = "computes") -> None:
    if test := os.environ.get("PYTEST_CURRENT_TEST"):
        _record_of(test, kind)


def _change_torch(torch: Any) -> None:
    if os.environ.get("VAECONV_TESTS_NO_ONEDNN"):
        torch.backends.mkldnn.set_flags(False)
    if SEED or RECORD:
        places = (
            (torch, PRODUCTS), (torch.nn.functional, FUNCTIONALS), (torch.Tensor, METHODS)
        )  # fmt: skip
        for place, names in places:
            for name in names:
                if function := getattr(place, name, None):
                    setattr(place, name, _wrap(name.strip("_"), function))


def _watch(module: Any) -> None:
    """Record who calls what a module is imported for."""
    name = REPLACED[module.__name__]
    function = getattr(module, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        _record("replaced")
        return function(*args, **kwargs)

    setattr(module, name, called)


class _Finder(importlib.abc.MetaPathFinder):
    """Refuses blocked modules, and changes torch and others once they are imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the tests)", name=name)
        change = _change_torch if name == "torch" else _watch
        if name != "torch" and not (RECORD and name in REPLACED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
if os.environ.get("VAECONV_TESTS_NO_POSIX"):
    import no_posix

    no_posix.take_away()
