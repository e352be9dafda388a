"""The images of a run: which one stands where, and how it is cut, from the seed alone.

A run takes images one after the other, and each has its position in that stream. Which image it
is, its crop, whether it is mirrored and the noise of its latent follow from the seed and that
position, so a run that goes on needs nothing but the number of steps it has done.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from vaeconv.errors import InputError
from vaeconv.evaluation.distributed import World
from vaeconv.evaluation.image_set import ImageSet, read_ahead
from vaeconv.models.images import LeftOut, alone_if_large, decode, quiet_pillow, to_square
from vaeconv.training.options import FinetuneOptions

_ROOM = 1.5  # LDM resized to 384 pixels and cut out 256


class Taken(NamedTuple):
    """An image of a batch.

    Attributes:
        at: Its position in the stream.
        name: Its path in the set.
        pixels: uint8 ``[c, size, size]``.
    """

    at: int
    name: str
    pixels: Any


class Schedule(NamedTuple):
    """Which positions belong to which batch.

    Attributes:
        batch: Images that a process runs at a time.
        accumulate: Batches of a process for one step.
        world: This process among all.
    """

    batch: int
    accumulate: int
    world: World

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step, of all processes."""
        return self.batch * self.accumulate * self.world.size

    def positions(self, steps: Iterable[int]) -> Iterator[int]:
        """List this process's positions, step after step, batch after batch.

        Two processes take what one takes in two batches.
        """
        for step in steps:
            for number in range(self.accumulate):
                place = (number * self.world.size + self.world.rank) * self.batch
                start = step * self.images_per_step + place
                yield from range(start, start + self.batch)


class TrainingImages:
    """A set of images as an endless stream: a new order for each pass over it.

    Args:
        images: The set.
        mode: Of Pillow, such as ``RGB``.
        options: Seed, size, crop and flip.

    Attributes:
        skipped: Images that could not be read, with the reason; the next of the set stood in.
    """

    def __init__(self, images: ImageSet, mode: str, options: FinetuneOptions) -> None:
        self._images, self._mode, self._options = images, mode, options
        self._unreadable: dict[int, LeftOut] = {}
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def skipped(self) -> list[LeftOut]:
        """Images that could not be read so far, by their names."""
        return sorted(self._unreadable.values())

    def stream(self, positions: Iterable[int], workers: int, ahead: int) -> Iterator[Taken]:
        """Read the images of positions, some ahead of the consumer.

        Raises:
            InputError: None of the set can be read, or one is gone.
        """
        with quiet_pillow():
            yield from read_ahead(self.take, positions, workers, ahead)

    def take(self, at: int) -> Taken:
        """Read the image of a position."""
        epoch, place = divmod(at, len(self._images))
        first = self._order(epoch)[place]
        for index in (*range(first, len(self._images)), *range(first)):
            if index in self._unreadable:
                continue
            name = self._images.names[index]
            try:
                return Taken(at, name, self._prepare(self._images.data(index), at))
            except InputError as error:
                if error.where:
                    raise
                self._unreadable[index] = LeftOut(name, error.what)
        name, reason = self.skipped[0]
        raise InputError(
            f"no image in it could be read, such as {name}: {reason}", where=self._images.place
        )

    def _draw_order(self, epoch: int) -> list[int]:
        order = list(range(len(self._images)))
        random.Random(f"order {self._options.seed} {epoch}").shuffle(order)
        return order

    def _prepare(self, data: bytes, at: int) -> Any:
        import numpy as np

        options, drawn = self._options, random.Random(f"crop {self._options.seed} {at}")
        across, down, mirrored = drawn.random(), drawn.random(), drawn.random()
        with alone_if_large(data):
            image, _ = decode(data, self._mode)
            if options.crop == "random":
                shorter = min(image.size)
                # An image is never enlarged to have room for a crop.
                scaled = max(options.size, min(round(_ROOM * options.size), shorter))
                side = max(1, round(shorter * options.size / scaled))
                left = int(across * (image.width - side + 1))
                top = int(down * (image.height - side + 1))
                image = image.crop((left, top, left + side, top + side))
            pixels = to_square(image, options.size)
        is_mirrored = options.flip and mirrored < 0.5
        return np.ascontiguousarray(pixels[:, :, ::-1]) if is_mirrored else pixels
