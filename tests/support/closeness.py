"""How near two computed results must be: the one place for it.

A sum rounds relative to its terms, so what is right on any processor is right relative to the
largest magnitude of a result, whatever one of its values comes to. ``LIMITS`` are such fractions.

They rest on these figures, largest differences by the largest magnitude. Two implementations of
the models in ``tests/models/test_compvis.py`` are up to 1.2e-5 apart in fp32, 1.4e-2 in fp16 and
1.2e-1 in bf16, also where each result of a convolution, product or normalisation is
moved by up to 5e-7, four roundings of fp32, as another processor might (``make test-numerics``).
What is wrong shows by 3e-4 and more. In fp64 the figure is that of sums, and of linear algebra with
well-conditioned matrices; a network in fp64 is held to the limit of fp32, as the same 5e-7 is done
to it.

SSIM divides differences of squares by 9e-4, and so is coarser: torchmetrics is 4.4e-5 beside it.
Pictures that are rounded to 8 bits may differ by one step wherever a value lies beside a half. Of
that ``ROUNDED`` knows what metrics come to: with the same 5e-7, and with MKL and torch kept to
SSE2, twelve pictures moved by 3.6e-5 in SSIM, 2.3e-5 of themselves in PSIM and LPIPS, and 1e-4 of
themselves in rFID.

The root of a covariance without full rank is not well-conditioned: what should be zero is 2e-16 of
the trace, and its root 1.5e-8. ``"root"`` is relative to the traces.

Results are equal to the bit only where nothing is computed (copies, casts, selections), or where
the same call is made again with the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

LIMITS = {"fp64": 1e-9, "root": 2e-7, "fp32": 5e-5, "fp16": 4e-2, "bf16": 3e-1}
SSIM = 5e-4  # of 1
ROUNDED = {"psim": 5e-4, "lpips": 5e-4, "rfid": 2e-3}

Values = torch.Tensor | np.ndarray[Any, Any] | Sequence[Any] | float


def _wide(values: Values) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def magnitude(values: Values) -> float:
    """The largest magnitude among some values."""
    return float(np.abs(_wide(values)).max(initial=0.0))


def gap(found: Values, expected: Values, *, scale: float | None = None) -> float:
    """The largest difference, as a fraction of the largest magnitude of what is expected.

    Args:
        found: Of the shape of ``expected``.
        expected: Tensor, array, list or number.
        scale: The magnitude to take instead, where what is expected is a difference of larger
            numbers: that of pictures where they should be equal, say.
    """
    one, other = _wide(found), _wide(expected)
    assert one.shape == other.shape, f"{one.shape} is not {other.shape}"
    if not np.isfinite(one).all() or not np.isfinite(other).all():
        return 0.0 if np.array_equal(one, other, equal_nan=True) else math.inf
    largest = float(np.abs(one - other).max(initial=0.0))
    scale = magnitude(other) if scale is None else scale
    return largest / scale if scale else (math.inf if largest else 0.0)


def assert_near(
    found: Values, expected: Values, precision: str = "fp32", *, scale: float | None = None
) -> None:
    """Two results of one computation are as near as ``precision`` lets them be on any processor."""
    distance = gap(found, expected, scale=scale)
    assert distance <= LIMITS[precision], (
        f"{distance:.2e} of the largest magnitude apart, {precision} allows {LIMITS[precision]:.0e}"
    )


def near(expected: Any, precision: str = "fp32", *, scale: float | None = None) -> Any:
    """What equals every result that is near: a number, or a list or array of them.

    As :func:`assert_near`, for a place within a comparison.
    """
    limit = LIMITS[precision] * (magnitude(expected) if scale is None else scale)
    return pytest.approx(expected, rel=0, abs=limit)


def near_metric(name: str, expected: Any, *, rounded: bool = True) -> Any:
    """What equals every value of a metric for pictures that are near those of ``expected``.

    The nearer two pictures are, the more of their PSNR is rounding: a root mean square of
    ``10 ** (-expected / 20)`` of the range becomes larger or smaller by that of the change.

    Args:
        name: Of the metric, as in the result of an evaluation.
        expected: A finite value, or a list of them.
        rounded: The pictures were rounded to 8 bits; otherwise they are in fp32.
    """
    worst, change = magnitude(expected), LIMITS["fp32"]
    if name == "psnr":
        if rounded:  # that share of values moves by a 255th
            change = math.sqrt(2 * 255 * change) / 255
        limit = 20 * math.log10(1 + change * 10 ** (worst / 20))
    else:
        limit = SSIM if name == "ssim" else (ROUNDED[name] if rounded else change) * worst
    return pytest.approx(expected, rel=0, abs=limit)
