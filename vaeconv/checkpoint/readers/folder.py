"""Diffusers folders: config and weights, plain, with a variant, or in shards."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

from vaeconv.checkpoint.readers.by_content import open_source
from vaeconv.checkpoint.text_file import read_text
from vaeconv.checkpoint.tree import FileTree
from vaeconv.checkpoint.types import Checkpoint, ConfigText
from vaeconv.errors import (
    AmbiguousInputError,
    MalformedCheckpointError,
    NotACheckpointError,
    listed,
)

STEM = "diffusion_pytorch_model"
CONFIG = "config.json"
_MAX_INDEX = 16 << 20
_SHARD = r"-\d{5}-of-\d{5}"


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
    end = re.escape(f".{variant}") if variant else ""
    # diffusers before 0.32 named a variant's index and shards so, and later ones still read it.
    older = rf"|{_SHARD}{end}\.safetensors|\.safetensors{end}\.index\.json" if variant else ""
    forms = rf"{end}(?:{_SHARD})?\.safetensors|\.safetensors\.index{end}\.json{older}"
    return bool(re.fullmatch(f"{STEM}(?:{forms})", name))


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
        others = [f"{tree.name}/{name}" for name in _other_checkpoints(names)]
        raise NotACheckpointError(
            f"no {STEM}.safetensors in this folder",
            where=tree.name,
            hint=f"name one of its checkpoints: {listed(others, 5)}"
            if others
            else "name a checkpoint file, or a folder that save_pretrained wrote",
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
    with ExitStack() as opened:
        parts: dict[str, Checkpoint] = {}
        for name in files:
            parts[name] = opened.enter_context(open_source(tree.open(name), salvage=salvage))
        for tensor, shard in weight_map.items():
            if tensor not in parts[shard].tensors:
                raise MalformedCheckpointError(
                    f"the index says that {shard} holds {tensor}, which it does not",
                    where=f"{tree.name}/{found[variant]}",
                )
        joined = _join(tree, list(parts.values()), variant)
        opened.pop_all()  # from here on they are the caller's
    return joined


# What leads to weights, in the order in which diffusers looks: an index wins over one file, and
# safetensors over a pickle. The second spelling of an index is that of diffusers before 0.32.
_LEADS = tuple(
    re.compile(rf"{STEM}{rest}")
    for rest in (
        r"\.safetensors\.index(?:\.(?P<variant>.+))?\.json",
        r"\.safetensors\.(?P<variant>.+)\.index\.json",
        r"(?:\.(?P<variant>.+))?\.safetensors",
        r"(?:\.(?P<variant>.+))?\.bin",
        r"\.bin\.index(?:\.(?P<variant>.+))?\.json",
        r"\.bin\.(?P<variant>.+)\.index\.json",
    )
)


def _candidates(names: list[str]) -> dict[str | None, str]:
    """Map each variant to the file that leads to its weights."""
    found: dict[str | None, str] = {}
    for lead in _LEADS:
        for name in names:
            match = lead.fullmatch(name)
            if match and "-of-" not in name:
                found.setdefault(match["variant"], name)
    return found


_ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
_AUTOENCODER = re.compile(r"vae|autoencoder|first_stage|kl-?f\d|(^|/)ae[._-]", re.IGNORECASE)


def _other_checkpoints(names: list[str]) -> list[str]:
    """List the checkpoints among files, those that most likely hold an autoencoder first."""
    found = [name for name in names if name.lower().endswith(_ENDINGS)]
    return sorted(
        found, key=lambda n: (not _AUTOENCODER.search(n), n.count("/"), _ENDINGS.index(_end(n)), n)
    )


def _end(name: str) -> str:
    return next(ending for ending in _ENDINGS if name.lower().endswith(ending))


def _read_weight_map(tree: FileTree, name: str, names: list[str]) -> dict[str, str]:
    """Read which shard holds which tensor; empty where the weights are one file."""
    if not name.endswith(".json"):
        return {}
    try:
        weight_map = dict(json.loads(read_text(tree.open(name), _MAX_INDEX))["weight_map"])
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


def _join(tree: FileTree, parts: list[Checkpoint], variant: str | None) -> Checkpoint:
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    if len(tensors) != sum(len(part.tensors) for part in parts):
        raise MalformedCheckpointError("two shards hold the same tensor", where=tree.name)
    config = None
    if tree.holds(CONFIG):
        config = ConfigText(f"{tree.name}/{CONFIG}", read_text(tree.open(CONFIG)))
    kind = parts[0].container + (f", {len(parts)} shards" if len(parts) > 1 else "")
    return Checkpoint(
        name=tree.name,
        container=f"diffusers folder ({kind})",
        tensors=tensors,
        sources=tuple(source for part in parts for source in part.sources),
        wrapper=parts[0].wrapper,
        beside=tuple(prefix for part in parts for prefix in part.beside),
        non_tensors={name: kind for part in parts for name, kind in part.non_tensors.items()},
        metadata={key: text for part in reversed(parts) for key, text in part.metadata.items()},
        config=config,
        globals=tuple(use for part in parts for use in part.globals),
        variant=variant,
    )
