"""Write a plan's output: a diffusers folder or a CompVis file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.autoencoder.config import dump_config
from vaeconv.checkpoint.atomic import (
    check_output,
    staged_file,
    staged_folder,
    write_small_file,
)
from vaeconv.checkpoint.base import Checkpoint
from vaeconv.checkpoint.folder import CONFIG, weights_name
from vaeconv.checkpoint.layout_out import OutputFile, lay_out_safetensors, lay_out_torch_zip
from vaeconv.checkpoint.source import ByteSource
from vaeconv.errors import OutputError, UsageError
from vaeconv.executor import CopyOptions, copy_rows
from vaeconv.plan import Plan

MANIFEST = "vaeconv.json"
_MANIFEST_VERSION = 1
_HASH_PIECE = 1 << 20


class OutputKind(str, Enum):
    """What an output's name stands for."""

    FOLDER = "diffusers folder"
    SAFETENSORS = "CompVis safetensors"
    TORCH_ZIP = "CompVis checkpoint"


_SUFFIXES = {
    ".safetensors": OutputKind.SAFETENSORS,
    ".sft": OutputKind.SAFETENSORS,
    ".ckpt": OutputKind.TORCH_ZIP,
    ".pt": OutputKind.TORCH_ZIP,
    ".pth": OutputKind.TORCH_ZIP,
    ".bin": OutputKind.TORCH_ZIP,
}


class Output(NamedTuple):
    """Where to write, and what goes with the weights.

    Attributes:
        target: The file or folder.
        kind: Which of the two, and in which container.
        variant: Variant in a folder's file name.
        config: The folder's config.
        facts: What the manifest says of the plan.
    """

    target: Path
    kind: OutputKind
    variant: str | None
    config: Mapping[str, Any] | None
    facts: Mapping[str, Any]


class Written(NamedTuple):
    """One file that was written.

    Attributes:
        path: Where.
        size: Bytes.
        sha256: Its hash in hexadecimal; None where it was not asked for.
    """

    path: Path
    size: int
    sha256: str | None


def output_kind(output: str | os.PathLike[str]) -> tuple[OutputKind, Path]:
    """Tell the kind of an output by its name; a trailing slash always means a folder.

    Raises:
        UsageError: The name is empty.
    """
    text = os.fspath(output)
    if not text:
        raise UsageError("the output has no name")
    path = Path(text)
    if text.endswith(("/", os.sep)):
        return OutputKind.FOLDER, path
    return _SUFFIXES.get(path.suffix.lower(), OutputKind.FOLDER), path


def check_target(target: Path, source: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse an output that must not be written.

    Raises:
        OutputError: As :func:`~vaeconv.checkpoint.atomic.check_output`.
    """
    text = os.fspath(source)
    local = [Path(text)] if "://" not in text and os.path.lexists(text) else []
    check_output(target, local, overwrite=overwrite)


def write_output(
    output: Output,
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    overwrite: bool,
    manifest: bool,
    hash_source: bool,
    copy: CopyOptions,
) -> tuple[Written, ...]:
    """Write all files of an output, atomically and, with ``copy.check``, durably.

    Returns:
        The weights, then what goes with them.

    Raises:
        InputError: The source turns out to be bad while it is read.
        OutputError: The output cannot be written.
    """
    specs = [(row.name, row.dtype, row.shape) for row in plan.rows]
    if output.kind is OutputKind.TORCH_ZIP:
        unsaved = next((row for row in plan.rows if not row.dtype.storage), None)
        if unsaved:
            raise OutputError(
                f"torch has no storage class for {unsaved.dtype.torch_name} ({unsaved.name})",
                where=str(output.target),
                hint="write a .safetensors file",
            )
        file = lay_out_torch_zip(specs)
    else:
        file = lay_out_safetensors(specs)
    facts = {**output.facts}
    if hash_source:
        hashes = [hash_bytes(source) for source in checkpoint.sources]
        facts["source"] = {**facts["source"], "sha256": hashes[0] if len(hashes) == 1 else hashes}
    if output.kind is OutputKind.FOLDER:
        return _write_folder(output, file, checkpoint, plan, facts, overwrite, copy)
    return _write_file(output, file, checkpoint, plan, facts, overwrite, manifest, copy)


def hash_bytes(source: ByteSource) -> str:
    """Hash a source whole (sha256, hexadecimal)."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASH_PIECE))
    for start in range(0, source.size, _HASH_PIECE):
        piece = buffer[: min(_HASH_PIECE, source.size - start)]
        source.read_into(start, piece)
        digest.update(piece)
    return digest.hexdigest()


def _write_file(
    output: Output,
    file: OutputFile,
    checkpoint: Checkpoint,
    plan: Plan,
    facts: dict[str, Any],
    overwrite: bool,
    manifest: bool,
    copy: CopyOptions,
) -> tuple[Written, ...]:
    target = output.target
    with staged_file(target, overwrite=overwrite, durable=copy.check) as fd:
        digest = copy_rows(fd, file, plan.rows, copy, where=str(target))
        checkpoint.check_unchanged()
    written = [Written(target, file.size, digest)]
    if manifest:
        beside = target.with_name(target.name + "." + MANIFEST)
        data = _manifest(facts, {target.name: _entry(file.size, digest, facts)})
        with (
            staged_file(beside, overwrite=True, durable=copy.check) as fd,
            open(fd, "wb", closefd=False) as stream,
        ):
            stream.write(data)
        written.append(Written(beside, len(data), None))
    return tuple(written)


def _write_folder(
    output: Output,
    file: OutputFile,
    checkpoint: Checkpoint,
    plan: Plan,
    facts: dict[str, Any],
    overwrite: bool,
    copy: CopyOptions,
) -> tuple[Written, ...]:
    assert output.config is not None
    target, name = output.target, weights_name(output.variant)
    with staged_folder(target, overwrite=overwrite, durable=copy.check) as folder:
        with staged_file(folder / name, overwrite=True, durable=copy.check) as fd:
            digest = copy_rows(fd, file, plan.rows, copy, where=str(target / name))
            checkpoint.check_unchanged()
        config = dump_config(output.config)
        entries = {
            **_kept_entries(target, {name, CONFIG}),
            name: _entry(file.size, digest, facts),
            CONFIG: _entry(len(config), hashlib.sha256(config).hexdigest()),
        }
        data = _manifest(facts, entries)
        write_small_file(folder / CONFIG, config, durable=copy.check)
        write_small_file(folder / MANIFEST, data, durable=copy.check)
    return (
        Written(target / name, file.size, digest),
        Written(target / CONFIG, len(config), entries[CONFIG]["sha256"]),
        Written(target / MANIFEST, len(data), None),
    )


def _entry(size: int, digest: str | None, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"size": size, "sha256": digest, **({"dtype": facts["dtype"]} if facts else {})}


def _kept_entries(target: Path, replaced: set[str]) -> dict[str, Any]:
    """Take over what an earlier manifest says of files that stay, such as another variant."""
    try:
        outputs = json.loads((target / MANIFEST).read_bytes())["outputs"]
        return {
            name: entry
            for name, entry in outputs.items()
            if name not in replaced and (target / name).is_file()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _manifest(facts: Mapping[str, Any], outputs: Mapping[str, Any]) -> bytes:
    document = {
        "schema_version": _MANIFEST_VERSION,
        "vaeconv_version": __version__,
        **facts,
        "outputs": outputs,
    }
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
