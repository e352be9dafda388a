"""Images to look at: the worst and the best of a set, with what each model made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vaeconv.evaluation.metrics import BETTER_IF_LARGER
from vaeconv.models.devices import reproducible
from vaeconv.models.images import flatten

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from vaeconv.evaluation.image_set import ImageSet, Item
    from vaeconv.evaluation.models import Candidate
    from vaeconv.evaluation.protocol import Protocol

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
    values = (model.get(metric) for model in models)
    # Equal images are as good as can be; what is not finite is worse than any number.
    found = [math.inf if value is None else sign * float(value) for value in values]
    return math.inf if any(map(math.isnan, found)) else sum(found) / len(found)


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


def reconstruct_image(
    item: Item, candidates: Sequence[Candidate], protocol: Protocol, device: torch.device
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Reconstruct one image with each model.

    Returns:
        The image, uint8 ``[1, c, h, w]``, and what each model makes of it, rounded to the same;
        what is not finite becomes black.
    """
    import torch

    original = torch.from_numpy(item.pixels)[None].to(device)
    inputs = original.float() / 127.5 - 1
    decoded = [model.reconstruct(inputs, [item.at], protocol)[1] for model in candidates]
    return original, [torch.nan_to_num(one * 255).round().to(torch.uint8) for one in decoded]


def show_samples(
    candidates: Sequence[Candidate],
    images: ImageSet,
    records: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    device: torch.device,
    *,
    on_sample: Callable[[Sample], None],
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Reconstruct the worst and the best images again: of all of them only metrics were kept.

    Args:
        candidates: The models.
        images: The set.
        records: What was measured of it.
        protocol: How it was measured.
        device: Where the models are.
        on_sample: Called with each image, the worst first.
        on_progress: Called with what is being done, and how much of it is done of how much.
    """
    import torch

    measured = {record["at"]: record for record in records if "skipped" not in record}
    chosen = pick_extremes(list(measured.values()), SHOWN)
    channels = candidates[0].opened.topology.in_channels
    stream = images.stream(chosen, protocol, channels, workers=1, ahead=2)
    with reproducible(), torch.inference_mode():
        for done, item in enumerate(stream):
            on_progress("drawing the worst and the best images", done, len(chosen))
            if item.pixels is None:  # it could be read before, and is gone
                continue
            original, rebuilt = reconstruct_image(item, candidates, protocol, device)
            shown = tuple(to_rgb(levels[0]) for levels in rebuilt)
            values = tuple(measured[item.at]["models"])
            on_sample(Sample(item.name, to_rgb(original[0]), shown, values))
