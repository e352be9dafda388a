"""Where images lie: in a folder, in a zip file, in a dataset on the Hub, or one by itself."""

from __future__ import annotations

import os
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vaeconv.checkpoint.hub.address import HubLocation, parse_dataset
from vaeconv.checkpoint.hub.dataset import Dataset
from vaeconv.common.option_checks import path_text
from vaeconv.errors import CheckpointNotFoundError, InputError
from vaeconv.models.images import LeftOut, check_head, count_left_out
from vaeconv.weights.output_names import KINDS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
OTHER_ENDING, HIDDEN = "with another ending", "hidden"
MAX_FILE = 1 << 30  # bytes of an image
_PACKED = 50  # times that zip packs no image, unless it was made for that
_ENCRYPTED = 1  # flag of a zip's entry


class ImageFiles(ABC):
    """Files of images in one place.

    Attributes:
        place: Where they are, for messages.
        label: What to call them in tables.
        source: Their address on the Hub at the commit that is read; None where they are here.
        names: Of the images, sorted.
        left_out: Files that are none, or cannot be reached, with the reason.
    """

    def __init__(
        self,
        place: str,
        label: str,
        names: Iterable[str],
        left_out: Iterable[LeftOut],
        source: str | None = None,
    ) -> None:
        self.place, self.label, self.source = place, label, source
        self.names, self.left_out = sorted(names), sorted(left_out)

    @abstractmethod
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
        if self.size(name) > MAX_FILE:
            raise InputError("larger than 1 GiB")
        try:
            return self._read(name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(f"cannot be read ({reason})") from error

    @abstractmethod
    def _read(self, name: str) -> bytes:
        """Read an image of a size that was checked."""

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
    files = _open_local(place) if location is None else _open_dataset(location, on_step)
    if not files.names:
        files.close()
        raise _no_images(files.place, files.left_out)
    return files


def _open_local(place: str | os.PathLike[str]) -> ImageFiles:
    path = Path(place)
    if os.path.isdir(path):  # noqa: PTH112 - Path's own raise where a name is too long
        return _Folder(path, path.absolute().name, *list_images(path))
    if not os.path.isfile(path):  # noqa: PTH113
        raise CheckpointNotFoundError("no such folder, zip file or image", where=str(place))
    if _has_weights(path.name):
        raise _not_images(str(place), "is a checkpoint, and not images")
    if path.name.lower().endswith(SUFFIXES):
        return _Folder(path.parent, path.name, [path.name], [])
    return _Zip(path, str(path), path.absolute().name)


class _Folder(ImageFiles):
    """Images in a folder."""

    def __init__(self, folder: Path, label: str, names: list[str], left_out: list[LeftOut]) -> None:
        super().__init__(str(folder), label, names, left_out)
        self._folder = folder

    def size(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError as error:
            raise self._gone(name, error) from error

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError as error:
            raise self._gone(name, error) from error

    def _gone(self, name: str, error: OSError) -> InputError:
        return InputError(
            f"is gone since the images were listed ({error.strerror})",
            where=str(self._folder / name),
            hint="what was measured is kept",
        )


class _Zip(ImageFiles):
    """Images in a zip file."""

    def __init__(self, path: Path, place: str, label: str, source: str | None = None) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise InputError(
                f"neither a folder nor a zip file nor an image ({error})", where=place
            ) from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        left_out = []
        for entry in self._zip.infolist():
            if entry.is_dir():
                continue
            reason = reason_by_name(entry.filename)
            if not reason and entry.flag_bits & _ENCRYPTED:
                reason = "encrypted"
            if not reason and entry.filename in self._entries:
                left_out.append(LeftOut(entry.filename, "another entry has the same name"))
            if reason:
                left_out.append(LeftOut(entry.filename, reason))
            else:
                self._entries[entry.filename] = entry
        super().__init__(place, label, self._entries, left_out, source)

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def _read(self, name: str) -> bytes:
        entry = self._entries[name]
        try:
            if entry.file_size > _PACKED * max(entry.compress_size, 1):
                with self._zip.open(entry) as file:
                    check_head(file)
            return self._zip.read(entry)
        except (InputError, OSError):
            raise
        except Exception as error:  # a zip's decompressors raise what they like
            raise InputError(f"cannot be read ({type(error).__name__})") from error

    def close(self) -> None:
        self._zip.close()


class _DatasetFiles(ImageFiles):
    """Images in a dataset on the Hub, each fetched when it is read."""

    def __init__(self, dataset: Dataset) -> None:
        reasons = {name: reason_by_name(name) for name in dataset.sizes}
        left_out = [LeftOut(name, reason) for name, reason in reasons.items() if reason]
        names = [name for name, reason in reasons.items() if not reason]
        super().__init__(dataset.place, dataset.label, names, left_out, dataset.source)
        self._dataset = dataset

    def size(self, name: str) -> int:
        return self._dataset.sizes[name]

    def _read(self, name: str) -> bytes:
        return self._dataset.fetch(name).read_bytes()


def _open_dataset(location: HubLocation, on_step: Callable[[str], None]) -> ImageFiles:
    """Find images in a dataset: its image files, or where there are none, those in its zip file.

    Raises:
        CheckpointNotFoundError: Its images are in several files.
    """
    dataset = Dataset(location)
    files = _DatasetFiles(dataset)
    if files.names:
        return files
    archives = [name for name in dataset.sizes if name.lower().endswith(".zip")]
    if len(archives) == 1:
        on_step(f"fetching {archives[0]}")
        path = dataset.fetch(archives[0])
        return _Zip(path, dataset.place, dataset.label, dataset.source)
    if archives:
        raise CheckpointNotFoundError(
            f"no images in it, but {len(archives)} zip files",
            where=dataset.place,
            hint=f"name one of them, such as {location}/{archives[0]}",
        )
    if any(name.lower().endswith(".parquet") for name in dataset.sizes):
        raise CheckpointNotFoundError(
            "its images are in parquet files, which are not read",
            where=dataset.place,
            hint="name a folder or a zip file of image files in it, or save some with the library "
            "datasets and name their folder",
        )
    return files


def reason_by_name(name: str) -> str | None:
    """Tell by its path why a file is no image to use; None where it may be one.

    Hidden are, beside what the user hid, thumbnails and the checkpoints of notebooks.
    """
    if any(part.startswith(".") and part != ".." for part in name.split("/")):
        return HIDDEN
    return None if name.lower().endswith(SUFFIXES) else OTHER_ENDING


def list_images(folder: Path) -> tuple[list[str], list[LeftOut]]:
    """List the files in a folder and in its folders, as paths with slashes, sorted.

    Returns:
        The images by their names, and what is none, or cannot be reached, with the reason.
    """
    found: list[str] = []
    left_out: list[LeftOut] = []

    def unlisted(error: OSError) -> None:
        name = Path(error.filename).relative_to(folder).as_posix()
        left_out.append(LeftOut(f"{name}/", f"cannot be listed ({error.strerror})"))

    for root, folders, names in os.walk(folder, onerror=unlisted):
        for name in (*folders, *names):
            path = Path(root, name)
            inner = path.relative_to(folder).as_posix()
            if name in folders:
                if path.is_symlink():
                    left_out.append(LeftOut(f"{inner}/", "a link to a folder is not followed"))
                continue
            reason = reason_by_name(inner) or _reason_by_kind(path)
            if reason:
                left_out.append(LeftOut(inner, reason))
            else:
                found.append(inner)
    return sorted(found), sorted(left_out)


def _reason_by_kind(path: Path) -> str | None:
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return "a link to nothing"
        return f"cannot be read ({error.strerror})"
    return None if stat.S_ISREG(kind) else "not a regular file"


def _has_weights(name: str) -> bool:
    return Path(name).suffix.lower() in KINDS


def _not_images(place: str, what: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(what, where=place, hint="see --help for their order")


def _no_images(place: str, left_out: Sequence[LeftOut]) -> CheckpointNotFoundError:
    """Make the error of a folder or zip file without images; it says what is there instead."""
    if any(_has_weights(one.name) for one in left_out):
        return _not_images(place, "holds a checkpoint, and no images")
    there = f"; {count_left_out(left_out)}" if left_out else ""
    return CheckpointNotFoundError(
        f"no images in it{there}",
        where=place,
        hint=f"names of images end in {', '.join(SUFFIXES)}",
    )
