"""The CompVis KL autoencoder as modules of our own: what the CompVis layout means, as arithmetic.

Written from the definition of the architecture (``Encoder`` and ``Decoder`` in
``ldm/modules/diffusionmodules/model.py``, ``AutoencoderKL`` in ``ldm/models/autoencoder.py`` of
CompVis latent-diffusion) and sharing no code with diffusers: two implementations that agree are
evidence, one that agrees with itself is none. Parameters have the names of the CompVis layout, so
``load_state_dict(strict=True)`` on the weights of a checkpoint is a check in itself.

Shapes are ``[batch, channels, height, width]``. ``f`` is how many times smaller a latent is than
its picture, ``2 ** (levels - 1)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaeconv.autoencoder.topology import Topology

GROUPS, EPSILON = 32, 1e-6  # ``Normalize``; the layout has no field for either


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=EPSILON)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _conv1(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=1)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around a shortcut, which is 1x1 where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = _conv3(inputs, outputs)
        self.norm2 = _norm(outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.nin_shortcut = _conv1(inputs, outputs) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, h, w]``."""
        h: Tensor = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """One head of attention over all positions, its projections written as 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = _conv1(channels, channels)
        self.k = _conv1(channels, channels)
        self.v = _conv1(channels, channels)
        self.proj_out = _conv1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, c, h, w]`` to the same shape; memory grows with ``(h * w) ** 2``."""
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2) for part in (self.q, self.k, self.v))
        scores = torch.bmm(query.transpose(1, 2), key) * x.shape[1] ** -0.5
        mixed = torch.bmm(value, scores.softmax(dim=-1).transpose(1, 2))
        projected: Tensor = self.proj_out(mixed.reshape(x.shape))
        return x + projected


class Downsample(nn.Module):
    """Halves an image; it is padded at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, c, h, w]`` to ``[b, c, h/2, w/2]``."""
        halved: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Doubles an image by repeating pixels, then smooths it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, c, h, w]`` to ``[b, c, 2h, 2w]``."""
        doubled: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class Middle(nn.Module):
    """The lowest resolution: block, attention where there is one, block."""

    def __init__(self, channels: int, *, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, c, h, w]`` to the same shape."""
        h: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return h


class Level(nn.Module):
    """The blocks of one resolution, each with its attention where the level has them.

    Args:
        inputs: Channels that come in; the first block changes them.
        outputs: Channels of the level.
        blocks: Number of blocks.
        attention: Whether an attention follows each block.
        resample: What changes the resolution at the end, by the name of its attribute; None
            where nothing does.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        blocks: int,
        attention: bool,
        resample: tuple[str, nn.Module] | None,
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResnetBlock(width, outputs) for width in widths[:-1])
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))
        self._resample = resample and resample[0]
        if resample:
            self.add_module(*resample)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, ...]``."""
        for j, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[j](x)
        if self._resample:
            x = self.get_submodule(self._resample)(x)
        return x


class Encoder(nn.Module):
    """Encoder: images to the moments of latents; level 0 is the finest."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        widths, last = topology.channels, topology.levels - 1
        self.conv_in = _conv3(topology.in_channels, widths[0])
        self.down = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                blocks=topology.layers_per_block,
                attention=topology.encoder_attention[i],
                resample=("downsample", Downsample(width)) if i != last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[last], attention=topology.mid_attention)
        self.norm_out = _norm(widths[last])
        self.conv_out = _conv3(widths[last], 2 * topology.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[b, in, h, w]`` to moments ``[b, 2z, h/f, w/f]``."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        moments: Tensor = self.conv_out(functional.silu(self.norm_out(self.mid(h))))
        return moments


class Decoder(nn.Module):
    """Decoder: latents to images; its levels have the encoder's numbers, and run from the last."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        widths, last = topology.channels, topology.levels - 1
        self.conv_in = _conv3(topology.latent_channels, widths[last])
        self.mid = Middle(widths[last], attention=topology.mid_attention)
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, last)],
                width,
                blocks=topology.layers_per_block + 1,
                attention=topology.decoder_attention[i],
                resample=("upsample", Upsample(width)) if i else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv3(widths[0], topology.out_channels)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents ``[b, z, h, w]`` to images ``[b, out, f*h, f*w]``."""
        h = self.mid(self.conv_in(z))
        for i in reversed(range(len(self.up))):
            h = self.up[i](h)
        image: Tensor = self.conv_out(functional.silu(self.norm_out(h)))
        return image


class CompVisAutoencoder(nn.Module):
    """Both halves and, where the topology has them, the 1x1 convolutions between."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        z = topology.latent_channels
        self.encoder = Encoder(topology)
        self.decoder = Decoder(topology)
        self.quant_conv = _conv1(2 * z, 2 * z) if topology.quant_conv else None
        self.post_quant_conv = _conv1(z, z) if topology.post_quant_conv else None

    def encode(self, x: Tensor) -> Tensor:
        """Map images of values from -1 to 1 to posterior moments.

        Args:
            x: ``[b, in, h, w]``; height and width are multiples of ``f``.

        Returns:
            ``[b, 2z, h/f, w/f]``: the mean, then the logarithm of the variance, not clamped.
        """
        moments: Tensor = self.encoder(x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents, not scaled by any scaling factor, to images of values around -1 to 1.

        Args:
            z: ``[b, z, h, w]``.

        Returns:
            ``[b, out, f*h, f*w]``, not clamped.
        """
        image: Tensor = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return image
