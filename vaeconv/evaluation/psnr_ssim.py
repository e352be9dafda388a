"""PSNR and SSIM of single pictures, in torch, on whatever device they lie."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Compute the peak signal-to-noise ratio of each picture, for a data range of 1.

    ``10 log10(1 / MSE)``, the mean over channels, height and width of one picture.

    Args:
        one: ``[b, c, h, w]`` with values from 0 to 1.
        other: The same shape.

    Returns:
        ``[b]`` in dB; infinite where two pictures are equal.
    """
    return -10 * (one - other).square().flatten(1).mean(dim=1).log10()


def ssim(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
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

    def blur(values: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

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
    c1, c2 = K1**2, K2**2
    numerator = (2 * mean_one * mean_other + c1) * (2 * covariance + c2)
    denominator = (mean_one.square() + mean_other.square() + c1) * (
        variance_one + variance_other + c2
    )
    return (numerator / denominator).flatten(1).mean(dim=1)


@cache
def _taps(device: str, dtype: Any) -> torch.Tensor:
    import torch

    distances = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-distances.square() / (2 * SIGMA**2))
    return (weights / weights.sum()).to(device, dtype)
