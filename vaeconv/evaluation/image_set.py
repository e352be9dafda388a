"""Sets of images, read by several threads, prepared by the protocol."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from vaeconv.errors import InputError, UsageError
from vaeconv.evaluation.protocol import Protocol
from vaeconv.models import images
from vaeconv.models.image_files import open_images
from vaeconv.models.images import image_mode, quiet_pillow
from vaeconv.models.tar_images import open_shards

Ticket = TypeVar("Ticket")
Result = TypeVar("Result")


class Item(NamedTuple):
    """An image of a set, prepared or skipped.

    Attributes:
        at: Its place in the set.
        name: Its path in the set.
        pixels: uint8 ``[c, size, size]``; None where it was skipped.
        reason: Why it was skipped; None where it was not.
        sha256: Of the file's bytes; None where they could not be read.
        remark: What is to be said of an image that was not skipped; None for nothing.
    """

    at: int
    name: str
    pixels: Any
    reason: str | None = None
    sha256: str | None = None
    remark: str | None = None


class ImageSet:
    """Images of one place, in order of names, read by several threads.

    Args:
        place: A folder, a zip file, tar files, an image, or an address of a dataset on the Hub.
        limit: Take the first so many.
        on_step: Called with what is being done.

    Attributes:
        place: Where they are, for messages.
        label: What to call the set in tables.
        source: Its address on the Hub at the commit that is read; None where it is here.
        names: Of the images, by their place.
        left_out: Files that are none, or cannot be reached, with the reason.
        beyond: How many images the limit leaves out.

    Raises:
        CheckpointNotFoundError: It is not there, or holds no images.
        HubError: The dataset cannot be read.
        InputError: It is a damaged zip file.
        UsageError: The limit is less than one, or the address is none of a dataset.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        limit: int | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"a limit of {limit} images; one is the least")
        self._files = open_shards(place) or open_images(place, on_step)
        self.place, self.label, self.source = (
            self._files.place, self._files.label, self._files.source,
        )  # fmt: skip
        self.left_out = self._files.left_out
        self.names = self._files.names[:limit]
        self.beyond = len(self._files.names) - len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Hash of names and sizes: tells many other sets from this one, and reads no image."""
        digest = hashlib.sha256()
        for name in self.names:
            line = f"{name}\0{self._files.size(name)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def hash(self, index: int) -> str | None:
        """Hash the bytes of an image (sha256); None where they cannot be read."""
        try:
            return hashlib.sha256(self._files.read(self.names[index])).hexdigest()
        except InputError as error:
            if error.where:
                raise
            return None

    def data(self, index: int) -> bytes:
        """Read the bytes of an image.

        Raises:
            InputError: They cannot be read; where the image is gone, the error says where.
        """
        return self._files.read(self.names[index])

    def read(self, index: int, protocol: Protocol, channels: int) -> Item:
        """Read and prepare one image; what cannot be read is skipped, with the reason.

        Raises:
            InputError: It is gone since the set was listed, and perhaps all others with it.
        """
        name = self.names[index]
        sha256 = None
        try:
            data = self._files.read(name)
            sha256 = hashlib.sha256(data).hexdigest()
            pixels, remark = prepare(data, protocol, channels)
        except InputError as error:
            if error.where:
                raise
            return Item(index, name, None, error.what, sha256)
        return Item(index, name, pixels, None, sha256, remark)

    def stream(
        self, indices: Sequence[int], protocol: Protocol, channels: int, *, workers: int, ahead: int
    ) -> Iterator[Item]:
        """Read images in the order of indices, several at a time, some ahead of the consumer."""
        with quiet_pillow():
            yield from read_ahead(
                lambda index: self.read(index, protocol, channels), indices, workers, ahead
            )

    def hashes(self, indices: Sequence[int], *, workers: int) -> Iterator[str | None]:
        """Hash the bytes of images in the order of indices, several at a time."""
        return read_ahead(self.hash, indices, workers, 2 * workers)

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def read_ahead(
    read: Callable[[Ticket], Result], tickets: Iterable[Ticket], workers: int, ahead: int
) -> Iterator[Result]:
    """Read several at a time, some ahead of the consumer, and give them in order.

    Args:
        read: Reads one, in any thread.
        tickets: What to read; may have no end.
        workers: Threads; 0 to read in the consumer's own.
        ahead: How many are read before they are wanted.
    """
    if not workers:
        yield from map(read, tickets)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for ticket in tickets:
                waiting.append(pool.submit(read, ticket))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def prepare(data: bytes, protocol: Protocol, channels: int = 3) -> tuple[Any, str | None]:
    """Decode an image and bring it to the protocol's size.

    Returns:
        uint8 ``[c, size, size]``, and what is to be said of it, if anything.

    Raises:
        InputError: It is damaged, no image, too large to be honest, or too small to be cropped.
        UnsupportedModelError: No image has so many channels.
    """
    mode = image_mode(channels, "the model")
    return images.prepare(
        data, mode, protocol.size, resize=protocol.resize, filter_name=protocol.filter
    )
