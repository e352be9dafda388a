"""Evaluate autoencoders: reconstruct a set of pictures with each, and measure."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaeconv.errors import CheckFailedError, InputError, MissingDependencyError
from vaeconv.evaluate.frechet import (
    Moments,
    factor_of,
    frechet_distance,
    moments_of,
    no_moments,
)
from vaeconv.evaluate.images import ImageSet, Item
from vaeconv.evaluate.meter import METRICS, Meter
from vaeconv.evaluate.models import Candidate, ModelSpec, load_candidates, sample_posterior
from vaeconv.evaluate.pixels import WINDOW
from vaeconv.evaluate.protocol import PRESETS, Protocol
from vaeconv.evaluate.ranks import Ranks, joined_ranks
from vaeconv.evaluate.shards import (
    Record,
    Shard,
    ShardWriter,
    indices_of,
    open_folder,
    read_shards,
)
from vaeconv.evaluate.summary import (
    INFINITE,
    count_reasons,
    summarise_latents,
    summarise_model,
)
from vaeconv.parity.devices import (
    describe_environment,
    fitting_batch,
    import_torch,
    pick_device,
    reproducible,
)
from vaeconv.parity.side import SideOptions

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
_AHEAD = 3  # batches that are read before they are wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """How to evaluate.

    Attributes:
        protocol: How pictures are prepared and reconstructed.
        metrics: Which to compute.
        weights: Files with weights of metric nets, by net.
        may_download: Whether to fetch weights that are not there.
        allow_missing: Leave out metrics whose weights are nowhere, in place of an error.
        latent_stats: Whether to take mean and deviation of latents.
        limit: Take the first so many pictures.
        strict: Fail where a picture is skipped.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        batch_size: Pictures at a time; None for what fits.
        workers: Threads that read pictures; None for one per core.
        channels_last: Whether activations lie so.
        compiles: Whether to compile encoder and decoder.
        expect_world_size: How many processes there must be.
        restart: Forget what an earlier run with other settings left.
        sides: How to read the models.
        quiet: Draw no progress bar while fetching weights.
        on_progress: Called with what is being done, and how much of it is done of how much.
    """

    protocol: Protocol = PRESETS["card-256"]
    metrics: tuple[str, ...] = METRICS
    weights: dict[str, Path] = field(default_factory=dict)
    may_download: bool = True
    allow_missing: bool = False
    latent_stats: bool = False
    limit: int | None = None
    strict: bool = False
    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    channels_last: bool = False
    compiles: bool = False
    expect_world_size: int | None = None
    restart: bool = False
    sides: SideOptions = SideOptions()
    quiet: bool = False
    on_progress: Callable[[str, int, int], None] | None = None


def evaluate(
    specs: Sequence[ModelSpec], images: Path, parts: Path, options: EvalOptions
) -> dict[str, Any] | None:
    """Reconstruct pictures with each model, and measure how far they are from the originals.

    Every picture is read once. What is found of each goes to ``parts`` as it comes, so a run that
    was killed goes on where it was, with any number of processes; the result is the same.

    Args:
        specs: The models.
        images: A folder of pictures, or a zip file.
        parts: The folder for results as they come.
        options: How.

    Returns:
        The result as a document; None in all processes but the first.

    Raises:
        InputError: A model or the set cannot be read, or there are too few pictures.
        MissingDependencyError: Weights of a metric net, the device or a package are missing.
        UsageError: The options do not fit together, or another run's results are there.
        CheckFailedError: Pictures were skipped, and that was not allowed.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(joined_ranks(options.expect_world_size))
        pictures = ImageSet(images, options.limit)
        stack.callback(pictures.close)
        return _Evaluation(specs, pictures, parts, options, ranks, stack).run()


class _Evaluation:
    """One evaluation on its way, in one process."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        pictures: ImageSet,
        parts: Path,
        options: EvalOptions,
        ranks: Ranks,
        stack: ExitStack,
    ) -> None:
        import_torch()
        self._pictures = pictures
        self._parts = parts
        self._options = options
        self._ranks = ranks
        shown = options.on_progress if ranks.is_first else None
        self._report = shown or (lambda step, done, total: None)
        self._device = _device_of(options.device, ranks)
        self._meter = ranks.in_turn(
            lambda: Meter(
                options.metrics,
                options.weights,
                self._device,
                may_download=options.may_download,
                quiet=options.quiet or not ranks.is_first,
            )
        )
        if self._meter.missing and not options.allow_missing:
            raise next(iter(self._meter.missing.values()))
        self._candidates = load_candidates(
            specs,
            options.protocol,
            self._device,
            stack,
            how=options.sides,
            channels_last=options.channels_last,
            compiles=options.compiles,
            on_step=lambda step: self._report(step, 0, 1),
        )
        self._width = self._meter.width * (1 + len(self._candidates))
        self._started = time.monotonic()
        self._environment: dict[str, Any] = {}

    def run(self) -> dict[str, Any] | None:
        shards, todo = self._resume()
        mine = self._ranks.share(todo)
        writer = ShardWriter(self._parts, self._ranks.rank, self._width)
        try:
            self._measure(mine, len(todo), writer)
        finally:
            writer.close()
        return self._finish([*shards, writer.shard])

    def _resume(self) -> tuple[list[Shard], list[int]]:
        """Find what earlier runs found, and what is left; the same answer in all processes."""
        self._ranks.in_turn(self._open_folder)
        shards = read_shards(self._parts, self._width)
        done = set().union(*self._ranks.gather(indices_of(shards)))
        return shards, [index for index in range(len(self._pictures)) if index not in done]

    def _open_folder(self) -> bool:
        restart = self._options.restart and self._ranks.is_first
        open_folder(self._parts, self._describe_run(), restart=restart)
        return True

    def _describe_run(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "models": [
                [one.name, one.spec.ema, one.side.survey.autoencoder.prefix, *one.sha256]
                for one in self._candidates
            ],
            "pictures": self._pictures.sha256,
            "protocol": self._options.protocol._asdict(),
            "metrics": list(self._meter.metrics),
            "latent_stats": self._options.latent_stats,
            "nets": [net._asdict() for net in self._meter.nets],
        }

    def _measure(self, indices: Sequence[int], total: int, writer: ShardWriter) -> None:
        import torch

        options = self._options
        size = options.batch_size or self._fitting()
        channels = self._candidates[0].side.topology.in_channels
        workers = options.workers or os.cpu_count() or 1
        stream = self._pictures.stream(
            indices, options.protocol, channels, workers=workers, ahead=max(_AHEAD * size, workers)
        )
        waiting: _Batch | None = None
        done = 0
        with reproducible(), torch.inference_mode():
            self._environment = describe_environment(self._device)
            for items in _grouped(stream, size):
                batch = self._run_batch(items)
                # The one before is fetched while this one computes.
                if waiting:
                    done += self._write(waiting, writer)
                    self._report("measuring", done * self._ranks.world, total)
                waiting = batch
            if waiting:
                done += self._write(waiting, writer)
                self._report("measuring", total, total)

    def _fitting(self) -> int:
        widest = max(max(one.side.topology.channels[:2]) for one in self._candidates)
        return fitting_batch(self._device, self._options.protocol.size**2, widest)

    def _run_batch(self, items: list[Item]) -> _Batch:
        import numpy as np
        import torch

        good = [item for item in items if item.pixels is not None]
        if not good:
            return _Batch(items, good, [], None)
        pixels = torch.from_numpy(np.stack([item.pixels for item in good]))
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self._device, non_blocking=True)
        inputs = pixels.float() / 127.5 - 1
        if self._options.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        original = self._meter.look(pixels)
        features = [original.features]
        found = []
        for candidate in self._candidates:
            latents, decoded = self._reconstruct(candidate, inputs, [item.at for item in good])
            rounded = (decoded * 255).round() / 255 if self._options.protocol.rounds else decoded
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
        return _Batch(items, good, found, joined)

    def _reconstruct(
        self, candidate: Candidate, inputs: torch.Tensor, indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mean, logvar = candidate.encode(inputs)
        protocol = self._options.protocol
        if protocol.posterior == "sample":
            mean = sample_posterior(mean, logvar, indices, protocol.seed)
        return mean, candidate.decode(mean)

    def _write(self, batch: _Batch, writer: ShardWriter) -> int:
        """Fetch the results of a batch, and write a record of each picture."""
        values = [
            {name: tensor.double().cpu().numpy() for name, tensor in metrics.items()}
            for metrics in batch.found
        ]
        features = None if batch.features is None else batch.features.cpu().numpy()
        place = {item.at: number for number, item in enumerate(batch.good)}
        for item in batch.items:
            record: Record = {"at": item.at, "name": item.name}
            if item.reason:
                writer.add({**record, "skipped": item.reason})
                continue
            number = place[item.at]
            record["models"] = [_plain(metrics, number) for metrics in values]
            writer.add(record, None if features is None else features[number])
        return len(batch.items)

    def _finish(self, shards: list[Shard]) -> dict[str, Any] | None:
        """Bring all results together; a picture that two shards hold counts once."""
        seconds = time.monotonic() - self._started
        owned = [indices_of(shards)]
        everyone = self._ranks.gather(owned[0])
        taken: set[int] = set().union(*everyone[: self._ranks.rank])
        mine = owned[0] - taken
        records: dict[int, Record] = {}
        moments = [no_moments(self._meter.width) for _ in range(1 + len(self._candidates))]
        for shard in shards:
            fresh = {record["at"] for record in shard.records} & mine
            mine -= fresh
            records |= {record["at"]: record for record in shard.records if record["at"] in fresh}
            for rows in shard.rows(fresh):
                moments = self._add_moments(moments, rows)
        merged = [self._ranks.merge(one) for one in moments] if self._meter.width else []
        gathered = self._ranks.gather(list(records.values()))
        if not self._ranks.is_first:
            return None
        everything = sorted(
            (record for some in gathered for record in some), key=lambda record: record["at"]
        )
        return self._document(everything, merged, seconds)

    def _add_moments(self, moments: list[Moments], rows: Any) -> list[Moments]:
        width = self._meter.width
        return [
            one.joined(moments_of(rows[:, at * width : (at + 1) * width]))
            for at, one in enumerate(moments)
        ]

    def _document(
        self, records: list[Record], moments: list[Moments], seconds: float
    ) -> dict[str, Any]:
        measured = [record for record in records if "skipped" not in record]
        skipped = count_reasons(records)
        if skipped and self._options.strict:
            first = next(record for record in records if "skipped" in record)
            raise CheckFailedError(
                f"{sum(skipped.values())} pictures were skipped, such as {first['name']}: "
                f"{first['skipped']}",
                where=str(self._pictures.path),
                hint="--no-strict counts them",
            )
        if not measured:
            raise InputError("no picture in it could be read", where=str(self._pictures.path))
        protocol = self._options.protocol
        return {
            "protocol": {**protocol._asdict(), "description": protocol.describe()},
            "pictures": {
                "name": self._pictures.path.name,
                "sha256": self._pictures.sha256,
                "number": len(measured),
                "skipped": skipped,
            },
            "models": [
                self._describe_model(at, measured, distance)
                for at, distance in enumerate(self._distances(moments, len(measured)))
            ],
            "not_computed": self._not_computed(),
            "nets": [net._asdict() for net in self._meter.nets],
            "environment": self._environment,
            "processes": self._ranks.world,
            "seconds": round(seconds, 2),
            "per_picture": _columns(measured, len(self._candidates)),
        }

    def _not_computed(self) -> dict[str, str]:
        reasons = {name: str(error) for name, error in self._meter.missing.items()}
        if "ssim" in self._meter.metrics and self._options.protocol.size < WINDOW:
            reasons["ssim"] = f"pictures are smaller than its window of {WINDOW} pixels"
        return reasons

    def _distances(self, moments: list[Moments], number: int) -> list[float | None]:
        """Compute each model's rFID; None where there is none, or features are not finite."""
        import numpy as np

        if not moments or number < 2:
            return [None] * len(self._candidates)
        original, *others = moments
        is_finite = bool(np.isfinite(original.outer).all())
        factor = factor_of(original.covariance) if is_finite else None
        found = [frechet_distance(original, other, factor=factor) for other in others]
        return [distance if math.isfinite(distance) else None for distance in found]

    def _describe_model(
        self, at: int, records: list[Record], distance: float | None
    ) -> dict[str, Any]:
        candidate = self._candidates[at]
        spec = candidate.spec
        metrics: dict[str, Any] = summarise_model(records, at)
        if self._meter.width:
            metrics = {"rfid": distance, **metrics}
        return {
            "name": candidate.name,
            "path": spec.path,
            "layout": candidate.side.layout.value,
            "sha256": list(candidate.sha256),
            "train_steps": spec.train_steps,
            "comment": spec.comment,
            "link": spec.link,
            "ema": spec.ema,
            "metrics": metrics,
            "latents": summarise_latents(records, at),
        }


@dataclass(frozen=True, slots=True)
class _Batch:
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


def _device_of(wanted: str, ranks: Ranks) -> torch.device:
    """Take the process's own GPU where there are several processes."""
    import torch

    if ranks.world > 1 and wanted in ("auto", "cuda") and torch.cuda.is_available():
        count = torch.cuda.device_count()
        if ranks.local_rank >= count:
            raise MissingDependencyError(
                f"process {ranks.local_rank} has no GPU of its own: there are {count}",
                hint="start as many processes as there are GPUs, or use --device cpu",
            )
        return torch.device("cuda", ranks.local_rank)
    return pick_device(wanted)


def _grouped(items: Any, size: int) -> Any:
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


def _columns(records: Sequence[Record], models: int) -> dict[str, Any]:
    """Turn records around: one list for each metric of each model, in the order of pictures."""
    return {
        "names": [record["name"] for record in records],
        "models": [
            {
                name: [record["models"][at].get(name) for record in records]
                for name in records[0]["models"][at]
                if name != "latents"
            }
            for at in range(models)
        ],
    }
