"""Inception v3 as the Fréchet inception distance has it, with the weights of torch-fidelity.

The network of Szegedy et al. 2016 as TensorFlow released it on 2015-12-05, whose pooling differs
from torchvision's in three places: averages leave the padding out, and the last block takes the
maximum. Parameters have the names in ``weights-inception-2015-12-05-6726825d.pth``
(``FeatureExtractorInceptionV3`` in torch-fidelity), so its weights load as they are. torch-fidelity
itself needs torchvision, which cannot be imported beside every build of torch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 2048
_SIDE = 299


class Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to ``[b, outputs, ...]``."""
        activated: Tensor = functional.relu(self.bn(self.conv(x)), inplace=True)
        return activated


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def _shrink(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2)


Step = tuple[str, int, "int | tuple[int, int]"]  # name, channels, kernel
_WIDE, _HIGH = (1, 7), (7, 1)


class Mixed(nn.Module):
    """Branches over one input, joined by channels.

    Args:
        inputs: Channels that come in.
        branches: Convolutions one after the other; the last may be a list of two that take the same
            input. Where ``pooled`` is None, the last halves height and width.
        pool: Pools the input for the last branch.
        pooled: Channels of the 1x1 convolution behind the pooling; None for none.
    """

    def __init__(
        self,
        inputs: int,
        branches: list[list[Step | list[Step]]],
        pool: Callable[[Tensor], Tensor],
        pooled: int | None = None,
    ) -> None:
        super().__init__()
        self._pool = pool
        self._branches: list[list[list[str]]] = []
        for branch in branches:
            width = inputs
            stages = [stage if isinstance(stage, list) else [stage] for stage in branch]
            self._branches.append([[name for name, *_ in stage] for stage in stages])
            for stage in stages:
                shrinks = pooled is None and stage is stages[-1]
                for name, outputs, kernel in stage:
                    high, wide = kernel if isinstance(kernel, tuple) else (kernel, kernel)
                    padding = 0 if shrinks else (high // 2, wide // 2)
                    stride = 2 if shrinks else 1
                    conv = Conv(width, outputs, kernel, stride=stride, padding=padding)
                    self.add_module(name, conv)
                width = stage[0][1]
        self.branch_pool = None if pooled is None else Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, inputs, h, w]`` to all branches' channels."""
        outputs = []
        for branch in self._branches:
            values = [x]
            for names in branch:
                values = [self.get_submodule(name)(values[0]) for name in names]
            outputs += values
        pooled = self._pool(x)
        outputs.append(pooled if self.branch_pool is None else self.branch_pool(pooled))
        return torch.cat(outputs, dim=1)


def _block_a(inputs: int, pooled: int) -> Mixed:
    return Mixed(
        inputs,
        [
            [("branch1x1", 64, 1)],
            [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ],
        _average,
        pooled,
    )


def _block_b() -> Mixed:
    return Mixed(
        288,
        [
            [("branch3x3", 384, 3)],
            [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ],
        _shrink,
    )


def _block_c(narrow: int) -> Mixed:
    return Mixed(
        768,
        [
            [("branch1x1", 192, 1)],
            [
                ("branch7x7_1", narrow, 1),
                ("branch7x7_2", narrow, _WIDE),
                ("branch7x7_3", 192, _HIGH),
            ],
            [
                ("branch7x7dbl_1", narrow, 1),
                ("branch7x7dbl_2", narrow, _HIGH),
                ("branch7x7dbl_3", narrow, _WIDE),
                ("branch7x7dbl_4", narrow, _HIGH),
                ("branch7x7dbl_5", 192, _WIDE),
            ],
        ],
        _average,
        192,
    )


def _block_d() -> Mixed:
    return Mixed(
        768,
        [
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)],
            [
                ("branch7x7x3_1", 192, 1),
                ("branch7x7x3_2", 192, _WIDE),
                ("branch7x7x3_3", 192, _HIGH),
                ("branch7x7x3_4", 192, 3),
            ],
        ],
        _shrink,
    )


def _block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    def fork(name: str) -> list[Step]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    return Mixed(
        inputs,
        [
            [("branch1x1", 320, 1)],
            [("branch3x3_1", 384, 1), fork("branch3x3_2")],
            [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")],
        ],
        pool,
        192,
    )


class InceptionV3(nn.Module):
    """Extracts the 2048 features before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = _block_b()
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, _average)
        self.Mixed_7c = _block_e(2048, _maximum)

    def forward(self, pixels: Tensor) -> Tensor:
        """Extract features.

        Args:
            pixels: uint8 ``[b, 3, h, w]``.

        Returns:
            float32 ``[b, 2048]``.
        """
        x = (resize_as_tensorflow_1(pixels.float(), _SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_shrink(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features: Tensor = x.mean(dim=(2, 3))
        return features


def resize_as_tensorflow_1(images: Tensor, side: int) -> Tensor:
    """Resize by bilinear interpolation where pixel ``i`` of the result lies at ``i * in / out``.

    TensorFlow 1's ``resize_bilinear`` without ``align_corners``; no option of torch's
    ``interpolate`` puts the pixels there.

    Args:
        images: float ``[b, c, h, w]``.
        side: Height and width of the result.
    """
    for dimension in (2, 3):
        size = images.shape[dimension]
        at = torch.arange(side, dtype=torch.float32, device=images.device) * (size / side)
        low = at.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        weight = (at - low).reshape((-1, 1) if dimension == 2 else (-1,))
        lower, upper = (images.index_select(dimension, index) for index in (low, high))
        images = lower + (upper - lower) * weight
    return images
