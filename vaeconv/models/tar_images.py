"""Images in tar files, such as the shards of a webdataset, read at random like those of a zip."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from vaeconv.common.option_checks import path_text
from vaeconv.errors import InputError
from vaeconv.models.image_files import ImageFiles, list_images, reason_by_name
from vaeconv.models.images import LeftOut

_ENDING = ".tar"


class Member(NamedTuple):
    """Where an image lies.

    Attributes:
        shard: The tar file.
        offset: Of its first byte there.
        size: Bytes.
    """

    shard: Path
    offset: int
    size: int


class TarFiles(ImageFiles):
    """Images in tar files.

    Args:
        shards: The tar files, each with the name that its images' names begin with.
        place: Where they are, for messages.

    Raises:
        InputError: One is damaged, compressed, or none.
    """

    def __init__(self, shards: dict[str, Path], place: Path) -> None:
        self._members: dict[str, Member] = {}
        left_out: list[LeftOut] = []
        for prefix, shard in shards.items():
            left_out += self._index(prefix, shard)
        super().__init__(str(place), place.absolute().name, self._members, left_out)

    def _index(self, prefix: str, shard: Path) -> list[LeftOut]:
        left_out = []
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    if member.size < 0:
                        raise ValueError(f"{member.name} has a negative size")
                    name = prefix + member.name.removeprefix("./")
                    if member.isdir():
                        continue
                    reason = reason_by_name(name)
                    if not reason and (not member.isreg() or member.issparse()):
                        reason = "not a regular file"
                    if not reason and name in self._members:
                        reason = "another entry has the same name"
                    if reason:
                        left_out.append(LeftOut(name, reason))
                    else:
                        self._members[name] = Member(shard, member.offset_data, member.size)
                # tarfile takes a header that it cannot read for the end.
                archive.fileobj.seek(archive.offset)
                if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise ValueError(f"damaged at byte {archive.offset}")
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"not an uncompressed tar file ({error})", where=str(shard)) from error
        return left_out

    def size(self, name: str) -> int:
        return self._members[name].size

    def _read(self, name: str) -> bytes:
        member = self._members[name]
        with member.shard.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise InputError("cut short")
        return data


def open_shards(place: str | os.PathLike[str]) -> TarFiles | None:
    """Open a tar file, or the tar files of a folder that holds no images of its own.

    Returns:
        None where the place is something else.

    Raises:
        InputError: One is damaged, compressed, or none.
    """
    path = Path(path_text("images", place))
    try:
        if path.name.lower().endswith(_ENDING) and path.is_file():
            return _filled({"": path}, path)
        if not path.is_dir():
            return None
        shards = sorted(one for one in path.iterdir() if one.name.lower().endswith(_ENDING))
    except OSError:  # what is wrong with it is said by those who read anything else
        return None
    if not shards or list_images(path)[0]:
        return None
    return _filled({f"{shard.name}/": shard for shard in shards}, path)


def _filled(shards: dict[str, Path], place: Path) -> TarFiles:
    files = TarFiles(shards, place)
    if not files.names:
        raise InputError("no images in it", where=str(place))
    return files
