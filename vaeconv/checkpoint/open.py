"""Open any checkpoint. What it is, its bytes say; the file's name is never asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vaeconv.checkpoint.readers.by_content import open_source
from vaeconv.checkpoint.readers.folder import CONFIG, STEM, open_folder
from vaeconv.checkpoint.readers.in_memory import AnyModel, InMemory, as_source
from vaeconv.checkpoint.source import FileSource
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.tree import FileTree, LocalTree, is_folder
from vaeconv.checkpoint.types import Checkpoint, ConfigText
from vaeconv.errors import (
    CheckpointNotFoundError,
    NotACheckpointError,
    UsageError,
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
        from vaeconv.checkpoint.hub.address import parse_location
        from vaeconv.checkpoint.hub.repository import open_hub

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
        from vaeconv.checkpoint.hub.address import suggest_address

        meant = None if error.hint or os.path.lexists(text) else suggest_address(text)
        if meant is None:
            raise
        raise CheckpointNotFoundError(
            error.what, where=text, hint=f"on the Hugging Face Hub it would be {meant}"
        ) from error


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
