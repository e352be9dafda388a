"""Small text files that say something of weights: configs and indices."""

from __future__ import annotations

from pathlib import Path

from vaeconv.checkpoint.source import ByteSource, FileSource, read_bytes
from vaeconv.errors import MalformedCheckpointError

MAX_TEXT = 1 << 20
"""Bytes; the config of a model has a few thousand."""


def read_text(source: ByteSource, limit: int = MAX_TEXT) -> str:
    """Read a text file whole, and close it.

    Raises:
        MalformedCheckpointError: It is longer than ``limit`` bytes, or not UTF-8.
    """
    try:
        if source.size > limit:
            raise MalformedCheckpointError(
                f"{source.size} bytes long; at most {limit} are read of such a file",
                where=source.name,
            )
        return decode_text(bytes(read_bytes(source, 0, source.size)), source.name)
    finally:
        source.close()


def read_text_file(path: Path, limit: int = MAX_TEXT) -> str:
    """Read a local text file; a pipe or a device, which may never end, is refused.

    Raises:
        CheckpointNotFoundError: It is not there, is no file, or may not be read.
        MalformedCheckpointError: It is longer than ``limit`` bytes, or not UTF-8.
    """
    return read_text(FileSource(path), limit)


def decode_text(data: bytes, where: str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        MalformedCheckpointError: It is something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedCheckpointError("not a UTF-8 text file", where=where) from error
