"""The loss of LDM's autoencoders, as its code has it: sums over an image, means over a batch.

``LPIPSWithDiscriminator`` in ``ldm/modules/losses/contperceptual.py`` of CompVis latent-diffusion,
without the KL term, which has no gradient where the encoder is frozen, and without ``logvar``,
which no optimizer of LDM trains: it stays 0. LPIPS runs in evaluation mode; LDM's training switched
its dropout on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vaeconv.evaluation.metrics import Meter, Seen

_MOST_WEIGHT = 1e4  # that balances the adversarial gradient


class Loss(NamedTuple):
    """Loss of a batch.

    Attributes:
        total: Scalar: the sum over channels, height and width, the mean over the batch.
        pixel: Loss of pixels of each image, the mean over its elements, ``[b]``.
        lpips: LPIPS of each image, ``[b]``; zeros where it has no weight.
    """

    total: Tensor
    pixel: Tensor
    lpips: Tensor


def reconstruction_loss(
    images: Tensor, decoded: Tensor, *, pixel: str, weight: float, meter: Meter | None
) -> Loss:
    """Compare images with what was decoded of them.

    LPIPS is one number for an image and is added to each of its elements, so that its weight is
    that beside the loss of one element.

    Args:
        images: float32 ``[b, c, h, w]`` from -1 to 1.
        decoded: The same shape, not clamped; gradients flow through it.
        pixel: ``l1`` or ``mse``.
        weight: Of LPIPS.
        meter: Computes LPIPS and nothing else; None where it has no weight.

    Example:
        >>> loss = reconstruction_loss(x, decoder(z), pixel="mse", weight=0.1, meter=meter)
        >>> loss.total.backward()
    """
    differences = images - decoded
    each = (differences.abs() if pixel == "l1" else differences.square()).flatten(1).mean(dim=1)
    perceptual = torch.zeros_like(each)
    if meter is not None:
        with torch.no_grad():
            target = Seen(images, meter.layers(images), None)
        seen = Seen(decoded, meter.layers(decoded), None)
        perceptual = meter.compare(target, seen)["lpips"]
    return Loss((each + weight * perceptual).mean() * images[0].numel(), each, perceptual)


def adaptive_weight(loss: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Balance the adversarial loss: the ratio of both gradients at the last layer, 0 to 1e4.

    Args:
        loss: Scalar, of the reconstruction.
        adversarial: Scalar.
        last_layer: The weight of the decoder's last convolution.

    Returns:
        A scalar without a gradient.
    """
    norms = [
        torch.autograd.grad(one, last_layer, retain_graph=True)[0].norm()
        for one in (loss, adversarial)
    ]
    weight: Tensor = (norms[0] / (norms[1] + 1e-4)).clamp(0, _MOST_WEIGHT)
    return weight.detach()


def hinge_loss(real: Tensor, decoded: Tensor) -> Tensor:
    """Compute a discriminator's loss from its logits of images and of what was decoded."""
    loss: Tensor = 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + decoded).mean())
    return loss
