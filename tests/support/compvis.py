"""The ``ddconfig`` of a CompVis autoencoder, as tests and fixtures write it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vaeconv.autoencoder.topology import Topology
from vaeconv.models.compvis import CompVisAutoencoder


@dataclass(frozen=True, slots=True)
class DDConfig:
    """What tells one KL autoencoder from another.

    Attributes:
        ch: Channels of the first level; each level has a multiple of it.
        ch_mult: The multiple at each level, from full resolution down.
        num_res_blocks: Resnet blocks in an encoder level; a decoder level has one more.
        attn_levels: Levels with an attention after each block.
        z_channels: Channels of a latent.
        in_channels: Channels of a picture that goes in.
        out_ch: Channels of a picture that comes out.
        quant: Whether 1x1 convolutions stand between the latent and either half.
        mid_attn: Whether the middle has an attention.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_levels: frozenset[int] = frozenset()
    z_channels: int = 4
    in_channels: int = 3
    out_ch: int = 3
    quant: bool = True
    mid_attn: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from full resolution down."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def topology(self) -> Topology:
        """The same as vaeconv says it."""
        return Topology(
            in_channels=self.in_channels,
            out_channels=self.out_ch,
            channels=self.widths,
            layers_per_block=self.num_res_blocks,
            latent_channels=self.z_channels,
            encoder_attention=(
                attention := tuple(i in self.attn_levels for i in range(len(self.ch_mult)))
            ),
            decoder_attention=attention,
            mid_attention=self.mid_attn,
            quant_conv=self.quant,
            post_quant_conv=self.quant,
        )


def parameter_shapes(config: DDConfig) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every parameter, without making one."""
    with torch.device("meta"):
        model = CompVisAutoencoder(config.topology)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
