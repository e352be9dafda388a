"""Half precision on a CPU: what a sum in fp64 gives, rounded; nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fixtures.make_fixtures import FOLDER as FIXTURES
from vaeconv.models.half import fp32_sums
from vaeconv.models.load import Model
from vaeconv.models.open_model import ModelOptions, open_model

SUMMING = ("conv2d", "linear", "bmm", "scaled_dot_product_attention")
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SUMS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "convolution": (
        lambda x, w, b: functional.conv2d(x, w, b, padding=1),
        (values(1, 256, 8, 8), values(16, 256, 3, 3, seed=1), values(16, seed=2)),
    ),
    "convolution by names": (
        lambda x, w, b: functional.conv2d(input=x, weight=w, bias=b, stride=2),
        (values(1, 64, 9, 9), values(16, 64, 3, 3, seed=1), values(16, seed=2)),
    ),
    "layer": (functional.linear, (values(5, 4096), values(8, 4096, seed=1), values(8, seed=2))),
    "product": (torch.bmm, (values(2, 64, 512), values(2, 512, 64, seed=1))),
    "attention": (
        functional.scaled_dot_product_attention,
        (values(1, 1, 64, 32), values(1, 1, 64, 32, seed=1), values(1, 1, 64, 32, seed=2)),
    ),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", SUMS)
def test_sums_are_rounded_once(name: str, dtype: str) -> None:
    function, given = SUMS[name]
    halves = [one.to(HALVES[dtype]) for one in given]
    exact = function(*(one.double() for one in halves))
    with fp32_sums(halves[0]):
        found = function(*halves)
    assert found.dtype is HALVES[dtype]
    # Half of the last place is the rounding, one more is for another processor's; the rest is for
    # sums in fp32, in any order.
    limit = 1.6 * torch.finfo(HALVES[dtype]).eps * exact.abs() + 1e-5 * exact.abs().max()
    assert ((found.double() - exact).abs() <= limit).all()


class Seen(TorchFunctionMode):
    """Remembers the types that functions get from a mode inside of this one."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[tuple[str, torch.dtype]] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        given = (*args, *(kwargs or {}).values())
        self.types |= {(function.__name__, one.dtype) for one in given if isinstance(one, Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", HALVES)
def test_nothing_is_summed_in_half(dtype: str) -> None:
    for name, (function, given) in SUMS.items():
        halves = [one.to(HALVES[dtype]) for one in given]
        with Seen() as seen, fp32_sums(halves[0]):
            function(*halves)
        kinds = {kind for summed, kind in seen.types if summed in SUMMING}
        assert kinds == {torch.float32}, name


def test_what_overflows_is_infinite() -> None:
    layer = nn.Conv2d(64, 1, 1, bias=False, dtype=torch.float16)
    nn.init.constant_(layer.weight, 64.0)
    for value, expected in ((15.0, 61440.0), (-17.0, -math.inf)):
        data = torch.full((1, 64, 1, 1), value, dtype=torch.float16)
        with torch.no_grad(), fp32_sums(data):
            assert layer(data).item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", ["tiny-attn.ckpt", "tiny-diffusers"])
@pytest.mark.parametrize("dtype", HALVES)
def test_models_run_so(name: str, dtype: str) -> None:
    """In both layouts, and about as in fp32; hooks see the type that is asked for."""
    side = open_model(FIXTURES / name, "A", ModelOptions(), ema=False)
    model = side.load()
    side.close()
    seen: set[torch.dtype] = set()

    def look(layer: nn.Module, given: object, made: Tensor) -> None:
        seen.add(made.dtype)

    for layer in model.module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(look)
    latents = values(1, side.topology.latent_channels, 8, 8)
    exact = results(model, latents, torch.float32)
    assert seen == {torch.float32}
    seen.clear()
    found = results(model, latents, HALVES[dtype])
    assert seen == {HALVES[dtype]}
    for one, other in zip(found, exact, strict=True):
        gap = (one.double() - other.double()).abs().max()
        assert 0 < gap <= 16 * torch.finfo(HALVES[dtype]).eps * other.abs().max()


def results(model: Model, latents: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    model.to(torch.device("cpu"), dtype)
    with torch.inference_mode():
        picture = model.decode(latents.to(dtype))
        return picture, model.encode(values(1, 3, 32, 32).clamp(-1, 1).to(dtype))


def test_what_is_no_half_stays() -> None:
    """Masks are no weights, and operands of two types fail as they do everywhere else."""
    half, wide = values(2, 2, 8, 8).half(), values(2, 2, 8, 8).float()
    mask = torch.tensor([[True, False]]).repeat(8, 4)
    attend = functional.scaled_dot_product_attention
    masked = attend(half.float(), half.float(), half.float(), attn_mask=mask)
    whole = torch.tensor([[[2**25 + 1]]])
    exact = torch.ones(1, 1, dtype=torch.float64)
    with Seen() as seen, fp32_sums(half):
        found = attend(half, half, half, attn_mask=mask)
        assert (found.float() - masked).abs().max() <= 2e-3 * masked.abs().max()
        assert torch.bmm(whole, torch.ones_like(whole)).item() == 2**25 + 1
        assert functional.linear(exact, exact).dtype is torch.float64
        for one, other in ((half, wide), (wide, half)):
            with pytest.raises(RuntimeError):
                functional.linear(one, other[0, 0])
        named = functional.conv2d(stride=1, weight=half[:, :, :3, :3], input=half)
        assert named.dtype is torch.float16
    name = "scaled_dot_product_attention"
    assert seen.types >= {("linear", torch.float64), (name, torch.bool), (name, torch.float32)}
    assert (name, torch.float16) not in seen.types


def test_fp32_and_fp64_stay() -> None:
    for dtype in (torch.float32, torch.float64):
        data = values(1, 8, 4, 4).to(dtype)
        weight = values(3, 8, 3, 3, seed=1).to(dtype)
        with fp32_sums(data):
            assert torch.equal(functional.conv2d(data, weight), functional.conv2d(data, weight))
            assert functional.conv2d(data, weight).dtype is dtype
