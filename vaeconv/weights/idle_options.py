"""Options that have no effect in a call are wrong usage: whoever gives one expects something of it.

So they are where the call itself, its inputs' kinds or its output's leave nothing for an option to
do. One that finds nothing to do by chance, such as ``allow_nonfinite`` on sound weights, is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from vaeconv.checkpoint.types import Checkpoint
from vaeconv.errors import UsageError
from vaeconv.weights.manifest import MANIFEST
from vaeconv.weights.options import ConvertOptions, Part, PruneOptions
from vaeconv.weights.output_names import OutputKind, is_address, is_file
from vaeconv.weights.plan import KEEP

_VARIANTS = "variants are files in a diffusers folder"


class Rule(NamedTuple):
    """Condition under which an option has an effect.

    Attributes:
        option: The option, as on the command line.
        is_given: Whether it differs from its default.
        has_effect: Whether it can do anything in this call.
        why: Why not, where it cannot.
    """

    option: str
    is_given: bool
    has_effect: bool
    why: str


def refuse_idle(rules: Iterable[Rule]) -> None:
    """Refuse options that are given and have no effect.

    Raises:
        UsageError: There are some.
    """
    idle = [rule for rule in rules if rule.is_given and not rule.has_effect]
    if idle:
        first = idle[0]
        more = [rule.option for rule in idle[1:] if rule.option != first.option]
        also = f" (nor have {', '.join(more)})" if more else ""
        raise UsageError(
            f"{first.option} has no effect here: {first.why}{also}", hint="leave it out"
        )


def reading_rules(
    sources: Sequence[str | os.PathLike[str] | None],
    *,
    download: bool,
    variant: str | None = None,
    option: str = "--variant",
) -> list[Rule]:
    """Make the rules of options of reading, as far as names of inputs tell.

    Args:
        sources: The inputs; None where one was not named.
        download: As given.
        variant: As given.
        option: What the command calls the variant.
    """
    texts = [os.fspath(source) for source in sources if source is not None]
    is_remote = any(map(is_address, texts))
    is_folder = any(is_address(text) or not is_file(Path(text)) for text in texts)
    return [
        Rule("--download", download, is_remote, "it is for files on the Hub"),
        Rule(option, variant is not None, is_folder, _VARIANTS),
    ]


def writing_rules(
    kind: OutputKind, target: Path, options: ConvertOptions | PruneOptions
) -> list[Rule]:
    """Make the rules of options that convert and prune share."""
    is_folder, is_cast, copy = kind is OutputKind.FOLDER, options.dtype != KEEP, options.copy
    has_manifest = (
        is_folder or options.manifest or is_file(target.with_name(f"{target.name}.{MANIFEST}"))
    )
    return [
        Rule("--clamp", copy.clamp, is_cast, "nothing is cast with --dtype keep"),
        Rule("--allow-nonfinite", copy.allow_nonfinite, copy.check or is_cast,
             "--no-check does not look for NaN"),
        Rule("--manifest", options.manifest, not is_folder, "a folder always has one"),
        Rule("--hash-source", options.hash_source, has_manifest,
             "the hash goes into a manifest, which a file gets with --manifest"),
        Rule("--metadata", bool(options.metadata), kind is not OutputKind.TORCH_ZIP,
             f"{target.suffix} files have no header for metadata, .safetensors files have"),
    ]  # fmt: skip


def conversion_rules(
    kind: OutputKind, target: Path, source: str | os.PathLike[str], options: ConvertOptions
) -> list[Rule]:
    """Make the rules of options of converting, as far as names of input and output tell."""
    is_folder, scaling = kind is OutputKind.FOLDER, options.scaling
    config = "it goes into a config, and a CompVis file has none"
    return [
        *reading_rules([source], download=options.download),
        *writing_rules(kind, target, options),
        Rule("--family", scaling.family is not None, is_folder, config),
        Rule("--scaling-factor", scaling.scaling_factor is not None, is_folder, config),
        Rule("--shift-factor", scaling.shift_factor is not None, is_folder, config),
        Rule("--legacy-names", options.legacy_names, is_folder, "a CompVis file has its own names"),
        Rule("--prefix", bool(options.prefix), not is_folder or options.source_prefix is None,
             "a folder's keys have none, and --source-prefix says which autoencoder to read"),
    ]  # fmt: skip


def pruning_rules(
    kind: OutputKind,
    target: Path,
    source: str | os.PathLike[str],
    options: PruneOptions,
    *,
    will_probe: bool,
) -> list[Rule]:
    """Make the rules of options of pruning, as far as names of inputs and output tell."""
    default, keep, drop = options.default_parts, options.keep, options.drop
    kept = [Rule(f"--keep {part.value}", True, part not in default, "it is kept anyway")
            for part in keep]  # fmt: skip
    dropped = [Rule(f"--drop {part.value}", True, part in default, "it is dropped anyway")
               for part in drop - keep]  # fmt: skip
    both = sorted(part.value for part in keep & drop)
    has_vae = options.vae is not None
    return [
        *reading_rules([source, options.vae], download=options.download),
        *writing_rules(kind, target, options),
        Rule("--fp16-except", bool(options.fp16_except), options.dtype != KEEP, "nothing is cast"),
        Rule("--max-shard-size", options.max_shard_size is not None, kind is OutputKind.FOLDER,
             "only a folder's weights are cut into several files"),
        *sorted(kept + dropped),
        *[Rule(f"--keep {name}", True, False, f"--drop {name} says the opposite") for name in both],
        Rule("--vae", has_vae, not options.vae_only,
             "--vae-only writes the autoencoder of IN; use vaeconv convert for another"),
        Rule("--drop vae", Part.VAE in drop, not has_vae, "--vae puts another one there"),
        Rule("--require-fp16-decode", options.require_fp16, will_probe, "there is no probe"),
    ]  # fmt: skip


def variant_rule(
    variant: str | None, kind: OutputKind | None, checkpoints: Iterable[Checkpoint]
) -> Rule:
    """Make the rule of a variant: it names a file in a folder, of the output or else an input."""
    is_folder = kind is OutputKind.FOLDER or any(
        one.container.startswith("diffusers folder") for one in checkpoints
    )
    return Rule("--variant", variant is not None, is_folder, _VARIANTS)


def pattern_rules(option: str, patterns: Iterable[str], names: Iterable[str]) -> list[Rule]:
    """Make the rules of patterns of keys: they have an effect if they match a key."""
    known = list(names)
    return [
        Rule(f"{option} {pattern}", True, any(fnmatchcase(name, pattern) for name in known),
             "no key matches")
        for pattern in patterns
    ]  # fmt: skip
