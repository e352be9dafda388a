"""Small checkpoints with random weights, and what loaders of others make of what was written."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fixtures.compare import is_same
from fixtures.make_fixtures import make_weights, random_tensor
from tests.autoencoder.topologies import ask_outsiders, make_topology
from tests.support.compvis import DDConfig

WEIGHTS = "diffusion_pytorch_model.safetensors"

TINY = DDConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)
SHAPED = DDConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)  # levels and channels of SD 1
CONFIGS = {
    "tiny": TINY,
    "level attention": DDConfig(
        ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_levels=frozenset({1}), z_channels=16
    ),
    "no quant convs": DDConfig(ch=32, ch_mult=(1, 2), num_res_blocks=2, quant=False),
    "attention-free": DDConfig(
        ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, mid_attn=False, quant=False
    ),
}


@cache
def _weights(config: DDConfig, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    return make_weights(config, dtype, seed)


def weights_of(
    config: DDConfig = TINY, dtype: torch.dtype = torch.float32, seed: int = 21
) -> dict[str, Tensor]:
    return dict(_weights(config, dtype, seed))


def in_diffusers(weights: dict[str, Tensor], config: DDConfig = TINY) -> dict[str, Tensor]:
    """The same weights as diffusers names and shapes them, by the word of outsiders."""
    mult = tuple(config.ch_mult)
    topology = make_topology(
        mult,
        config.z_channels,
        ch=config.ch,
        layers=config.num_res_blocks,
        attention=tuple(config.attn_levels),
        mid=config.mid_attn,
        quant=config.quant,
    )
    told = ask_outsiders(topology)
    return {
        told.pairs[name]: tensor.reshape(told.diffusers[told.pairs[name]])
        for name, tensor in weights.items()
    }


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def with_old_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    def rename(name: str) -> str:
        for new, old in OLD.items():
            if f".attentions.0.{new}." in name:
                return name.replace(new, old)
        return name

    return {rename(name): tensor for name, tensor in weights.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert is_same(found[name], tensor), name


def load_ckpt(path: Path) -> dict[str, Tensor]:
    loaded = torch.load(path, weights_only=True)
    assert loaded.keys() == {"state_dict"}
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert_same(mapped["state_dict"], loaded["state_dict"])
    return loaded["state_dict"]


def load_folder(folder: Path, name: str = WEIGHTS) -> dict[str, Tensor]:
    with safe_open(folder / name, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    return load_file(folder / name)


def save_folder(folder: Path, weights: dict[str, Tensor], name: str = WEIGHTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / name, metadata={"format": "pt"})
    return folder


def save_ckpt(path: Path, weights: dict[str, Any], **beside: Any) -> Path:
    torch.save({"state_dict": weights, **beside}, path)
    return path


def prefixed(weights: dict[str, Tensor], prefix: str = "first_stage_model.") -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_bytes())


SD_TREE = DDConfig(ch=32, ch_mult=(1, 2, 4, 4))  # the tree of SD 1: 138 tensors in the decoder


def average(name: str, raw: Tensor) -> Tensor:
    return raw + random_tensor(name, tuple(raw.shape), seed=23).to(raw.dtype) / 64


def with_value(value: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights with one other value deep inside a large tensor."""
    weights = {name: t.to(dtype) for name, t in weights_of().items()}
    changed = weights["decoder.mid.block_1.conv2.weight"].clone()
    changed.view(-1)[1234] = value
    return weights | {"decoder.mid.block_1.conv2.weight": changed}
