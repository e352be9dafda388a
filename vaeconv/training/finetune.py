"""Fine-tune the decoder of an autoencoder, and go on where a run was stopped."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.common.option_checks import options_of, path_text
from vaeconv.common.wording import plural
from vaeconv.errors import InputError, UnsupportedModelError, UsageError
from vaeconv.evaluation.distributed import read_world
from vaeconv.evaluation.image_set import ImageSet
from vaeconv.evaluation.metric_networks import LPIPS_LINEAR, VGG
from vaeconv.evaluation.metrics import Meter
from vaeconv.models.images import LeftOut, image_mode
from vaeconv.training.base import TRAINED, load_base
from vaeconv.training.checkpoint import read_checkpoint, restore
from vaeconv.training.engine import describe_engine, flatten, start_engine
from vaeconv.training.images import Schedule, TrainingImages
from vaeconv.training.loop import Loop
from vaeconv.training.options import FinetuneOptions
from vaeconv.training.run_folder import RunFolder
from vaeconv.training.trainer import Trainer
from vaeconv.training.validation import Means, Validation
from vaeconv.weights.output_names import is_address

Facts = dict[str, Any]


class Finetuned(NamedTuple):
    """Result of a fine-tuning, or of its dry run.

    Attributes:
        base: The base, as it was named.
        checkpoint: The last checkpoint.
        step: Steps that it has.
        steps_taken: Steps that were taken now; 0 for a dry run, or where all were taken before.
        images: Number of images of the set.
        images_per_step: Images of one step, of all processes.
        trained: Number of tensors that are trained, and of their values.
        validation: Means of metrics for ``base``, ``raw`` and ``ema`` at the end; None where
            nothing was measured.
        skipped: Images that could not be read, with the reason.
        left_out: Files that are no images, with the reason.
        is_dry: Whether nothing was done.

    Example:
        >>> options = FinetuneOptions(steps=2, lpips=0, size=32, batch_size=2, device="cpu")
        >>> done = finetune("fixtures/tiny-kl.ckpt", "fixtures/pictures", "run", options)
        >>> done.step, done.images, done.checkpoint.name
        (2, 4, 'last.ckpt')
    """

    base: str
    checkpoint: Path
    step: int
    steps_taken: int
    images: int
    images_per_step: int
    trained: tuple[int, int]
    validation: Means | None = None
    skipped: tuple[LeftOut, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    is_dry: bool = False

    def __str__(self) -> str:
        verb = "would fine-tune" if self.is_dry else "fine-tuned"
        tensors, values = self.trained
        passes = self.step * self.images_per_step / self.images
        return (
            f"{verb} {self.base}: {plural(self.step, 'step')} of "
            f"{plural(self.images_per_step, 'image')}, {passes:.3g} passes over "
            f"{plural(self.images, 'image')}, {plural(tensors, 'tensor')} of {values:,} values"
        )


def finetune(
    base: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: FinetuneOptions,
    *,
    dry_run: bool = False,
) -> Finetuned | None:
    """Train the decoder of an autoencoder on images; the encoder stays as it is, to the bit.

    The same call goes on where a run was stopped, from its last checkpoint, and computes what it
    would have computed without the stop. A checkpoint is one of training as LDM's are: raw
    weights, EMA weights, state of the optimizer.

    Args:
        base: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        data: A folder, a zip file, a tar file, a folder of tar files, an image, or an address of a
            dataset on the Hub.
        out: The folder of the run.
        options: How.
        dry_run: Check everything, and train nothing.

    Returns:
        The result; None in all processes but the first.

    Raises:
        InputError: The base or an image set cannot be read.
        MissingDependencyError: accelerate, a tracker, the device or weights of LPIPS are missing.
        UsageError: The options do not fit together, another run is in the folder, or processes do
            not see each other.
        OutputError: The folder cannot be written, or holds something else.
        CheckFailedError: The loss or the gradient is not finite.
        HubError: The Hub or another process cannot be reached.

    Example:
        >>> options = FinetuneOptions(steps=2, lpips=0, size=32, batch_size=2, device="cpu")
        >>> print(finetune("fixtures/tiny-kl.ckpt", "fixtures/pictures", "run", options))
        fine-tuned fixtures/tiny-kl.ckpt: 2 steps of 2 images, 1 passes over 4 images, 68 tensors \
of 127,415 values
        >>> convert("run/last.ckpt", "out", ConvertOptions(ema=True), dry_run=True).layout.value
        'diffusers'
    """
    options = options_of(FinetuneOptions, options)
    name, place = path_text("base", base), path_text("data", data)
    folder = RunFolder(Path(path_text("out", out)))
    if not is_address(name) and folder.path.resolve() in Path(name).resolve().parents:
        raise UsageError(
            "the base lies in the folder of the run, which --restart would clear",
            where=name,
            hint="name another --out, or take the base out of it",
        )
    with ExitStack() as stack:
        stack.enter_context(folder)
        return _Run(name, place, folder, options, stack).run(dry_run=dry_run)


class _Run:
    """One run on its way, in one process: base, images and networks are loaded."""

    def __init__(
        self, base: str, data: str, folder: RunFolder, options: FinetuneOptions, stack: ExitStack
    ) -> None:
        if not read_world().is_first:  # the first process alone speaks
            options = replace(options, on_progress=None, on_record=None)
        self._name, self._folder, self._options = base, folder, options
        self._report = options.on_progress or (lambda step, done, total: None)
        self._step("importing torch and accelerate")
        self._accelerator, self._world = start_engine(options, folder.path)
        self._set = self._open(data, stack)
        self._val = self._open(options.val, stack) if options.val else None
        self._step("loading the base")
        self._base = self._world.first_then_others(
            lambda: load_base(base, options.reading, ema=options.ema, size=options.size)
        )
        topology = self._base.topology
        if topology.in_channels != topology.out_channels:
            raise UnsupportedModelError(
                f"takes images of {topology.in_channels} channels and makes images of "
                f"{topology.out_channels}",
                where=base,
            )
        self._images = TrainingImages(self._set, image_mode(topology.in_channels, base), options)
        self._schedule = Schedule(options.batch_size, options.accumulate, self._world)
        self._lpips = self._load_meter("lpips") if options.loss.lpips else None

    def _step(self, step: str) -> None:
        self._report(step, 0, 1)

    def _open(self, place: str, stack: ExitStack) -> ImageSet:
        found = self._world.first_then_others(lambda: ImageSet(place, None, self._step))
        stack.callback(found.close)
        return found

    def _load_meter(self, *metrics: str) -> Meter:
        options = self._options
        files = {VGG.name: options.vgg_weights, LPIPS_LINEAR.name: options.lpips_weights}
        meter = self._world.first_then_others(
            lambda: Meter(
                metrics,
                {name: path for name, path in files.items() if path is not None},
                self._accelerator.device,
                may_download=options.may_download,
                quiet=True,
                on_step=self._step,
            )
        )
        for error in meter.missing.values():
            error.hint = f"{error.hint}; --lpips 0 trains without"
            raise error
        return meter

    def _describe(self) -> tuple[Facts, Facts]:
        """Say what decides this run, and what else is worth knowing of it."""
        run = {
            **self._options.decisive(),
            "base": self._base.weights_sha256,
            "images": self._set.fingerprint,
            "validation": self._val.fingerprint if self._val else None,
            "images_per_step": self._schedule.images_per_step,
            "metric_networks": [
                [net.name, net.sha256] for net in (self._lpips.networks if self._lpips else [])
            ],
        }
        facts = {
            "base_name": self._base.name,
            "data_name": self._set.source or self._set.label,
            "number_of_images": len(self._set),
            "versions": describe_engine(),
        }
        return run, facts

    def run(self, *, dry_run: bool) -> Finetuned | None:
        """Take the steps that are left to take."""
        options, world, folder = self._options, self._world, self._folder
        run, facts = self._describe()
        if dry_run:
            world.first_then_others(lambda: folder.check(run, restart=options.restart))
            return self._result(0, None, is_dry=True)
        world.first_then_others(
            lambda: folder.begin(run, facts, restart=options.restart) if world.is_first else None
        )
        validation = None
        if self._val:  # it measures the base first, so before that is trained
            meters = [self._load_meter("psnr", "ssim"), *([self._lpips] if self._lpips else [])]
            self._step("measuring the base")
            validation = Validation(
                self._val, options.size, self._base.model.to(self._accelerator.device), meters,
                world, self._accelerator.device,
            )  # fmt: skip
        self._step("preparing the decoder")
        trainer = Trainer(self._base, options, self._schedule, self._lpips, self._accelerator)
        start = self._go_on(trainer)
        if options.track:
            self._accelerator.init_trackers("vaeconv", config=flatten({**run, **facts}))
        loop = Loop(
            trainer, self._images, self._schedule, folder, options, validation, self._accelerator,
            {**run, **facts},
        )  # fmt: skip
        means = loop.run(start)
        if options.track:
            self._accelerator.end_training()
        return self._result(options.steps - start, means)

    def _go_on(self, trainer: Trainer) -> int:
        """Go on from the last checkpoint, where there is one; gives its number of steps."""
        start, last = 0, self._folder.last
        if last.exists():
            self._step("reading the last checkpoint")
            checkpoint = read_checkpoint(last)
            start = checkpoint["global_step"]
            if start > self._options.steps:
                raise UsageError(
                    f"the run has {plural(start, 'step')} already, more than --steps "
                    f"{self._options.steps}",
                    where=str(last),
                )
            try:
                restore(trainer.parts, checkpoint)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                reason = str(error).split("\n")[0]
                raise InputError(
                    f"not of this run ({reason})",
                    where=str(last),
                    hint="--restart starts over",
                ) from error
        if len(set(self._world.gather(start))) > 1:
            raise UsageError(
                "not all processes see the checkpoints of the run",
                where=str(self._folder.path),
                hint="name a folder that all machines share",
            )
        if self._world.is_first:
            self._folder.go_on_from(start or None)
        return start

    def _result(self, taken: int, means: Means | None, *, is_dry: bool = False) -> Finetuned | None:
        skipped = {one for some in self._world.gather(self._images.skipped) for one in some}
        if not self._world.is_first:
            return None
        trained = [
            one.numel()
            for name, one in self._base.model.named_parameters()
            if name.startswith(TRAINED)
        ]
        return Finetuned(
            self._name,
            self._folder.last,
            self._options.steps,
            taken,
            len(self._set),
            self._schedule.images_per_step,
            (len(trained), sum(trained)),
            means,
            tuple(sorted(skipped)),
            tuple(self._set.left_out),
            is_dry,
        )
