"""How near two computed results must be: the one place for it.

A sum rounds relative to its terms, so what is right on any processor is right relative to the
largest magnitude of a result, whatever one of its values comes to. ``LIMITS`` are such fractions.

They rest on these figures, largest differences by the largest magnitude. Two implementations of
the models in ``tests/parity/test_compvis.py`` are up to 5e-6 apart in fp32, and 6e-6 where each
result of a convolution, product or normalisation is moved by up to 5e-7, four roundings of fp32,
as another processor might (``make test-numerics``); published sizes are 4e-6, 2.4e-3 (fp16) and
2.2e-2 (bf16) apart (``benchmarks/tolerances.py``), and models of a quarter of their width up to
8e-2 in bf16. What is wrong shows by 3e-4 and more. The limits lie between. In fp64 the figures
are those of sums and of linear algebra with well-conditioned matrices; a *network* in fp64 is
held to fp32's limit, as the same change of 5e-7 is made to it.

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

LIMITS = {"fp64": 1e-9, "fp32": 5e-5, "fp16": 1e-2, "bf16": 1e-1}

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


def near_psnr(expected: Any, precision: str = "fp32", *, rounded: bool = False) -> Any:
    """What equals every PSNR (dB) of pictures that are near those of ``expected``.

    The nearer two pictures are, the more of their distance is rounding: a root mean square of
    ``10 ** (-expected / 20)`` of the range becomes larger or smaller by that of the change.

    Args:
        expected: A finite PSNR, or a list of them.
        precision: What the pictures were computed in.
        rounded: The pictures were rounded to 8 bits, where a value beside a half may go either way.
    """
    change = LIMITS[precision]
    if rounded:  # that share of values moves by a 255th
        change = math.sqrt(2 * 255 * change) / 255
    worst = magnitude(expected)
    return pytest.approx(expected, rel=0, abs=20 * math.log10(1 + change * 10 ** (worst / 20)))
