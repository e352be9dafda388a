"""The architecture of a KL autoencoder as numbers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Layout(str, Enum):
    """A naming convention, with the tensor ranks that go with it."""

    COMPVIS = "compvis"
    DIFFUSERS = "diffusers"


class Topology(NamedTuple):
    """Everything about a KL autoencoder that decides its tensor names and shapes.

    Attributes:
        in_channels: Channels of the picture that is encoded.
        out_channels: Channels of the picture that is decoded.
        channels: Width of each level, finest first; diffusers' ``block_out_channels``.
        layers_per_block: Resnet blocks per encoder level; a decoder level has one more.
        latent_channels: Channels of the latent; the encoder's output has twice as many.
        level_attention: Per level, whether each resnet block is followed by attention.
        mid_attention: Whether the middle block has attention.
        quant_conv: Whether a 1x1 convolution follows the encoder.
        post_quant_conv: Whether a 1x1 convolution precedes the decoder.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    level_attention: tuple[bool, ...]
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.channels)
