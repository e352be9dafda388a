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
        in_channels: Channels of the image that is encoded.
        out_channels: Channels of the image that is decoded.
        channels: Width of each level, finest first; diffusers' ``block_out_channels``.
        layers_per_block: Resnet blocks per encoder level; a decoder level has one more.
        latent_channels: Channels of the latent; the encoder's output has twice as many.
        encoder_attention: Per level, whether each resnet block of the encoder is followed by
            attention.
        decoder_attention: The same of the decoder; finest level first, too.
        mid_attention: Whether the middle block has attention.
        quant_conv: Whether a 1x1 convolution follows the encoder.
        post_quant_conv: Whether a 1x1 convolution precedes the decoder.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    encoder_attention: tuple[bool, ...]
    decoder_attention: tuple[bool, ...]
    mid_attention: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.channels)

    @property
    def downsampling(self) -> int:
        """How many times shorter the sides of a latent are than those of its image."""
        return 1 << (self.levels - 1)

    @property
    def level_attention(self) -> tuple[bool, ...]:
        """Per level, whether either half has attention there; a CompVis config says no more."""
        return tuple(map(any, zip(self.encoder_attention, self.decoder_attention, strict=True)))
