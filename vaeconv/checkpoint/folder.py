"""Diffusers folders: config and weights, plain, with a variant, or in shards."""

from __future__ import annotations

import json
import re

from vaeconv.checkpoint.base import Checkpoint, ConfigText
from vaeconv.checkpoint.source import ByteSource, read_bytes
from vaeconv.checkpoint.tree import FileTree
from vaeconv.errors import (
    AmbiguousInputError,
    MalformedCheckpointError,
    NotACheckpointError,
)

STEM = "diffusion_pytorch_model"
CONFIG = "config.json"
MAX_CONFIG = 1 << 20
_SUFFIXES = ("safetensors", "bin")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors")


def weights_name(variant: str | None) -> str:
    """Name the safetensors file of a variant, as diffusers' ``_add_variant`` does."""
    return f"{STEM}.{variant}.safetensors" if variant else f"{STEM}.safetensors"


def index_name(variant: str | None) -> str:
    """Name the index of a variant's shards."""
    return (
        f"{STEM}.safetensors.index.{variant}.json" if variant else f"{STEM}.safetensors.index.json"
    )


def shard_names(variant: str | None, count: int) -> list[str]:
    """Name the shards of a variant, as diffusers' ``save_pretrained`` does."""
    stem = weights_name(variant).removesuffix(".safetensors")
    return [f"{stem}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def are_weights(name: str, variant: str | None) -> bool:
    """Tell whether a file in a folder holds a variant's weights, or says where they are."""
    # diffusers before 0.32 named a variant's index so, and later ones still read it.
    older = f"{STEM}.safetensors.{variant}.index.json"
    if name in (weights_name(variant), index_name(variant), older):
        return True
    stem = weights_name(variant).removesuffix(".safetensors")
    return name.startswith(stem) and bool(_SHARD.fullmatch(name[len(stem) :]))


def open_folder(tree: FileTree, *, variant: str | None, salvage: bool) -> Checkpoint:
    """Open a diffusers folder; of a pipeline's folder, its ``vae``.

    Args:
        tree: The folder, local or on the Hub.
        variant: Which weights to read, such as ``fp16``; None for the plain ones, or for the only
            ones that there are.
        salvage: As for the unpickler, where the weights are a ``.bin``.

    Raises:
        NotACheckpointError: There are no such weights in it.
        AmbiguousInputError: There are several variants and no plain weights.
        MalformedCheckpointError: A file in it is damaged, or the index names what is not there.
    """
    names = tree.names()
    if not _candidates(names) and any(name.startswith("vae/") for name in names):
        tree = tree.subtree("vae")
        names = tree.names()
    found = _candidates(names)
    if not found:
        raise NotACheckpointError(
            f"no {STEM}.safetensors in this folder",
            where=tree.name,
            hint="name a checkpoint file, or a folder that save_pretrained wrote",
        )
    if variant is None and None not in found:
        if len(found) > 1:
            raise AmbiguousInputError(
                f"holds the variants {', '.join(sorted(filter(None, found)))} and no plain weights",
                where=tree.name,
                hint="choose one with --variant",
            )
        (variant,) = found
    if variant not in found:
        known = ", ".join(sorted(name or "(plain)" for name in found))
        raise NotACheckpointError(
            f"no variant {variant} in this folder; it has {known}", where=tree.name
        )
    weight_map = _read_weight_map(tree, found[variant], names)
    files = sorted(set(weight_map.values())) if weight_map else [found[variant]]
    parts = {name: _open_file(tree.open(name), salvage=salvage) for name in files}
    for tensor, shard in weight_map.items():
        if tensor not in parts[shard].tensors:
            raise MalformedCheckpointError(
                f"the index says that {shard} holds {tensor}, which it does not",
                where=f"{tree.name}/{found[variant]}",
            )
    return _join(tree, list(parts.values()), variant, names)


def _candidates(names: list[str]) -> dict[str | None, str]:
    """Map each variant to the file that leads to its weights; safetensors before pickles."""
    found: dict[str | None, str] = {}
    for suffix in _SUFFIXES:
        for name in names:
            if "/" in name or not name.startswith(STEM):
                continue
            rest = name[len(STEM) :]
            if rest.endswith(f".{suffix}") and "-of-" not in rest:
                found.setdefault(rest[: -len(suffix) - 1].strip(".") or None, name)
            elif rest.startswith(f".{suffix}.index") and rest.endswith(".json"):
                found.setdefault(rest[len(suffix) + 7 : -len(".json")].strip(".") or None, name)
    return found


def _read_weight_map(tree: FileTree, name: str, names: list[str]) -> dict[str, str]:
    """Read which shard holds which tensor; empty where the weights are one file."""
    if not name.endswith(".json"):
        return {}
    try:
        weight_map = dict(json.loads(_read_text(tree.open(name)))["weight_map"])
        shards = sorted(set(weight_map.values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedCheckpointError("not a shard index", where=f"{tree.name}/{name}") from error
    if not shards:
        raise MalformedCheckpointError("lists no shards", where=f"{tree.name}/{name}")
    for shard in shards:
        if shard not in names or "/" in shard:
            raise MalformedCheckpointError(
                f"the index names the shard {shard}, which is not there",
                where=f"{tree.name}/{name}",
            )
    return weight_map


def _open_file(source: ByteSource, *, salvage: bool) -> Checkpoint:
    from vaeconv.checkpoint.open import open_source

    return open_source(source, salvage=salvage)


def _join(
    tree: FileTree, parts: list[Checkpoint], variant: str | None, names: list[str]
) -> Checkpoint:
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in parts):
        raise MalformedCheckpointError("two shards hold the same tensor", where=tree.name)
    config = None
    if CONFIG in names:
        config = ConfigText(f"{tree.name}/{CONFIG}", _read_text(tree.open(CONFIG)))
    kind = parts[0].container + (f", {len(parts)} shards" if len(parts) > 1 else "")
    return Checkpoint(
        name=tree.name,
        container=f"diffusers folder ({kind})",
        tensors=tensors,
        sources=tuple(source for part in parts for source in part.sources),
        wrapper=parts[0].wrapper,
        non_tensors={name: kind for part in parts for name, kind in part.non_tensors.items()},
        metadata={key: text for part in reversed(parts) for key, text in part.metadata.items()},
        config=config,
        globals=tuple(use for part in parts for use in part.globals),
        variant=variant,
    )


def _read_text(source: ByteSource) -> str:
    try:
        return decode_config(
            bytes(read_bytes(source, 0, min(source.size, MAX_CONFIG))), source.name
        )
    finally:
        source.close()


def decode_config(data: bytes, where: str) -> str:
    """Decode a config file.

    Raises:
        MalformedCheckpointError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MalformedCheckpointError("not a UTF-8 text file", where=where) from error
