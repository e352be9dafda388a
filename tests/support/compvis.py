"""The CompVis KL autoencoder as modules of our own: the reference that conversions answer to.

Written from the definition of the architecture and sharing no code with diffusers, with the
parameter names of the CompVis layout, so that ``load_state_dict(strict=True)`` on an untouched
checkpoint is a check in itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _conv1(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=1)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a shortcut, which is 1x1 where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Makes the block for pictures of ``inputs`` channels."""
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv3(inputs, outputs)
        self.norm2 = _norm(outputs)
        self.conv2 = _conv3(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = _conv1(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, inputs, h, w] to [b, outputs, h, w]."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        return shortcut + h


class AttnBlock(nn.Module):
    """One head of attention over all positions, its projections written as 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        """Makes the attention for pictures of ``channels`` channels."""
        super().__init__()
        self.norm = _norm(channels)
        self.q = _conv1(channels, channels)
        self.k = _conv1(channels, channels)
        self.v = _conv1(channels, channels)
        self.proj_out = _conv1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, c, h, w] to the same shape."""
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2) for part in (self.q, self.k, self.v))
        scores = torch.einsum("bci,bcj->bij", query, key) * x.shape[1] ** -0.5
        mixed = torch.einsum("bij,bcj->bci", scores.softmax(dim=-1), value)
        return x + self.proj_out(mixed.reshape(x.shape))


class Downsample(nn.Module):
    """Halves a picture; the padding is at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        """Makes the convolution for ``channels`` channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, c, h, w] to [b, c, h/2, w/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles a picture by repeating pixels, then smooths it."""

    def __init__(self, channels: int) -> None:
        """Makes the convolution for ``channels`` channels."""
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, c, h, w] to [b, c, 2h, 2w]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The lowest resolution: block, attention, block."""

    def __init__(self, channels: int, *, attention: bool) -> None:
        """Makes the middle; without attention its place holds nothing that has a name."""
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, c, h, w] to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution, each with its attention where the level has them."""

    def __init__(self, inputs: int, outputs: int, *, blocks: int, attention: bool) -> None:
        """Makes ``blocks`` blocks, of which the first changes the width."""
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResnetBlock(widths[j], outputs) for j in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, inputs, h, w] to [b, outputs, h, w], before any change of resolution."""
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        return x


class Encoder(nn.Module):
    """From pictures to the moments of the latents."""

    def __init__(self, config: DDConfig) -> None:
        """Makes the levels from full resolution down."""
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.conv_in = _conv3(config.in_channels, config.ch)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(
                widths[i - 1] if i else config.ch,
                width,
                blocks=config.num_res_blocks,
                attention=i in config.attn_levels,
            )
            if i != last:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[last], attention=config.mid_attn)
        self.norm_out = _norm(widths[last])
        self.conv_out = _conv3(widths[last], 2 * config.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps pictures [b, in, h, w] to moments [b, 2z, h/f, w/f]."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """From latents to pictures; ``up.i`` is level i, so it runs from the last to the first."""

    def __init__(self, config: DDConfig) -> None:
        """Makes the levels, numbered as in the encoder."""
        super().__init__()
        widths = config.widths
        last = len(widths) - 1
        self.conv_in = _conv3(config.z_channels, widths[last])
        self.mid = Middle(widths[last], attention=config.mid_attn)
        self.up = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(
                widths[min(i + 1, last)],
                width,
                blocks=config.num_res_blocks + 1,
                attention=i in config.attn_levels,
            )
            if i != 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv3(widths[0], config.out_ch)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents [b, z, h, w] to pictures [b, out, f*h, f*w]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Both halves and, where the family has them, the 1x1 convolutions between."""

    def __init__(self, config: DDConfig) -> None:
        """Makes the autoencoder that ``config`` describes."""
        super().__init__()
        z = config.z_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.quant:
            self.quant_conv = _conv1(2 * z, 2 * z)
            self.post_quant_conv = _conv1(z, z)

    def encode(self, x: Tensor) -> Tensor:
        """Maps pictures [b, in, h, w] in [-1, 1] to moments [b, 2z, h/f, w/f]: mean, logvar."""
        moments = self.encoder(x)
        return self.quant_conv(moments) if hasattr(self, "quant_conv") else moments

    def decode(self, z: Tensor) -> Tensor:
        """Maps unscaled latents [b, z, h, w] to pictures [b, out, f*h, f*w] around [-1, 1]."""
        if hasattr(self, "post_quant_conv"):
            z = self.post_quant_conv(z)
        return self.decoder(z)


def parameter_shapes(config: DDConfig) -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of every parameter, without making one."""
    with torch.device("meta"):
        model = AutoencoderKL(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
