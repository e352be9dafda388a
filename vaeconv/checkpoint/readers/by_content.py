"""Open one file by its content: a container, or a zip that holds one."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.readers.safetensors import looks_like_safetensors, open_safetensors
from vaeconv.checkpoint.readers.zip_directory import ZipEntry, read_zip_directory
from vaeconv.checkpoint.source import ByteSource, FileSource, SliceSource, read_bytes
from vaeconv.checkpoint.text_file import MAX_TEXT, decode_text
from vaeconv.checkpoint.types import Checkpoint, ConfigText
from vaeconv.errors import (
    AmbiguousInputError,
    MalformedCheckpointError,
    NotACheckpointError,
)

_HEAD = 512
_PIECE = 1 << 20
_NAMED = 5  # that many of too many checkpoints are named
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")

# First bytes of things that are often saved under a checkpoint's name.
_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "fetch the file: git lfs pull",
    ),
    (b"<!doctype html", "an HTML page", "the download saved a web page: use the file's own link"),
    (b"<html", "an HTML page", "the download saved a web page: use the file's own link"),
    (b"<?xml", "an XML document", "the download saved an error page: try it again"),
    (b"\x1f\x8b", "a gzip file", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it first"),
    (b"BZh", "a bzip2 file", "unpack it first"),
    (b"\xfd7zXZ", "an xz file", "unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip file", "unpack it first"),
    (b"Rar!", "a RAR file", "unpack it first"),
    (b"GGUF", "a GGUF file", "convert the original checkpoint"),
    (b"\x89HDF", "an HDF5 file", "convert the PyTorch checkpoint"),
    (b"\x89PNG", "a PNG image", "name the checkpoint"),
    (b"\xff\xd8\xff", "a JPEG image", "name the checkpoint"),
    (b"\x93NUMPY", "a numpy array", "name the checkpoint"),
)


def open_source(source: ByteSource, *, salvage: bool) -> Checkpoint:
    """Open one file by its content; closes the source where that fails.

    Raises:
        InputError: As :func:`open_checkpoint`.
    """
    try:
        return _open_by_content(source, salvage=salvage)
    except BaseException:
        source.close()
        raise


def _open_by_content(source: ByteSource, *, salvage: bool, in_bundle: bool = False) -> Checkpoint:
    head = bytes(read_bytes(source, 0, min(_HEAD, source.size)))
    if not head:
        raise NotACheckpointError("an empty file", where=source.name, hint="download it again")
    kind = _tell_kind(head, source.size)
    if kind == "zip":
        return _open_zip(source, salvage=salvage, in_bundle=in_bundle)
    if kind == "safetensors":
        return open_safetensors(source)
    if kind == "pickle":
        from vaeconv.checkpoint.readers.torch_legacy import open_torch_legacy

        return open_torch_legacy(source, salvage=salvage)
    raise _not_a_checkpoint(source, head)


def _tell_kind(head: bytes, size: int) -> str | None:
    """Tell a container by its first bytes; the one place that knows how each begins."""
    if looks_like_safetensors(head, size):  # first: its length may begin like anything
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return "pickle"
    return None


def _not_a_checkpoint(source: ByteSource, head: bytes) -> NotACheckpointError:
    text = head.lstrip().lower()
    for magic, what, hint in _OTHER_FORMATS:
        if head.startswith(magic) or text.startswith(magic):
            return NotACheckpointError(what, where=source.name, hint=hint)
    if head[257:262] == b"ustar":
        return NotACheckpointError(
            "a tar file, which torch wrote before 2017 and vaeconv does not read",
            where=source.name,
            hint="load and save it again with a torch version from 2017 to 2025",
        )
    if text.startswith(b"{"):
        return NotACheckpointError(
            "a JSON document", where=source.name, hint="is it the answer of a failed download?"
        )
    if not any(head):
        return NotACheckpointError(
            "it begins with zeros", where=source.name, hint="download or copy it again"
        )
    return NotACheckpointError(
        f"neither a torch file nor safetensors: it begins with {head[:8]!r}", where=source.name
    )


def _open_zip(source: ByteSource, *, salvage: bool, in_bundle: bool) -> Checkpoint:
    from vaeconv.checkpoint.readers.torch_zip import find_pickle, open_torch_zip

    entries = read_zip_directory(source)
    prefix = find_pickle(entries)
    if prefix is not None:
        return open_torch_zip(source, entries, prefix, salvage=salvage)
    if in_bundle:
        raise NotACheckpointError(
            "a zip file inside a zip file", where=source.name, hint="unpack the outer one"
        )
    return _open_bundle(source, entries, salvage=salvage)


def _open_bundle(source: ByteSource, entries: dict[str, ZipEntry], *, salvage: bool) -> Checkpoint:
    """Open a zip that holds one checkpoint, and perhaps its config, as kl-f8 was published."""
    configs = [e for e in entries.values() if e.name.lower().endswith(_CONFIG_SUFFIXES)]
    others: list[ZipEntry] = []
    for entry in entries.values():
        is_config = entry.name.lower().endswith(_CONFIG_SUFFIXES)
        if not is_config and len(others) < _NAMED and _looks_like_checkpoint(entry):
            others.append(entry)
    if not others:
        raise NotACheckpointError(
            "a zip file without a checkpoint in it", where=source.name, hint="name the checkpoint"
        )
    if len(others) > 1:
        raise AmbiguousInputError(
            f"holds several checkpoints: {', '.join(entry.name for entry in others)}",
            where=source.name,
            hint="unpack it and name one",
        )
    config = None
    if len(configs) == 1:
        name = f"{source.name}/{configs[0].name}"
        config = ConfigText(name, decode_text(bytes(configs[0].read(MAX_TEXT)), name))
    # Last: of a compressed member a copy is opened, and the bundle itself closed.
    member = _member_source(source, others[0])
    try:
        checkpoint = _open_by_content(member, salvage=salvage, in_bundle=True)
    except BaseException:
        member.close()
        raise
    return replace(checkpoint, container=f"zip bundle ({checkpoint.container})", config=config)


def _looks_like_checkpoint(entry: ZipEntry) -> bool:
    if entry.size < _HEAD:
        return False
    head = bytearray(_HEAD)
    entry.open().read_into(memoryview(head))
    return _tell_kind(bytes(head), entry.size) is not None


def _member_source(source: ByteSource, entry: ZipEntry) -> ByteSource:
    """Give random access to a member: in place where stored, else from an unlinked copy."""
    name = f"{source.name}/{entry.name}"
    if not entry.is_compressed:
        return SliceSource(source, entry.data_offset(), entry.size, name)
    reader, crc, left = entry.open(), 0, entry.size
    buffer = memoryview(bytearray(_PIECE))
    with tempfile.TemporaryFile() as copy:
        while left:
            piece = buffer[: min(left, _PIECE)]
            reader.read_into(piece)
            crc = crc32(piece, crc)
            copy.write(piece)
            left -= len(piece)
        copy.flush()
        fd = os.dup(copy.fileno())
    source.close()
    if crc != entry.crc:
        os.close(fd)
        raise MalformedCheckpointError("fails its CRC-32 check", where=name)
    return FileSource(Path(name), fd=fd)
