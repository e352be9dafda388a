"""Sets of pictures: folders and zip files, read by several threads, prepared by the protocol."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.errors import CheckpointNotFoundError, InputError
from vaeconv.evaluate.protocol import Protocol
from vaeconv.parity.images import FORMATS, MAX_PIXELS, SUFFIXES, flatten, quiet_pillow

_MAX_FILE = 1 << 30
_MAX_ASPECT = 64


class Item(NamedTuple):
    """A picture of a set, prepared or skipped.

    Attributes:
        at: Its place in the set.
        name: Its path in the set.
        pixels: uint8 ``[c, size, size]``; None where it was skipped.
        reason: Why it was skipped; None where it was not.
    """

    at: int
    name: str
    pixels: Any
    reason: str | None = None


class ImageSet:
    """The pictures in a folder, with those in its folders, or in a zip file, in order of names.

    Args:
        path: The folder or the zip file.
        limit: Take the first so many.

    Raises:
        CheckpointNotFoundError: It is not there, or holds no pictures.
        InputError: It is a damaged zip file.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            found = [
                one.relative_to(path).as_posix()
                for one in path.rglob("*")
                if one.suffix.lower() in SUFFIXES and one.is_file()
            ]
        elif path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except (zipfile.BadZipFile, OSError) as error:
                raise InputError(
                    f"neither a folder nor a zip file ({error})", where=str(path)
                ) from error
            found = [
                one.filename
                for one in self._zip.infolist()
                if not one.is_dir() and one.filename.lower().endswith(SUFFIXES)
            ]
        else:
            raise CheckpointNotFoundError("no such folder or zip file", where=str(path))
        self.names = sorted(found)[:limit]
        if not self.names:
            raise CheckpointNotFoundError(
                "no pictures in it",
                where=str(path),
                hint=f"names of pictures end in {', '.join(SUFFIXES)}",
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sha256(self) -> str:
        """Hash of names and sizes: tells one set from another, and reads no picture."""
        digest = hashlib.sha256()
        for name in self.names:
            line = f"{name}\0{self._size(name)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _size(self, name: str) -> int:
        return self._zip.getinfo(name).file_size if self._zip else (self.path / name).stat().st_size

    def read(self, index: int, protocol: Protocol, channels: int) -> Item:
        """Read and prepare one picture; what cannot be read is skipped, with the reason."""
        name = self.names[index]
        try:
            if self._size(name) > _MAX_FILE:
                return Item(index, name, None, "larger than 1 GiB")
            data = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
            return Item(index, name, prepare(data, protocol, channels))
        except InputError as error:
            return Item(index, name, None, error.what)
        except Exception as error:  # noqa: BLE001 - decoders raise what they like for odd bytes
            return Item(index, name, None, f"cannot be read ({type(error).__name__})")

    def stream(
        self, indices: Sequence[int], protocol: Protocol, channels: int, *, workers: int, ahead: int
    ) -> Iterator[Item]:
        """Read pictures in the order of indices, several at a time, some ahead of the consumer."""
        waiting: list[Future[Item]] = []
        with quiet_pillow(), ThreadPoolExecutor(workers) as pool:
            try:
                for index in indices:
                    waiting.append(pool.submit(self.read, index, protocol, channels))
                    if len(waiting) > ahead:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def close(self) -> None:
        """Close the zip file."""
        if self._zip:
            self._zip.close()


def prepare(data: bytes, protocol: Protocol, channels: int = 3) -> Any:
    """Decode a picture and bring it to the protocol's size.

    EXIF orientation is followed, 16-bit grey is scaled to 8 bits, CMYK and palettes are converted,
    and what is transparent is laid on white.

    Returns:
        uint8 ``[c, size, size]``.

    Raises:
        InputError: It is too large to be honest, or too small to be cropped.
        OSError: It is damaged, or not a picture.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError("a decompression bomb") from error
    with opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise InputError("a decompression bomb")
        opened.load()
        image = flatten(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
    side = protocol.size
    resampling = Image.Resampling[protocol.filter.upper()]
    if protocol.resize == "squash":
        image = image.resize((side, side), resampling)
    elif protocol.resize == "shorter-side":
        image = _cut_ends(image)
        scale = side / min(image.size)
        # Never below the side, whatever rounding does to the longer one.
        size = tuple(max(side, round(length * scale)) for length in image.size)
        image = image.resize((size[0], size[1]), resampling)
    if min(image.size) < side:
        raise InputError(f"{image.width}x{image.height} pixels, less than {side}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)))
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _cut_ends(image: Any) -> Any:
    """Cut the ends of a very long picture, which no centre crop shows, before it is enlarged."""
    longest = min(image.size) * _MAX_ASPECT
    left, top = (max(0, (length - longest) // 2) for length in image.size)
    return image.crop((left, top, image.width - left, image.height - top))
