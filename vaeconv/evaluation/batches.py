"""Batches of pictures: reconstructed with each model, measured, and turned into records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaeconv.evaluation.image_set import Item
from vaeconv.evaluation.metrics import Meter
from vaeconv.evaluation.models import Candidate
from vaeconv.evaluation.partial_results import Record
from vaeconv.evaluation.protocol import Protocol
from vaeconv.evaluation.summary import INFINITE

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch whose results may still be on their way.

    Attributes:
        items: All of it.
        good: Those that could be read.
        found: Of each model, its metrics, ``[b]``.
        features: ``[b, (1 + models) * 2048]``.
    """

    items: list[Item]
    good: list[Item]
    found: list[dict[str, torch.Tensor]]
    features: torch.Tensor | None

    def records(self) -> Iterator[tuple[Record, Any]]:
        """Fetch the results, and give each picture's record and its row of features, if any."""
        values = [
            {name: tensor.double().cpu().numpy() for name, tensor in metrics.items()}
            for metrics in self.found
        ]
        features = None if self.features is None else self.features.cpu().numpy()
        place = {item.at: number for number, item in enumerate(self.good)}
        for item in self.items:
            record: Record = {"at": item.at, "name": item.name, "sha256": item.sha256}
            if item.remark:
                record["remark"] = item.remark
            if item.reason:
                yield {**record, "skipped": item.reason}, None
                continue
            number = place[item.at]
            record["models"] = [_plain(metrics, number) for metrics in values]
            yield record, None if features is None else features[number]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRunner:
    """Reconstructs and measures.

    Attributes:
        candidates: The models.
        meter: What measures, on the device where all is computed.
        protocol: How pictures are reconstructed.
        latent_stats: Whether to take sums of latents.
        channels_last: Whether activations lie so.
    """

    candidates: Sequence[Candidate]
    meter: Meter
    protocol: Protocol
    latent_stats: bool
    channels_last: bool

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

        good = [item for item in items if item.pixels is not None]
        if not good:
            return Batch(items, good, [], None)
        pixels = torch.from_numpy(np.stack([item.pixels for item in good]))
        if self.meter.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.meter.device, non_blocking=True)
        inputs = pixels.float() / 127.5 - 1
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        original = self.meter.look(pixels)
        features = [original.features]
        found = []
        for candidate in self.candidates:
            latents, decoded = candidate.reconstruct(
                inputs, [item.at for item in good], self.protocol
            )
            rounded = (decoded * 255).round() / 255 if self.protocol.rounds else decoded
            seen = self.meter.look(rounded)
            metrics = self.meter.compare(original, seen)
            if self.latent_stats:
                wide = latents.flatten(2).cpu().double()
                metrics["sum"], metrics["squares"] = wide.sum(dim=2), wide.square().sum(dim=2)
                metrics["number"] = torch.full((len(wide),), wide.shape[2])
            found.append(metrics)
            features.append(seen.features)
        joined = None
        if original.features is not None:
            joined = torch.cat([one for one in features if one is not None], dim=1)
        return Batch(items, good, found, joined)


def grouped(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Cut a stream into lists of so many; the last may be shorter."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _plain(metrics: dict[str, Any], number: int) -> dict[str, Any]:
    """Turn the numbers of one picture into what JSON can say."""
    record: dict[str, Any] = {}
    for name, values in metrics.items():
        if name in ("sum", "squares", "number"):
            record.setdefault("latents", {})[name] = values[number].tolist()
        else:
            value = float(values[number])
            is_equal = name == "psnr" and value == math.inf
            record[name] = INFINITE if is_equal else value if math.isfinite(value) else None
    return record
