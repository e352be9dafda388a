"""Pairs of autoencoders that should, or should not, be the same, and small references for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from tests.support.compvis import DDConfig
from tests.support.samples import WEIGHTS, config_of
from vaeconv.cli import app
from vaeconv.errors import CheckFailedError
from vaeconv.models.open_model import ModelOptions
from vaeconv.parity.compare_outputs import Limits
from vaeconv.parity.options import VerifyOptions
from vaeconv.parity.result import Comparison, Verification
from vaeconv.parity.verify import verify

State = dict[str, Tensor]
# The levels of SD 1, and attention in one of them.
MODEL = DDConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_levels=frozenset({2}))


def write_references(
    path: Path, config: DDConfig = MODEL, *, count: int = 2, side: int = 3, dtype: str = "f4"
) -> Path:
    """Write a small file of latents and pictures, as ``vaeconv latents`` does."""
    numbers = np.random.default_rng(17)
    factor = 2 ** (len(config.ch_mult) - 1)
    tensors: dict[str, Any] = {}
    for index in range(count):
        shape = (config.z_channels, side, side + index)
        tensors[f"latent.{index}"] = (numbers.normal(size=shape) * 3).astype(dtype)
        pixels = (config.in_channels, side * factor, (side + index) * factor)
        tensors[f"image.{index}"] = numbers.integers(0, 256, pixels, dtype=np.uint8)
    save_arrays(tensors, path)
    return path


def change_folder(
    source: Path,
    target: Path,
    *,
    weights: Callable[[State], Mapping[str, Tensor]] = lambda found: found,
    config: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found,
) -> Path:
    """Copy a diffusers folder with other weights or another config."""
    shutil.copytree(source, target)
    found = weights(load_file(target / WEIGHTS))
    save_file(
        {name: tensor.contiguous() for name, tensor in found.items()},
        target / WEIGHTS,
        metadata={"format": "pt"},
    )
    (target / "config.json").write_text(json.dumps(config(config_of(target))))
    return target


def exchanged(weights: Mapping[str, Tensor], one: str, other: str) -> State:
    """Exchange the tensors whose names begin so, where their shapes let them."""
    result = dict(weights)
    for name, tensor in weights.items():
        for here, there in ((one, other), (other, one)):
            if name.startswith(here):
                partner = there + name.removeprefix(here)
                if partner in weights and weights[partner].shape == tensor.shape:
                    result[partner] = tensor
    return result


def without(weights: Mapping[str, Tensor], *parts: str) -> State:
    return {n: t for n, t in weights.items() if not any(part in n for part in parts)}


def add_to(weights: Mapping[str, Tensor], name: str, *, at: int = 0, value: float = 0.5) -> State:
    """The same weights, but for one element."""
    changed = weights[name].clone()
    changed.view(-1)[at] += value
    return {**weights, name: changed}


def check(
    one: str | Path,
    other: str | Path | None = None,
    references: Path | None = None,
    *,
    drop_in_for: Path | None = None,
    atol: float | None = None,
    min_psnr: float | None = None,
    variant: str | None = None,
    **options: Any,
) -> Verification:
    """Verify in this process, on the CPU unless told otherwise."""
    device = {} if options.get("weights_only") else {"device": "cpu"}
    chosen = VerifyOptions(
        latents=None if options.get("weights_only") else references,
        limits=Limits(atol, min_psnr),
        b=ModelOptions(variant=variant),
        **{**device, **options},
    )
    return verify(one, other, chosen, drop_in_for=drop_in_for)


def run(*args: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args])


def cast(weights: Mapping[str, Tensor], dtype: torch.dtype) -> State:
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def same(result: Verification) -> Comparison:
    assert result.same is not None
    return result.same


def assert_same(result: Verification, *, tensors: int | None = None) -> None:
    """It passed, and by the whole way: every tensor, and both kinds of references."""
    comparison = same(result)
    assert comparison.problems == ()
    assert comparison.weights.is_same
    assert {outcome.kind for outcome in comparison.outcomes} == {"decode", "encode"}
    assert len(comparison.outcomes) >= 4
    assert tensors is None or len(comparison.weights.results) == tensors
    result.check()


def failure_of(result: Verification) -> str:
    """What the command says of it."""
    assert not result.ok
    with pytest.raises(CheckFailedError) as caught:
        result.check()
    assert caught.value.exit_code == 4
    return str(caught.value)


def change_diffusers(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let diffusers load models that compute something else."""
    from diffusers import AutoencoderKL

    load = AutoencoderKL.from_pretrained

    def load_changed(*args: Any, **options: Any) -> Any:
        model, info = load(*args, **options)
        change(model)
        return model, info

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", staticmethod(load_changed))


def one_epsilon(model: Any) -> None:
    model.decoder.up_blocks[1].resnets[0].norm2.eps = 1e-3
