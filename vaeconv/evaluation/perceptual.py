"""Perceptual distances over VGG16: LPIPS, and its sibling without learned weights.

VGG16 (Simonyan and Zisserman 2015) needs no torchvision: thirteen convolutions in a row, with the
names that torchvision's weights have.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Channels of the convolutions; a new row begins behind a pooling. Distances are taken at the end
# of each row: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.
_ROWS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
WIDTHS = tuple(row[-1] for row in _ROWS)
# From pictures of -1 to 1 to ImageNet's mean and deviation (``ScalingLayer`` in lpips).
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10


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

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """Map pictures ``[b, 3, h, w]`` from -1 to 1 to five layers of unit length per pixel."""
        shift, scale = (
            torch.tensor(values, device=pictures.device, dtype=pictures.dtype).reshape(1, 3, 1, 1)
            for values in (_SHIFT, _SCALE)
        )
        x = (pictures - shift) / scale
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
    distances = [
        (a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(one, other, strict=True)
    ]
    return torch.stack(distances).sum(dim=0)


def lpips(one: list[Tensor], other: list[Tensor], heads: list[Tensor]) -> Tensor:
    """Compute LPIPS version 0.1 with VGG16 (Zhang et al. 2018).

    Args:
        one: What :class:`VGG16` gives for a batch.
        other: The same for another.
        heads: The learned weights of each layer's channels, ``[c]``.

    Returns:
        ``[b]``.
    """
    distances = [
        ((a - b).square() * head.reshape(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        for a, b, head in zip(one, other, heads, strict=True)
    ]
    return torch.stack(distances).sum(dim=0)


def read_heads(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Take LPIPS' heads from the file that the lpips package ships (``weights/v0.1/vgg.pth``).

    Raises:
        KeyError: They are not in it.
    """
    return [weights[f"lin{index}.model.1.weight"].float().flatten() for index in range(len(WIDTHS))]
