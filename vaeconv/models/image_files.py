"""Where images lie: in a folder, in a zip file, in a dataset on the Hub, or one by itself."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vaeconv.checkpoint.hub.address import HubLocation, parse_dataset
from vaeconv.checkpoint.hub.dataset import Dataset
from vaeconv.common.option_checks import path_text
from vaeconv.errors import CheckpointNotFoundError, InputError
from vaeconv.models.images import (
    SUFFIXES,
    LeftOut,
    check_head,
    has_weights,
    list_images,
    no_images,
    not_images,
    reason_by_name,
)

MAX_FILE = 1 << 30  # bytes of an image
_PACKED = 50  # times that zip packs no image, unless it was made for that
_ENCRYPTED = 1  # flag of a zip's entry
_ZIP, _PARQUET = ".zip", ".parquet"


class ImageFiles(Protocol):
    """Files of images in one place.

    Attributes:
        place: Where they are, for messages.
        label: What to call them in tables.
        source: Their address on the Hub at the commit that is read; None where they are here.
        names: Of the images, sorted.
        left_out: Files that are none, or cannot be reached, with the reason.
    """

    place: str
    label: str
    source: str | None
    names: list[str]
    left_out: list[LeftOut]

    def size(self, name: str) -> int:
        """Tell how many bytes an image has.

        Raises:
            InputError: It is gone; the error says where.
        """

    def read(self, name: str) -> bytes:
        """Read an image whole.

        Raises:
            InputError: It is too large or cannot be read; where it is gone, the error says where.
            HubError: It cannot be fetched.
        """

    def close(self) -> None:
        """Close what is open."""


def open_images(
    place: str | os.PathLike[str], on_step: Callable[[str], None] = lambda step: None
) -> ImageFiles:
    """Find images.

    Args:
        place: A folder, a zip file, an image, or ``hf://datasets/owner/name[@revision][/path]``.
        on_step: Called with what is being done.

    Raises:
        CheckpointNotFoundError: It is not there, or holds no images.
        InputError: It is a damaged zip file, or no file of images.
        HubError: The dataset is not there, may not be read, or the network failed.
        UsageError: It is an address of something else.
    """
    location = parse_dataset(path_text("images", place))
    on_step(f"listing the images of {place}")
    if location is not None:
        return _open_dataset(location, on_step)
    path = Path(place)
    if os.path.isdir(path):  # noqa: PTH112 - Path's own raise where a name is too long
        return FolderFiles(path, *list_images(path))
    if not os.path.isfile(path):  # noqa: PTH113
        raise CheckpointNotFoundError("no such folder, zip file or image", where=str(place))
    if has_weights(path.name):
        raise not_images(str(place), "is a checkpoint, and not images")
    if path.name.lower().endswith(SUFFIXES):
        return FolderFiles(path.parent, [path.name], [], label=path.name)
    return ZipFiles(path)


class FolderFiles:
    """Images in a folder; see :class:`ImageFiles`."""

    source: str | None = None

    def __init__(
        self, folder: Path, names: list[str], left_out: list[LeftOut], label: str = ""
    ) -> None:
        self.place = str(folder)
        self.label = label or folder.absolute().name
        self.names, self.left_out = names, left_out
        self._folder = folder
        if not names:
            raise no_images(self.place, left_out)

    def size(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError as error:
            raise self._gone(name, error) from error

    def read(self, name: str) -> bytes:
        _check_size(self.size(name))
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError as error:
            raise self._gone(name, error) from error
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})") from error

    def _gone(self, name: str, error: OSError) -> InputError:
        return InputError(
            f"is gone since the images were listed ({error.strerror})",
            where=str(self._folder / name),
            hint="what was measured is kept",
        )

    def close(self) -> None:
        """Nothing is open."""


class ZipFiles:
    """Images in a zip file; see :class:`ImageFiles`."""

    def __init__(
        self, path: Path, *, place: str = "", label: str = "", source: str | None = None
    ) -> None:
        self.place, self.source = place or str(path), source
        self.label = label or path.absolute().name
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(
                f"neither a folder nor a zip file nor an image ({error})", where=self.place
            ) from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        self.left_out = sorted(self._list_entries())
        self.names = sorted(self._entries)
        if not self.names:
            self.close()
            raise no_images(self.place, self.left_out)

    def _list_entries(self) -> list[LeftOut]:
        left_out = []
        for entry in self._zip.infolist():
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
        return left_out

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def read(self, name: str) -> bytes:
        _check_size(self.size(name))
        entry = self._entries[name]
        try:
            if entry.file_size > _PACKED * max(entry.compress_size, 1):
                with self._zip.open(entry) as file:
                    check_head(file)
            return self._zip.read(entry)
        except InputError:
            raise
        except OSError as error:
            raise InputError(
                f"cannot be read ({error.strerror or type(error).__name__})"
            ) from error
        except Exception as error:  # a zip's decompressors raise what they like
            raise InputError(f"cannot be read ({type(error).__name__})") from error

    def close(self) -> None:
        self._zip.close()


class DatasetFiles:
    """Images in a dataset on the Hub, each fetched when it is read; see :class:`ImageFiles`."""

    def __init__(self, dataset: Dataset) -> None:
        self.place, self.label = dataset.place, dataset.label
        self.source: str | None = dataset.source
        self._dataset = dataset
        reasons = {name: reason_by_name(name) for name in dataset.sizes}
        self.names = sorted(name for name, reason in reasons.items() if not reason)
        self.left_out = sorted(LeftOut(name, why) for name, why in reasons.items() if why)

    def size(self, name: str) -> int:
        return self._dataset.sizes[name]

    def read(self, name: str) -> bytes:
        _check_size(self.size(name))
        try:
            return self._dataset.fetch(name).read_bytes()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})") from error

    def close(self) -> None:
        """Nothing is open."""


def _open_dataset(location: HubLocation, on_step: Callable[[str], None]) -> ImageFiles:
    """Find images in a dataset: its image files, or where there are none, those in its zip file.

    Raises:
        CheckpointNotFoundError: It holds neither.
    """
    dataset = Dataset(location)
    files = DatasetFiles(dataset)
    if files.names:
        return files
    archives = [name for name in dataset.sizes if name.lower().endswith(_ZIP)]
    if len(archives) == 1:
        on_step(f"fetching {archives[0]}")
        path = dataset.fetch(archives[0])
        return ZipFiles(path, place=dataset.place, label=dataset.label, source=dataset.source)
    if archives:
        raise CheckpointNotFoundError(
            f"no images in it, but {len(archives)} zip files",
            where=dataset.place,
            hint=f"name one of them, such as {location}/{archives[0]}",
        )
    if any(name.lower().endswith(_PARQUET) for name in dataset.sizes):
        raise CheckpointNotFoundError(
            "its images are in parquet files, which are not read",
            where=dataset.place,
            hint="name a folder or a zip file of image files in it, or save some with the library "
            "datasets and name their folder",
        )
    raise no_images(dataset.place, files.left_out)


def _check_size(size: int) -> None:
    if size > MAX_FILE:
        raise InputError("larger than 1 GiB")
