"""The loop of a run: steps, and between them what is logged, measured and saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from vaeconv.errors import CheckFailedError
from vaeconv.training.checkpoint import make_checkpoint
from vaeconv.training.engine import flatten, used_memory
from vaeconv.training.images import Schedule, TrainingImages
from vaeconv.training.options import FinetuneOptions
from vaeconv.training.run_folder import RunFolder
from vaeconv.training.trainer import Trainer
from vaeconv.training.validation import Means, Validation


class Loop:
    """Takes the steps of a run, in one process.

    Args:
        trainer: Takes a step.
        images: The images.
        schedule: Which of them make a step.
        folder: Where checkpoints and metrics go, from the first process.
        options: How often.
        validation: Measures; None for nothing to measure with.
        accelerator: ``accelerate.Accelerator``, for its trackers.
        about: Options and facts that go into a checkpoint.
    """

    def __init__(
        self,
        trainer: Trainer,
        images: TrainingImages,
        schedule: Schedule,
        folder: RunFolder,
        options: FinetuneOptions,
        validation: Validation | None,
        accelerator: Any,
        about: Mapping[str, Any],
    ) -> None:
        self._trainer, self._images, self._schedule = trainer, images, schedule
        self._folder, self._options, self._validation = folder, options, validation
        self._accelerator, self._about = accelerator, about
        self._report = options.on_progress or (lambda step, done, total: None)
        self._seconds, self._steps = 0.0, 0  # of steps that were taken here

    def run(self, start: int) -> Means | None:
        """Take the steps from one on; gives what was measured at the end.

        Raises:
            CheckFailedError: The loss or the gradient is not finite.
            InputError: No image can be read, or one is gone.
            OutputError: The folder cannot be written.
        """
        options = self._options
        own = self._schedule.batch * self._schedule.accumulate
        positions = self._schedule.positions(range(start, options.steps))
        stream = self._images.stream(positions, options.workers, 2 * own)
        means = None if start else self._validate(0)
        for step in range(start, options.steps):
            self._report("training", step - start, options.steps - start)
            begun = time.monotonic()
            try:
                record = self._trainer.step(step, list(islice(stream, own)))
            except CheckFailedError as error:
                error.where = str(self._folder.path)
                raise
            done, is_end = step + 1, step + 1 == options.steps
            self._seconds, self._steps = self._seconds + time.monotonic() - begun, self._steps + 1
            if done == 1 or done % options.log_every == 0 or is_end:
                self._log({"step": done, **record, "now": self._speed(done)})
            if done % options.val_every == 0 or is_end:
                means = self._validate(done)
            if done % options.save_every == 0 or is_end:
                self._save(done)
        return means

    def _speed(self, done: int) -> dict[str, float | int | None]:
        """Say what depends on the machine, apart from what does not."""
        seconds = self._seconds / self._steps
        return {
            "images_per_second": self._schedule.images_per_step / seconds,
            "memory": used_memory(self._accelerator.device),
            "seconds_left": seconds * (self._options.steps - done),
            "unreadable": len(self._images.skipped),
        }

    def _log(self, record: Mapping[str, Any]) -> None:
        if self._schedule.world.is_first:
            self._folder.add_metrics(record)
            if self._options.on_record:
                self._options.on_record(record)
        if self._options.track:
            self._accelerator.log(flatten(record), step=record["step"])

    def _validate(self, done: int) -> Means | None:
        if self._validation is None:
            return None
        means = self._validation.run(self._trainer.parts.shadows, lambda: self._folder.sheet(done))
        self._log({"step": done, "val": means})
        return means

    def _save(self, done: int) -> None:
        self._trainer.check_equal()
        if self._schedule.world.is_first:
            passes = done * self._schedule.images_per_step // len(self._images)
            checkpoint = make_checkpoint(
                self._trainer.parts, step=done, epoch=passes, run=self._about
            )
            self._folder.save(checkpoint, done, self._options.keep)
