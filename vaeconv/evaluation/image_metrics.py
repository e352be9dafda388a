"""Metrics of single images, in torch: PSNR, SSIM, and distances over VGG16.

VGG16 (Simonyan and Zisserman 2015) needs no torchvision: thirteen convolutions in a row, with the
names that torchvision's weights have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaeconv.evaluation.protocol import WINDOW

# Channels of the convolutions; a new row begins behind a pooling. Distances are taken at the end
# of each row: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
_ROWS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
WIDTHS = tuple(row[-1] for row in _ROWS)
# From images of -1 to 1 to ImageNet's mean and deviation (``ScalingLayer`` in lpips).
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10
_SIGMA, _K1, _K2 = 1.5, 0.01, 0.03  # of SSIM


def psnr(one: Tensor, other: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each picture, for a data range of 1.

    ``10 log10(1 / MSE)``, the mean over channels, height and width of one image.

    Args:
        one: ``[b, c, h, w]`` with values from 0 to 1.
        other: The same shape.

    Returns:
        ``[b]`` in dB; infinite where two images are equal.
    """
    return -10 * (one - other).square().flatten(1).mean(dim=1).log10()


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Compute the structural similarity of each picture, for a data range of 1.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity" (2004): Gaussian window of 11x11 and sigma 1.5, K1 0.01, K2 0.03, only
    where the window lies inside the picture, each channel by itself, then their mean.

    Args:
        one: ``[b, c, h, w]`` with values from 0 to 1; height and width at least 11.
        other: The same shape.

    Returns:
        ``[b]``, at most 1.
    """
    channels = one.shape[1]
    taps = _taps(str(one.device), one.dtype)

    def blur(values: Tensor) -> Tensor:
        # The window is a product, so two passes of 11 do for one of 121.
        rows = functional.conv2d(values, taps.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1),
                                 groups=channels)  # fmt: skip
        return functional.conv2d(
            rows, taps.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels
        )

    # Around grey, where squares are small: of bright values, float32 would lose the difference.
    centred_one, centred_other = one - 0.5, other - 0.5
    around_one, around_other = blur(centred_one), blur(centred_other)
    variance_one = blur(centred_one.square()) - around_one.square()
    variance_other = blur(centred_other.square()) - around_other.square()
    covariance = blur(centred_one * centred_other) - around_one * around_other
    mean_one, mean_other = around_one + 0.5, around_other + 0.5
    c1, c2 = _K1**2, _K2**2
    numerator = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    denominator = (mean_one.square() + mean_other.square() + c1) * (
        variance_one + variance_other + c2
    )
    return (numerator / denominator).flatten(1).mean(dim=1)


@cache
def _taps(device: str, dtype: torch.dtype) -> Tensor:
    distances = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-distances.square() / (2 * _SIGMA**2))
    return (weights / weights.sum()).to(device, dtype)


class VGG16(nn.Module):
    """The convolutions of VGG16; names as in torchvision, such as ``features.0.weight``."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        self._ends: list[int] = []
        for row in _ROWS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for outputs in row:
                layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU(inplace=False)]
                width = outputs
            self._ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images ``[b, 3, h, w]`` from -1 to 1 to five layers of unit length per pixel."""
        shift, scale = (
            torch.tensor(values, device=images.device, dtype=images.dtype).reshape(1, 3, 1, 1)
            for values in (_SHIFT, _SCALE)
        )
        x = (images - shift) / scale
        layers = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._ends:
                layers.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON))
        return layers


def psim(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """Sum the squared differences over channels and layers, averaged over positions.

    LPIPS without its learned weights: a candidate for the PSIM of the Stable Diffusion cards,
    whose code was never published. That it is the same is not verified.

    Args:
        one: What :class:`VGG16` gives for a batch.
        other: The same for another.

    Returns:
        ``[b]``, from 0 to 10: features behind a ReLU have no angle beyond 90 degrees.
    """
    return _distance((a - b).square() for a, b in zip(one, other, strict=True))


def lpips(one: list[Tensor], other: list[Tensor], linear_weights: list[Tensor]) -> Tensor:
    """Compute LPIPS version 0.1 with VGG16 (Zhang et al. 2018).

    Args:
        one: What :class:`VGG16` gives for a batch.
        other: The same for another.
        linear_weights: The learned weights of each layer's channels, ``[c]``.

    Returns:
        ``[b]``.
    """
    layers = zip(one, other, linear_weights, strict=True)
    return _distance((a - b).square() * linear.reshape(1, -1, 1, 1) for a, b, linear in layers)


def _distance(layers: Iterable[Tensor]) -> Tensor:
    return torch.stack([layer.sum(dim=1).mean(dim=(1, 2)) for layer in layers]).sum(dim=0)


def read_linear_weights(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Take LPIPS' linear weights from the lpips package's file ``weights/v0.1/vgg.pth``.

    Raises:
        KeyError: They are not in it.
    """
    return [weights[f"lin{index}.model.1.weight"].float().flatten() for index in range(len(WIDTHS))]
