"""Others' code that judges a training: taming's loss, and LDM's LitEma.

Neither is a dependency. Install both into a folder of its own, and name that::

    pip install --no-deps --target DIR \\
        taming-transformers-rom1504==0.0.6 stable-diffusion-sdkit==2.1.5
    VAECONV_TESTS_ORACLES=DIR pytest tests/training
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from tests.evaluation.test_perceptual import HEADS, Torchvision

VARIABLE = "VAECONV_TESTS_ORACLES"


@contextmanager
def importing(**stand_ins: ModuleType) -> Iterator[None]:
    """Let the oracles be imported, with stand-ins for what they import and need not."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no folder with the oracles")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(folder)
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name.replace("__", "."), module)
        yield


def lit_ema() -> Any:
    """The class ``ldm.modules.ema.LitEma``."""
    with importing():
        return import_module("ldm.modules.ema").LitEma


def taming_losses(vgg: Mapping[str, Tensor]) -> Any:
    """The module ``taming.modules.losses.vqperceptual``, its VGG16 with weights of ours."""
    models = ModuleType("torchvision.models")
    vars(models)["vgg16"] = lambda pretrained: Torchvision(dict(vgg))
    torchvision = ModuleType("torchvision")
    vars(torchvision)["models"] = models
    util = ModuleType("taming.util")  # fetches a file, and needs a client for that
    vars(util)["get_ckpt_path"] = lambda *_: HEADS
    stand_ins = {"torchvision": torchvision, "torchvision__models": models, "taming__util": util}
    with importing(**stand_ins):
        for name in [one for one in sys.modules if one.startswith("taming.modules")]:
            del sys.modules[name]
        return import_module("taming.modules.losses.vqperceptual")
