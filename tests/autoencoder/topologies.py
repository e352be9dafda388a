"""Autoencoders to test with, and what outsiders say of their names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn

from vaeconv.autoencoder.config import Scaling, build_config
from vaeconv.autoencoder.topology import Topology
from vaeconv.models.compvis import CompVisAutoencoder

Shapes = dict[str, tuple[int, ...]]


def make_topology(
    mult: tuple[int, ...],
    z: int,
    *,
    ch: int = 128,
    layers: int = 2,
    attention: tuple[int, ...] = (),
    mid: bool = True,
    quant: bool = True,
) -> Topology:
    return Topology(
        in_channels=3,
        out_channels=3,
        channels=tuple(ch * m for m in mult),
        layers_per_block=layers,
        latent_channels=z,
        encoder_attention=tuple(level in attention for level in range(len(mult))),
        decoder_attention=tuple(level in attention for level in range(len(mult))),
        mid_attention=mid,
        quant_conv=quant,
        post_quant_conv=quant,
    )


# Published widths, with the number of tensors and of parameters that their files have.
PUBLISHED: dict[str, tuple[Topology, int, int]] = {
    "kl-f4": (make_topology((1, 2, 4), 3), 204, 55_312_063),
    "sd1": (make_topology((1, 2, 4, 4), 4), 248, 83_653_863),
    "x4-upscaler": (make_topology((1, 2, 4), 4), 204, 55_325_927),
    "kl-f16": (make_topology((1, 1, 2, 2, 4), 16, attention=(4,)), 342, 69_610_963),
    "kl-f32": (make_topology((1, 1, 2, 2, 4, 4), 64, attention=(4, 5)), 436, 103_880_131),
    "sgm-8chn": (make_topology((1, 2, 4, 4), 8, quant=False), 244, 83_709_075),
    "sgm-attnfree": (
        make_topology((1, 2, 4), 4, layers=4, mid=False, quant=False),
        276,
        78_016_651,
    ),
    "sd3": (make_topology((1, 2, 4, 4), 16, quant=False), 244, 83_819_683),
}
SD1, SD3 = PUBLISHED["sd1"][0], PUBLISHED["sd3"][0]
X4, KL_F4 = PUBLISHED["x4-upscaler"][0], PUBLISHED["kl-f4"][0]


@st.composite
def topologies(draw: st.DrawFn, *, max_levels: int = 6) -> Topology:
    """Any autoencoder that the table should know; widths are multiples of 32."""
    levels = draw(st.integers(1, max_levels))
    channels = [32, *draw(st.lists(st.sampled_from((32, 64, 96)), min_size=5, max_size=5))]
    return Topology(
        in_channels=draw(st.sampled_from((1, 3, 4))),
        out_channels=draw(st.sampled_from((1, 3, 4))),
        channels=tuple(channels[:levels]),
        layers_per_block=draw(st.integers(1, 4)),
        latent_channels=draw(st.integers(1, 9)),
        encoder_attention=tuple(draw(st.booleans()) for _ in range(levels)),
        decoder_attention=tuple(draw(st.booleans()) for _ in range(levels)),
        mid_attention=draw(st.booleans()),
        quant_conv=draw(st.booleans()),
        post_quant_conv=draw(st.booleans()),
    )


def build_compvis(topology: Topology) -> CompVisAutoencoder:
    """Our reference modules, without memory."""
    with torch.device("meta"):
        return CompVisAutoencoder(topology)


def build_diffusers(config: Mapping[str, Any]) -> Any:
    """The real ``diffusers.AutoencoderKL`` of a config, without memory."""
    from diffusers import AutoencoderKL as DiffusersAutoencoderKL

    with torch.device("meta"):
        return DiffusersAutoencoderKL.from_config(dict(config))


def diffusers_config(topology: Topology) -> dict[str, Any]:
    return build_config(topology, Scaling(1.0), sample_size=64)


def shapes_of(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def count_parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def execution_order(model: nn.Module, topology: Topology) -> list[str]:
    """Names of the modules with weights in the order in which encoding and decoding run them."""
    order: list[str] = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    side = 2 ** (topology.levels - 1)
    with torch.inference_mode():
        model.encode(torch.empty(1, topology.in_channels, 2 * side, 2 * side, device="meta"))
        model.decode(torch.empty(1, topology.latent_channels, 2, 2, device="meta"))
    return order


class Outsiders(NamedTuple):
    """What two independent implementations make of a topology.

    Attributes:
        pairs: CompVis name to diffusers name: both run the same modules in the same order,
            whatever they call them.
        compvis: Names and shapes in the reference.
        diffusers: Names and shapes in diffusers.
    """

    pairs: dict[str, str]
    compvis: Shapes
    diffusers: Shapes


@lru_cache(maxsize=8)
def ask_outsiders(topology: Topology) -> Outsiders:
    compvis = build_compvis(topology)
    diffusers = build_diffusers(diffusers_config(topology))
    shapes = shapes_of(compvis), shapes_of(diffusers)
    left, right = execution_order(compvis, topology), execution_order(diffusers, topology)
    assert len(left) == len(set(left)) == len(right) == len(set(right))
    pairs = {
        f"{one}.{parameter}": f"{other}.{parameter}"
        for one, other in zip(left, right, strict=True)
        for parameter in ("weight", "bias")
    }
    return Outsiders(pairs, *shapes)
