"""Networks that are trained: the decoder as one module, and the discriminator that may join."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vaeconv.models.compvis import AttnBlock, ResnetBlock, Upsample

_KERNEL, _SLOPE, _DEVIATION = 4, 0.2, 0.02  # as in pix2pix, and in LDM after it


class TrainedPart(nn.Module):
    """The decoder with its ``post_quant_conv``; names are those of the whole autoencoder.

    Args:
        model: A ``CompVisAutoencoder``, whose modules these are.
        recomputes: Whether activations inside of blocks are computed again for the gradient.
    """

    def __init__(self, model: Any, *, recomputes: bool = False) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.post_quant_conv = model.post_quant_conv
        if recomputes:
            for block in self.decoder.modules():
                if isinstance(block, ResnetBlock | AttnBlock | Upsample):
                    # Nothing in a block is random, so there is no state of a generator to keep.
                    run = partial(checkpoint, block.forward, use_reentrant=False,
                                  preserve_rng_state=False)  # fmt: skip
                    block.forward = run  # type: ignore[method-assign]

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents ``[b, z, h, w]`` to images ``[b, out, f*h, f*w]`` around -1 to 1."""
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        images: Tensor = self.decoder(latents)
        return images


class Discriminator(nn.Module):
    """LDM's PatchGAN: five convolutions, batch norm behind the middle three.

    ``NLayerDiscriminator`` of taming-transformers with its defaults: 2,765,633 parameters for RGB,
    each of its values sees 70x70 pixels. Names are those under ``loss.discriminator`` there.

    Args:
        channels: Of the images.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int, *, norm: bool = True) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, _KERNEL, stride, padding=1, bias=not norm)
            return [conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.LeakyReLU(_SLOPE)]

        *layers, _ = [
            *layer(channels, 64, 2, norm=False),
            *layer(64, 128, 2),
            *layer(128, 256, 2),
            *layer(256, 512, 1),
            *layer(512, 1, 1, norm=False),
        ]
        self.main = nn.Sequential(*layers)

    def initialise(self, seed: int) -> None:
        """Draw weights: convolutions N(0, 0.02), scales of norms N(1, 0.02), biases as torch's."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.main:
                if isinstance(module, nn.Conv2d):
                    module.reset_parameters()
                    nn.init.normal_(module.weight, 0.0, _DEVIATION)
                elif isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.weight, 1.0, _DEVIATION)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[b, c, h, w]`` from -1 to 1 to logits ``[b, 1, h/8 - 2, w/8 - 2]``."""
        logits: Tensor = self.main(images)
        return logits
