"""Evaluate autoencoders: reconstruct a set of images with each, and measure."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.writers.writable import check_writable
from vaeconv.common.option_checks import options_of
from vaeconv.errors import MissingDependencyError
from vaeconv.evaluation.batches import BatchRunner, grouped
from vaeconv.evaluation.distributed import World, device_of, join_world
from vaeconv.evaluation.document import check_records, make_document
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.metrics import Meter
from vaeconv.evaluation.models import Candidate, ModelSpec, as_specs, load_candidates
from vaeconv.evaluation.partial_results import (
    OtherRunError,
    Shard,
    ShardWriter,
    digest_of,
    hashes_of,
    merge_shards,
    open_folder,
    read_shards,
)
from vaeconv.evaluation.samples import show_samples
from vaeconv.evaluation.tables import make_tables
from vaeconv.models.devices import (
    describe_environment,
    describe_versions,
    fitting_batch,
    import_torch,
    reproducible,
)

SCHEMA_VERSION = 2  # of what is kept of a run; 1 knew images by names and sizes only
_AHEAD = 3  # batches that are read before they are wanted


class EvalResult(dict[str, Any]):
    """Result of an evaluation, as the document that ``eval --json`` prints.

    ``docs/evaluation.md`` says what its fields mean.

    Example:
        >>> options = EvalOptions(metrics=("psnr",), protocol=Protocol("small", size=32))
        >>> result = evaluate(["fixtures/tiny-diffusers"], "fixtures/pictures", options)
        >>> [model["name"] for model in result["models"]], result["pictures"]["number"]
        (['tiny-diffusers'], 4)
    """

    def __str__(self) -> str:
        lines = []
        for table in make_tables([self]):
            rows = [", ".join(map(" ".join, zip(table.head, row, strict=True)))
                    for row in table.rows]  # fmt: skip
            lines += [table.title, *(f"  {row}" for row in rows)]
        return "\n".join(lines)


def evaluate(
    models: Sequence[ModelSpec | str | os.PathLike[str]],
    images: str | os.PathLike[str],
    options: EvalOptions | None = None,
    *,
    parts: Path | None = None,
) -> EvalResult | None:
    """Reconstruct images with each model, and measure how far they are from the originals.

    Every image is read once. What is found of each goes to ``parts`` as it comes, so a run that
    was killed goes on where it was, with any number of processes; the result is the same.

    Args:
        models: The models: paths and addresses, or what else there is to say of them.
        images: A folder, a zip file, an image, or an address of a dataset on the Hub.
        options: How.
        parts: The folder for results as they come; by default they are kept for this run only.

    Returns:
        The result as a document; None in all processes but the first.

    Raises:
        InputError: A model or the set cannot be read, or there are too few images.
        MissingDependencyError: Weights of a metric network, the device or a package are missing.
        UsageError: The options do not fit together, another run's progress is there, or an image
            is not what it was when it was measured.
        OutputError: Progress cannot be written.
        HubError: Another process is gone.
        CheckFailedError: Pictures were skipped, and that was not allowed.

    Example:
        >>> options = EvalOptions(metrics=("psnr", "ssim"), protocol=Protocol("small", size=32))
        >>> result = evaluate(["fixtures/tiny-kl.ckpt"], "fixtures/pictures", options)
        >>> print(result)  # doctest: +ELLIPSIS
        pictures (32x32, 4 images)
          Model tiny-kl.ckpt, PSNR ..., SSIM ...
    """
    options, specs = options_of(EvalOptions, options), as_specs(models)
    with ExitStack() as stack:
        parts = parts or Path(stack.enter_context(tempfile.TemporaryDirectory()), "parts")
        world = join_world(options.expect_world_size)
        check_writable(parts, is_folder=True)
        if not world.is_first:  # the first process alone speaks, and removes what is there
            options = replace(options, on_progress=None, quiet=True, restart=False, discards=False)
        report = options.on_progress or (lambda step, done, total: None)
        found = world.first_then_others(
            lambda: ImageSet(images, options.limit, lambda step: report(step, 0, 1))
        )
        stack.callback(found.close)
        return Evaluation(specs, found, parts, options, world, stack).run()


class Evaluation:
    """One evaluation on its way, in one process: models and networks are loaded.

    It takes what :func:`evaluate` does, with the images open; the stack closes the models' files.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        images: ImageSet,
        parts: Path,
        options: EvalOptions,
        world: World,
        stack: ExitStack,
    ) -> None:
        self._images = images
        self._parts = parts
        self._options = options
        self._world = world
        self._report = options.on_progress or (lambda step, done, total: None)
        self._step("importing torch and diffusers")
        import_torch()
        self._device = device_of(options.device, world)
        self._meter = world.first_then_others(
            lambda: Meter(
                options.metrics,
                options.weights,
                self._device,
                may_download=options.may_download,
                quiet=options.quiet,
                on_step=self._step,
            )
        )
        if self._meter.missing and not options.allow_missing:
            raise next(iter(self._meter.missing.values()))
        if not self._meter.metrics and not options.latent_stats:
            raise MissingDependencyError(
                "no metric can be computed: the weights of all their networks are missing",
                hint="psnr and ssim need none",
            )
        self._candidates = load_candidates(
            specs,
            options.protocol,
            self._device,
            stack,
            how=options.reading,
            channels_last=options.channels_last,
            compiles=options.compiles,
            on_step=self._step,
        )
        # Features of the original, and of what each model made of it.
        self._width = self._meter.width * (1 + len(self._candidates))
        self._workers = options.workers or os.cpu_count() or 1
        self._started = time.monotonic()
        self._environment: dict[str, Any] = {}
        self._run = {
            "schema_version": SCHEMA_VERSION,
            "models": [_identify(candidate) for candidate in self._candidates],
            "images": images.fingerprint,
            "protocol": asdict(options.protocol),
            "metrics": list(self._meter.metrics),
            "latent_stats": options.latent_stats,
            "metric_networks": [[network.name, network.sha256] for network in self._meter.networks],
            "versions": describe_versions(),
        }

    def _step(self, step: str) -> None:
        self._report(step, 0, 1)

    def run(self) -> EvalResult | None:
        """Measure what is left to measure, and bring it all together, as :func:`evaluate`."""
        restart, discards = self._options.restart, self._options.discards
        self._world.first_then_others(
            lambda: open_folder(self._parts, self._run, restart=restart, discards=discards)
        )
        shards = read_shards(self._parts, self._width)
        known: dict[int, str | None] = {}
        for some in self._world.gather(hashes_of(shards)):
            known |= some
        self._check_unchanged(known)
        todo = [index for index in range(len(self._images)) if index not in known]
        writer = ShardWriter(self._parts, self._world.rank, self._width)
        try:
            self._measure(self._world.share(todo), len(todo), writer)
        finally:
            writer.close()
        return self._finish([*shards, writer.shard])

    def _check_unchanged(self, known: Mapping[int, str | None]) -> None:
        """Check that images are what they were when they were measured, by their bytes."""
        mine = self._world.share(sorted(known))
        if mine:
            self._step(f"looking whether {len(known)} measured images are unchanged")
        found = self._images.hashes(mine, workers=self._workers)
        changed = [at for at, sha256 in zip(mine, found, strict=True) if sha256 != known[at]]
        everywhere = sorted(at for some in self._world.gather(changed) for at in some)
        if everywhere:
            raise OtherRunError(
                f"{self._images.names[everywhere[0]]} is not what it was when it was measured",
                where=str(self._parts),
                hint="--restart measures everything again",
            )

    def _measure(self, indices: Sequence[int], total: int, writer: ShardWriter) -> None:
        import torch

        runner = BatchRunner(self._candidates, self._meter, self._options)
        size = self.batch_size()
        stream = self._images.stream(
            indices,
            self._options.protocol,
            self._candidates[0].opened.topology.in_channels,
            workers=self._workers,
            ahead=max(_AHEAD * size, self._workers),
        )
        done = 0
        self._report("measuring images", 0, total)
        with reproducible(), torch.inference_mode():
            self._environment = describe_environment(self._device)
            for batch in runner.run_all(grouped(stream, size)):
                for record, features in batch.records():
                    writer.add(record, features)
                done += len(batch.items)
                self._report("measuring images", min(done * self._world.size, total), total)

    def batch_size(self) -> int:
        """How many images there are in a batch: as many as was said, or as fit."""
        if self._options.batch_size:
            return self._options.batch_size
        widest = max(max(one.opened.topology.channels[:2]) for one in self._candidates)
        return fitting_batch(self._device, self._options.protocol.size**2, widest)

    def _finish(self, shards: Sequence[Shard]) -> EvalResult | None:
        seconds = time.monotonic() - self._started
        self._step("computing the statistics")
        found = merge_shards(shards, self._world, self._meter.width)
        if not self._world.is_first:
            return None
        check_records(found.records, self._images.place, strict=self._options.strict)
        run = {
            "run_sha256": digest_of(self._run),
            "environment": self._environment,
            "processes": self._world.size,
            "seconds": round(seconds, 2),
        }
        protocol = self._options.protocol
        result = EvalResult(
            make_document(found, self._images, self._candidates, self._meter, protocol, run)
        )
        if self._options.on_sample:
            show_samples(
                self._candidates,
                self._images,
                found.records,
                protocol,
                self._device,
                on_sample=self._options.on_sample,
                on_progress=self._report,
            )
        return result


def _identify(candidate: Candidate) -> list[Any]:
    """Say what decides a model's reconstructions: its weights, whatever file they are in."""
    opened = candidate.opened
    config = opened.checkpoint.config
    return [
        candidate.name,
        opened.layout.value,
        opened.groups,
        opened.activation,
        candidate.spec.ema,
        candidate.weights_sha256,
        hashlib.sha256(config.text.encode()).hexdigest() if config else None,
    ]
