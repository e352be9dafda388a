"""Distances of decoded images and of posteriors, and their limits.

``TOLERANCES`` rest on a measurement (``benchmarks/tolerances.py``): the CompVis modules against
diffusers with the same random weights, scaled so that results reach 3 to 9, for kl-f4, kl-f8 and
kl-f16 of full size and a small one, decoding and encoding the built-in set on a CPU. Relative to
the largest magnitude of a result, or to one where that is less, the largest difference of any value
was 3.8e-6 in fp32, 2.4e-3 in fp16 and 2.2e-2 in bf16: a few roundings of the last place (6e-8,
4.9e-4 and 3.9e-3). Rounding grows with depth, and more so on latents of few pixels: for kl-f32 at a
quarter of its width on 2x3 ones it was 1.2e-5, 1.4e-2 and 1.2e-1. The limits leave a factor of two
and a half to that, and of eight in fp32, where a GPU sums in another order. What is really wrong is
beyond that in fp32, which is why fp32 always runs first: another padding or two blocks exchanged by
1e-2 and more, another epsilon (1e-5 for 1e-6) by 3e-4 to 7e-4.

``MIXED`` is for fp16 weights against bf16 ones, which run in fp32: only the weights are rounded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

# Largest difference of values from -1 to 1, by the type that models run in.
TOLERANCES = {"fp32": 1e-4, "fp16": 4e-2, "bf16": 3e-1}
MIXED = 8e-2
PEAK_RANGE = 2.0  # of an image, from -1 to 1


class Distance(NamedTuple):
    """Distance of two results of one shape.

    Attributes:
        max_abs: The largest difference; None where a value is not finite.
        mean_abs: The mean of the differences' magnitudes.
        rmse: The root of the mean squared difference.
        psnr: In dB, for a range of 2; infinite where all values are equal.
        cosine: Of the angle between them as vectors; 1 where both are zero.
        uint8: Fraction of values that differ as pixels from 0 to 255.
        largest: The largest magnitude on the first side.
    """

    max_abs: float | None
    mean_abs: float | None = None
    rmse: float | None = None
    psnr: float | None = None
    cosine: float | None = None
    uint8: float | None = None
    largest: float | None = None

    def document(self) -> dict[str, float | str | None]:
        """Describe it for machines; JSON has no infinity."""
        return {**self._asdict(), "psnr": "inf" if self.psnr == math.inf else self.psnr}


def measure(one: torch.Tensor, other: torch.Tensor) -> list[Distance]:
    """Measure a batch, in float64 where the device has it.

    Args:
        one: ``[b, c, h, w]``, of any floating-point type.
        other: The same shape.

    Returns:
        One distance for each of the batch.
    """
    import torch

    wide = torch.float32 if one.device.type == "mps" else torch.float64
    a, b = one.flatten(1).to(wide), other.flatten(1).to(wide)
    gap = (a - b).abs()
    norms = a.norm(dim=1) * b.norm(dim=1)
    cosine = torch.where(norms > 0, (a * b).sum(dim=1) / norms, torch.ones_like(norms))
    columns = [
        gap.amax(dim=1),
        gap.mean(dim=1),
        gap.square().mean(dim=1),
        cosine,
        (to_uint8(a) != to_uint8(b)).to(wide).mean(dim=1),
        a.abs().amax(dim=1),
        b.abs().amax(dim=1),
    ]
    # One transfer, and so one wait for the device.
    return [_distance(*row) for row in torch.stack(columns, dim=1).cpu().tolist()]


def _distance(
    max_abs: float, mean_abs: float, mse: float, cosine: float, uint8: float, *largest: float
) -> Distance:
    if not all(map(math.isfinite, (max_abs, *largest))):
        return Distance(None)
    psnr = 10 * math.log10(PEAK_RANGE**2 / mse) if mse else math.inf
    return Distance(max_abs, mean_abs, math.sqrt(mse), psnr, min(cosine, 1.0), uint8, largest[0])


def to_uint8(values: Any) -> Any:
    """Round values from -1 to 1 to pixels from 0 to 255, half to even, as diffusers does.

    ``VaeImageProcessor.postprocess`` in diffusers: halve, add a half, clamp, scale by 255, round.
    """
    import torch

    pixels = (values.float() / 2 + 0.5).clamp(0, 1).mul(255).round()
    return torch.nan_to_num(pixels).to(torch.uint8)


def combine(distances: list[Distance]) -> Distance:
    """Take the worst of each measure over several results."""
    if not distances or any(one.max_abs is None for one in distances):
        return Distance(None)
    columns = {name: [getattr(one, name) for one in distances] for name in Distance._fields}
    lowest = {"psnr", "cosine"}
    return Distance(
        **{name: (min if name in lowest else max)(found) for name, found in columns.items()}
    )
