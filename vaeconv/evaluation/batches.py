"""Batches of pictures: reconstructed with each model, measured, and turned into records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.image_set import Item
from vaeconv.evaluation.metrics import INFINITE, Meter
from vaeconv.evaluation.models import Candidate
from vaeconv.evaluation.partial_results import Record

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose results may still be on their way.

    Attributes:
        items: All of it.
        found: Of each model, its metrics, ``[b]``.
        features: ``[b, (1 + models) * 2048]``.
    """

    items: list[Item]
    found: list[dict[str, torch.Tensor]]
    features: torch.Tensor | None

    def records(self) -> Iterator[tuple[Record, Any]]:
        """Fetch the results, and give each picture's record and its row of features, if any."""
        values = [
            {name: tensor.double().cpu().numpy() for name, tensor in metrics.items()}
            for metrics in self.found
        ]
        features = None if self.features is None else self.features.cpu().numpy()
        number = -1  # of an image among those that could be read
        for item in self.items:
            record: Record = {"at": item.at, "name": item.name, "sha256": item.sha256}
            if item.remark:
                record["remark"] = item.remark
            if item.reason:
                yield {**record, "skipped": item.reason}, None
                continue
            number += 1
            record["models"] = [_plain(metrics, number) for metrics in values]
            yield record, None if features is None else features[number]


class BatchRunner:
    """Reconstructs and measures.

    Args:
        candidates: The models.
        meter: Measures, on the device where all is computed.
        options: How images are reconstructed, and whether sums of latents are taken.
    """

    def __init__(self, candidates: Sequence[Candidate], meter: Meter, options: EvalOptions) -> None:
        self._candidates = candidates
        self._meter = meter
        self._options = options

    def run_all(self, groups: Iterable[list[Item]]) -> Iterator[Batch]:
        """Work on batches; each is given when the next is under way, to be fetched meanwhile."""
        waiting: Batch | None = None
        for items in groups:
            batch = self.run(items)
            if waiting:
                yield waiting
            waiting = batch
        if waiting:
            yield waiting

    def run(self, items: list[Item]) -> Batch:
        """Start the work on a batch; what it finds stays on the device."""
        import numpy as np
        import torch

        protocol = self._options.protocol
        good = [item for item in items if item.pixels is not None]
        if not good:
            return Batch(items, [], None)
        pixels = torch.from_numpy(np.stack([item.pixels for item in good]))
        if self._meter.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self._meter.device, non_blocking=True)
        inputs = pixels.float() / 127.5 - 1
        if self._options.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        places = [item.at for item in good]
        original = self._meter.look(pixels)
        features = [original.features]
        found = []
        for candidate in self._candidates:
            latents, decoded = candidate.reconstruct(inputs, places, protocol)
            rounded = (decoded * 255).round() / 255 if protocol.rounds else decoded
            seen = self._meter.look(rounded)
            metrics = self._meter.compare(original, seen)
            if self._options.latent_stats:
                wide = latents.flatten(2).cpu().double()
                metrics["sum"], metrics["squares"] = wide.sum(dim=2), wide.square().sum(dim=2)
                metrics["number"] = torch.full((len(wide),), wide.shape[2])
            found.append(metrics)
            features.append(seen.features)
        joined = None
        if original.features is not None:
            joined = torch.cat([one for one in features if one is not None], dim=1)
        return Batch(items, found, joined)


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut a stream into lists of so many; the last may be shorter."""
    remaining = iter(items)
    while group := list(islice(remaining, size)):
        yield group


def _plain(metrics: dict[str, Any], number: int) -> dict[str, Any]:
    """Turn the numbers of one image into what JSON can say."""
    record: dict[str, Any] = {}
    for name, values in metrics.items():
        if name in ("sum", "squares", "number"):
            record.setdefault("latents", {})[name] = values[number].tolist()
        else:
            value = float(values[number])
            is_equal = name == "psnr" and value == math.inf
            record[name] = INFINITE if is_equal else value if math.isfinite(value) else None
    return record
