"""Open any checkpoint. What it is, its bytes say; the file's name is never asked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vaeconv.checkpoint.base import Checkpoint, ConfigText
from vaeconv.checkpoint.checksum import crc32
from vaeconv.checkpoint.folder import CONFIG, STEM, open_folder
from vaeconv.checkpoint.in_memory import AnyModel, InMemory, as_source
from vaeconv.checkpoint.safetensors_file import looks_like_safetensors, open_safetensors
from vaeconv.checkpoint.source import ByteSource, FileSource, SliceSource, read_bytes
from vaeconv.checkpoint.text_file import MAX_TEXT, decode_text, read_text_file
from vaeconv.checkpoint.tree import FileTree, LocalTree, is_folder
from vaeconv.checkpoint.zip_directory import ZipEntry, read_zip_directory
from vaeconv.errors import (
    AmbiguousInputError,
    CheckpointNotFoundError,
    MalformedCheckpointError,
    NotACheckpointError,
    UsageError,
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


def open_checkpoint(
    path: AnyModel,
    *,
    variant: str | None = None,
    salvage: bool = False,
    download: bool = False,
    on_fetch: Callable[[int], None] | None = None,
) -> Checkpoint:
    """Open a checkpoint without loading weights or executing anything in it.

    Args:
        path: A torch or safetensors file, a diffusers folder, a zip that holds a checkpoint,
            ``hf://owner/name[@revision][/path]``, or weights in memory: a state dict of torch
            tensors, or a module such as diffusers' ``AutoencoderKL``.
        variant: Which weights of a diffusers folder to read, such as ``fp16``.
        salvage: Read past unsafe names in a pickle, with inert placeholders.
        download: Fetch a file on the Hub whole into the cache instead of only what is needed.
        on_fetch: Called with the bytes that arrived from the Hub, from any thread.

    Returns:
        The open checkpoint; close it, or use it as a context manager.

    Raises:
        CheckpointNotFoundError: There is nothing there.
        NotACheckpointError: The source is not a checkpoint.
        MalformedCheckpointError: The file is damaged.
        UnsafeCheckpointError: Its pickle names objects that are not plain data.
        AmbiguousInputError: It holds several checkpoints.
        HubError: The Hub or the network failed.

    Example:
        >>> with open_checkpoint("fixtures/tiny-kl.ckpt") as checkpoint:
        ...     len(checkpoint.tensors), checkpoint.wrapper
        (212, ('state_dict',))
    """
    path = as_source(path)
    if isinstance(path, InMemory):
        return path.open()
    text = os.fspath(path)
    if not text:
        raise UsageError("an empty name", hint="is a variable of the shell not set?")
    if "://" in text:
        from vaeconv.checkpoint.hub import open_hub
        from vaeconv.checkpoint.hub_address import parse_location

        location = parse_location(text)
        if location is None:
            raise NotACheckpointError(
                "not a Hub address", where=text, hint="write hf://owner/name[@revision][/path]"
            )
        place = open_hub(location, download=download, on_progress=on_fetch)
        if isinstance(place, FileTree):
            return open_folder(place, variant=variant, salvage=salvage)
        checkpoint = open_source(place, salvage=salvage)
    elif is_folder(Path(text)):
        return open_folder(LocalTree(Path(text)), variant=variant, salvage=salvage)
    else:
        checkpoint = open_source(_local_file(text), salvage=salvage)
        checkpoint = _with_config_beside(checkpoint, Path(text))
    return replace(checkpoint, name=text)


def _local_file(text: str) -> FileSource:
    try:
        return FileSource(Path(text))
    except CheckpointNotFoundError as error:
        from vaeconv.checkpoint.hub_address import suggest_address

        meant = None if error.hint or os.path.lexists(text) else suggest_address(text)
        if meant is None:
            raise
        raise CheckpointNotFoundError(
            error.what, where=text, hint=f"on the Hugging Face Hub it would be {meant}"
        ) from error


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
        from vaeconv.checkpoint.torch_legacy import open_torch_legacy

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
    from vaeconv.checkpoint.torch_zip import find_pickle, open_torch_zip

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


def _with_config_beside(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Take the config.json beside a weights file that lies in a diffusers folder."""
    config = path.parent / CONFIG
    if not path.name.startswith(STEM) or not os.path.lexists(config):
        return checkpoint
    try:
        return replace(checkpoint, config=ConfigText(str(config), read_text_file(config)))
    except BaseException:
        checkpoint.close()
        raise
