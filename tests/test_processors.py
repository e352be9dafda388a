"""What stands in for another processor does so, in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.closeness import LIMITS
from tests.support.processors import PLUGIN, ROOT

COMPARED = """
import torch
torch.manual_seed(1)
layer, x = torch.nn.Conv2d(4, 4, 3), torch.randn(2, 4, 9, 9)
with torch.inference_mode():
    whole, again, alone = layer(x), layer(x), layer(x[:1])
assert torch.equal(whole, again)
print(float((whole[:1] - alone).abs().max() / whole.abs().max()), float(whole.sum()))
"""

# Whatever multiplies or normalises below torch's own functions, where nobody changed it.
MISSED = """
import sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from diffusers import AutoencoderKL
from vaeconv.evaluation.inception import InceptionV3
from vaeconv.evaluation.image_metrics import VGG16, ssim
from vaeconv.models.compvis import CompVisAutoencoder
from fixtures import make_fixtures as make

inside, seen, missed = sys.modules["sitecustomize"]._inside, set(), set()

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(part in name for part in ("conv", "mm.", "addmm", "norm", "attention", "einsum")):
            (seen if getattr(inside, "call", False) else missed).add(name)
        return function(*args, **(kwargs or {}))

with torch.device("meta"):
    ours, picture = CompVisAutoencoder(make.KL.topology), torch.empty(1, 3, 80, 80)
    theirs = AutoencoderKL.from_config(AutoencoderKL.load_config(make.FOLDER / "tiny-diffusers"))
    nets = VGG16(), InceptionV3().eval()
with torch.inference_mode(), Watch():
    ours.decode(ours.encode(picture)[:, :4])
    theirs.decode(theirs.encode(picture).latent_dist.mode())
    for net in nets:
        net(picture)
    ssim(picture, picture)
assert {"aten.conv2d.default", "aten.group_norm.default", "aten.bmm.default"} <= seen, seen
print(sorted(missed - {"aten.linalg_vector_norm.default"}))
"""


def run(code: str, **variables: str) -> str:
    path = os.pathsep.join([str(PLUGIN), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_gradient_goes_past_the_change() -> None:
    code = (
        "import torch; layer = torch.nn.Linear(2, 1)\n"
        "layer(torch.tensor([[3.0, 5.0]])).sum().backward(); print(layer.weight.grad.tolist())"
    )
    assert run(code, VAECONV_TESTS_JITTER="1") == "[[3.0, 5.0]]"


def test_last_places_differ_by_batch_and_seed_and_by_little() -> None:
    results = [run(COMPARED, VAECONV_TESTS_JITTER=seed).split() for seed in ("1", "1", "2")]
    assert results[0] == results[1] != results[2]
    for apart, _ in results:
        assert 1e-7 < float(apart) < LIMITS["fp32"] / 10


def test_no_product_and_no_normalisation_is_left_out() -> None:
    assert run(MISSED, VAECONV_TESTS_JITTER="1") == "[]"


def test_blocked_modules_are_not_installed() -> None:
    code = (
        "from vaeconv.checkpoint import cast\nimport zlib\n"
        "try:\n    import isal\nexcept ImportError as error:\n    print(error.name)"
    )
    assert run(code, VAECONV_TESTS_BLOCK="numkong,isal") == "isal"


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("import torch; torch.ones(2, 2) @ torch.ones(2, 2)", {"computes"}),
        ("import vaeconv; vaeconv.prune('fixtures/tiny-kl.ckpt', OUT)", {"replaced"}),
        (
            "import vaeconv; vaeconv.verify(*['fixtures/tiny-kl.ckpt'] * 2)",
            {"computes", "replaced"},
        ),
        ("import torch, vaeconv; torch.zeros(2) + 1", set()),
    ],
)
def test_who_computes_and_who_casts_is_recorded(code: str, kinds: set[str], tmp_path: Path) -> None:
    for kind in ("computes", "replaced"):
        (tmp_path / kind).mkdir()
    test = "tests/test_x.py::test_y[z] (call)"
    code = code.replace("OUT", repr(str(tmp_path / "out.safetensors")))
    run(code, VAECONV_TESTS_RECORD=str(tmp_path), PYTEST_CURRENT_TEST=test)
    found = {path.parent.name for path in tmp_path.rglob("*|*")}
    assert found == kinds
