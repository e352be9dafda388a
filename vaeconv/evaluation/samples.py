"""Images to look at: the worst and the best of a set, with what each model made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.evaluation.metrics import BETTER_IF_LARGER
from vaeconv.evaluation.summary import INFINITE
from vaeconv.models.images import flatten

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

SHOWN = 8  # images of an evaluation, half of them the worst
COMPARED = 24  # images of a comparison, the same way
_JUDGES = ("lpips", "psim", "psnr", "ssim")  # the first that was computed ranks images


class Sample(NamedTuple):
    """An image, and its reconstructions.

    Attributes:
        name: Its path in the set.
        original: uint8 ``[h, w, 3]``.
        reconstructions: The same for each model.
        values: Metrics of each model, as records have them.
    """

    name: str
    original: Pixels
    reconstructions: tuple[Pixels, ...]
    values: tuple[Mapping[str, float | str | None], ...]


def judge_of(models: Sequence[Mapping[str, Any]]) -> str | None:
    """Name the metric that ranks images, of those that a record's models have."""
    return next((name for name in _JUDGES if all(name in one for one in models)), None)


def badness(models: Sequence[Mapping[str, Any]], metric: str) -> float:
    """Tell how bad an image came out on average over the models; the larger, the worse."""
    sign = -1.0 if metric in BETTER_IF_LARGER else 1.0
    found = [sign * _number(one.get(metric), metric) for one in models]
    return math.inf if any(map(math.isnan, found)) else sum(found) / len(found)


def _number(value: float | str | None, metric: str) -> float:
    if value == INFINITE:
        return math.inf
    if value is None:  # not finite: worse than any number
        return -math.inf if metric in BETTER_IF_LARGER else math.inf
    return float(value)


def pick_extremes(records: Sequence[Mapping[str, Any]], most: int) -> list[int]:
    """Pick the worst and the best images of records, as many of each.

    Returns:
        Their places in the set, the worst first; all of them where there are no more than ``most``.
    """
    metric = judge_of(records[0]["models"]) if records else None
    if metric is None:
        return [record["at"] for record in records[:most]]
    ranked = sorted(records, key=lambda one: (-badness(one["models"], metric), one["at"]))
    if len(ranked) > most:
        ranked = [*ranked[: most // 2], *ranked[len(ranked) - (most - most // 2) :]]
    return [record["at"] for record in ranked]


class Extremes:
    """Keeps the worst and the best of samples that come one after the other.

    Args:
        most: How many to keep.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ranked: list[tuple[float, int, Sample]] = []
        self._number = 0

    def add(self, sample: Sample) -> None:
        """Look at one more sample."""
        metric = judge_of(sample.values)
        self._number += 1
        rank = -badness(sample.values, metric) if metric else 0.0
        self._ranked.append((rank, self._number, sample))
        self._ranked.sort(key=lambda one: one[:2])
        if len(self._ranked) > self._most:
            del self._ranked[self._most // 2]

    @property
    def samples(self) -> list[Sample]:
        """The worst first."""
        return [sample for _, _, sample in self._ranked]


def to_rgb(pixels: Any) -> Pixels:
    """Turn ``[c, h, w]`` of grey, RGB or RGBA on a device into ``[h, w, 3]`` here, on white."""
    import numpy as np
    from PIL import Image

    rows = pixels.cpu().numpy().transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(rows if rows.shape[2] > 1 else rows[:, :, 0]))
    return np.asarray(flatten(image, "RGB"))


def to_levels(decoded: Any) -> Any:
    """Round decoded images from 0 to 1 to uint8; what is not finite becomes black."""
    import torch

    return torch.nan_to_num(decoded * 255).round().to(torch.uint8)
