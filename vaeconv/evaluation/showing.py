"""Reconstruct the worst and the best images of an evaluation once more, to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.models import Candidate
from vaeconv.evaluation.partial_results import Record
from vaeconv.evaluation.protocol import Protocol
from vaeconv.evaluation.samples import SHOWN, Sample, pick_extremes, to_levels, to_rgb
from vaeconv.models.devices import reproducible

if TYPE_CHECKING:
    import torch


def show_samples(
    candidates: Sequence[Candidate],
    images: ImageSet,
    records: Sequence[Record],
    protocol: Protocol,
    device: torch.device,
    *,
    on_sample: Callable[[Sample], None],
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Reconstruct some images again: of all of them only the metrics were kept.

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
    channels = candidates[0].side.topology.in_channels
    stream = images.stream(chosen, protocol, channels, workers=1, ahead=2)
    with reproducible(), torch.inference_mode():
        for done, item in enumerate(stream):
            on_progress("drawing the worst and the best images", done, len(chosen))
            if item.pixels is None:  # it could be read before, and is gone
                continue
            original = torch.from_numpy(item.pixels)[None].to(device)
            inputs = original.float() / 127.5 - 1
            made = [one.reconstruct(inputs, [item.at], protocol)[1] for one in candidates]
            rebuilt = tuple(to_rgb(to_levels(one)[0]) for one in made)
            values = tuple(measured[item.at]["models"])
            on_sample(Sample(item.name, to_rgb(original[0]), rebuilt, values))
