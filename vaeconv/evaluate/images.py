"""Sets of images: folders and zip files, read by several threads, prepared by the protocol."""

from __future__ import annotations

import hashlib
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vaeconv.errors import CheckpointNotFoundError, InputError, UsageError
from vaeconv.evaluate.protocol import Protocol
from vaeconv.parity.images import (
    LeftOut,
    decode,
    image_mode,
    list_images,
    no_images,
    quiet_pillow,
    reason_by_name,
    to_square,
)

_MAX_FILE = 1 << 30
_ENCRYPTED = 1  # flag of a zip's entry

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
    """The images in a folder, with those in its folders, or in a zip file, in order of names.

    Args:
        path: The folder or the zip file.
        limit: Take the first so many.

    Attributes:
        names: Of the images, by their place.
        left_out: Files that are none, or cannot be reached, with the reason.
        beyond: How many images the limit leaves out.

    Raises:
        CheckpointNotFoundError: It is not there, or holds no images.
        InputError: It is a damaged zip file.
        UsageError: The limit is less than one.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"a limit of {limit} images; one is the least")
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}
        if path.is_dir():
            found, self.left_out = list_images(path)
        elif path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise InputError(
                    f"neither a folder nor a zip file ({error})", where=str(path)
                ) from error
            found, self.left_out = self._list_entries(self._zip)
        else:
            raise CheckpointNotFoundError("no such folder or zip file", where=str(path))
        self.names = found[:limit]
        self.beyond = len(found) - len(self.names)
        if not self.names:
            self.close()
            raise no_images(path, self.left_out)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def label(self) -> str:
        """What the set is called in tables."""
        return self.path.absolute().name

    def _list_entries(self, archive: zipfile.ZipFile) -> tuple[list[str], list[LeftOut]]:
        left_out = []
        for entry in archive.infolist():
            reason = reason_by_name(entry.filename)
            if entry.is_dir():
                continue
            if not reason and entry.flag_bits & _ENCRYPTED:
                reason = "encrypted"
            if not reason and entry.filename in self._entries:
                reason = "another entry has the same name"
            if reason:
                left_out.append(LeftOut(entry.filename, reason))
            if not reason or reason.startswith("another"):
                self._entries[entry.filename] = entry
        return sorted(self._entries), sorted(left_out)

    @property
    def fingerprint(self) -> str:
        """Hash of names and sizes: tells many other sets from this one, and reads no image."""
        digest = hashlib.sha256()
        for name in self.names:
            line = f"{name}\0{self._size(name)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _size(self, name: str) -> int:
        if self._zip:
            return self._entries[name].file_size
        try:
            return (self.path / name).stat().st_size
        except OSError as error:
            raise self._gone(name, error) from error

    def _gone(self, name: str, error: OSError) -> InputError:
        return InputError(
            f"is gone since the images were listed ({error.strerror})",
            where=str(self.path / name),
            hint="what was measured is kept",
        )

    def _bytes(self, name: str) -> bytes:
        """Read a file whole.

        Raises:
            InputError: It is too large or cannot be read; where it is gone, the error says where.
        """
        if self._size(name) > _MAX_FILE:
            raise InputError("larger than 1 GiB")
        try:
            if self._zip:
                return self._zip.read(self._entries[name])
            return (self.path / name).read_bytes()
        except FileNotFoundError as error:
            raise self._gone(name, error) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"cannot be read ({reason})") from error
        except Exception as error:  # a zip's decompressors raise what they like
            raise InputError(f"cannot be read ({type(error).__name__})") from error

    def hash(self, index: int) -> str | None:
        """Hash the bytes of an image (sha256); None where they cannot be read."""
        try:
            return hashlib.sha256(self._bytes(self.names[index])).hexdigest()
        except InputError as error:
            if error.where:
                raise
            return None

    def read(self, index: int, protocol: Protocol, channels: int) -> Item:
        """Read and prepare one image; what cannot be read is skipped, with the reason.

        Raises:
            InputError: It is gone since the set was listed, and perhaps all others with it.
        """
        name = self.names[index]
        sha256 = None
        try:
            data = self._bytes(name)
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
            yield from _ahead(
                lambda index: self.read(index, protocol, channels), indices, workers, ahead
            )

    def hashes(self, indices: Sequence[int], *, workers: int) -> Iterator[str | None]:
        """Hash the bytes of images in the order of indices, several at a time."""
        return _ahead(self.hash, indices, workers, 2 * workers)

    def close(self) -> None:
        """Close the zip file."""
        if self._zip:
            self._zip.close()


def _ahead(
    read: Callable[[int], Result], indices: Sequence[int], workers: int, ahead: int
) -> Iterator[Result]:
    """Read several at a time, some ahead of the consumer, and give them in order."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index in indices:
                waiting.append(pool.submit(read, index))
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
    image, remark = decode(data, image_mode(channels, "the model"))
    side = protocol.size
    if not remark and min(image.size) < side and protocol.resize != "none":
        remark = f"enlarged to {side} pixels"
    resized = to_square(image, side, resize=protocol.resize, filter_name=protocol.filter)
    return resized, remark
