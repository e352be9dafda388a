"""Prune a checkpoint to what inference needs, in its own layout and under its own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.autoencoder.match import DropReason, drop_reason, find_prefixes
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.option_checks import options_of
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import CheckFailedError, UsageError
from vaeconv.weights.detect import Detected, decide_config, detect
from vaeconv.weights.idle_options import (
    Rule,
    pattern_rules,
    reading_rules,
    refuse_idle,
    variant_rule,
    writing_rules,
)
from vaeconv.weights.metadata import make_header
from vaeconv.weights.options import Part, Probed, PruneOptions
from vaeconv.weights.output import Output, Written, check_target
from vaeconv.weights.output_names import OutputKind, check_order, is_address, output_kind
from vaeconv.weights.plan import KEEP, Plan
from vaeconv.weights.prune_plan import Group, PrunePlanner


class Pruning(NamedTuple):
    """Result of pruning, or of its dry run.

    Attributes:
        source: The source, as it was named.
        container: Kind of the file, such as ``safetensors``.
        size: Size in bytes.
        output: The output.
        layout: Naming of the autoencoder's keys; None if there is no autoencoder.
        plan: Every row and every dropped key.
        groups: The account by parts and by rules.
        config: The config that goes with a folder; None for a file.
        metadata: Entries of the header of a safetensors file, beside ``format``.
        written: The files; empty for a dry run.
        probe: Result of decoding in fp16; None if it was not requested.

    Example:
        >>> options = PruneOptions(ema=True)
        >>> result = prune("fixtures/tiny-kl.ckpt", "ema.safetensors", options, dry_run=True)
        >>> result.plan.ema_counts, result.groups[0].name
        ((66, 54), 'vae')
    """

    source: str
    container: str
    size: int
    output: Path
    layout: Layout | None
    plan: Plan
    groups: tuple[Group, ...]
    config: dict[str, Any] | None
    metadata: Mapping[str, str]
    written: tuple[Written, ...] = ()
    probe: Probed | None = None

    def __str__(self) -> str:
        verb = "pruned" if self.written else "would prune"
        kept = sum(group.tensors for group in self.groups if group.is_kept)
        dropped = sum(group.tensors for group in self.groups if not group.is_kept)
        return (
            f"{verb} {self.source} ({self.container}, {human_size(self.size)}) to {self.output} "
            f"({human_size(self.plan.nbytes)})\n  {plural(kept, 'tensor')} kept, {dropped} dropped"
        )


def prune(
    source: AnyModel,
    output: str | os.PathLike[str],
    options: PruneOptions | None = None,
    *,
    dry_run: bool = False,
) -> Pruning:
    """Write a checkpoint again without what only training needs.

    Layout and names stay. Optimizer, callbacks, loss and EMA are left out; with
    ``ema`` the EMA weight takes the place of the raw weights wherever a parameter has one. A cast
    rounds to nearest even, as torch does.

    Args:
        source: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        output: The file to write; a folder where the source is a diffusers folder.
        options: Options of pruning.
        dry_run: Plan and check everything, and write nothing.

    Returns:
        What was done.

    Raises:
        InputError: The source is bad or unsafe; has no EMA weights though they were asked for;
            a value does not fit the dtype.
        OutputError: The output exists or cannot be written.
        UsageError: The options do not fit together or the source.
        CheckFailedError: A probe found that fp16 is not enough, and it was required.
        HubError: A source on the Hub cannot be fetched.

    Example:
        >>> print(prune("fixtures/tiny-kl.ckpt", "ema.safetensors", PruneOptions(ema=True)))
        pruned fixtures/tiny-kl.ckpt (torch zip, 1.3 MB) to ema.safetensors (438 kB)
          120 tensors kept, 239 dropped
    """
    options, source = options_of(PruneOptions, options), as_source(source)
    kind, target = output_kind(output)
    refuse_idle(option_rules(kind, target, source, options))
    is_folder = kind is OutputKind.FOLDER
    sources = [source, *([options.vae] if options.vae is not None else [])]
    check_order(sources, target)
    if any(is_address(os.fspath(path)) for path in sources):  # before anything is fetched
        check_target(target, sources, overwrite=options.overwrite)
    with ExitStack() as stack:
        checkpoints = [
            stack.enter_context(
                open_checkpoint(
                    path,
                    variant=None if is_folder else options.variant,
                    salvage=options.salvage,
                    download=options.download,
                    on_fetch=options.on_fetch,
                )
            )
            for path in sources
        ]
        checkpoint, *others = checkpoints
        detected = _detect(checkpoint, options)
        has_autoencoder = bool(others) or (detected is not None and Part.VAE in options.kept)
        refuse_idle(
            [
                variant_rule(options.variant, kind, checkpoints),
                Rule("--prefix", options.prefix is not None, has_autoencoder,
                     "no autoencoder is kept"),
                Rule("--source-prefix", options.source_prefix is not None, detected is not None,
                     "there is no autoencoder in it"),
            ]
        )  # fmt: skip
        planner = PrunePlanner(checkpoint, detected, options)
        baked = (others[0], detect(others[0])) if others else None
        plan = planner.plan(baked)
        names = {*checkpoint.tensors, *(row.name for row in plan.rows)}
        refuse_idle(pattern_rules("--fp16-except", options.fp16_except, names))
        if is_folder:
            _check_folder(checkpoint, detected, plan)
        notes, config, probe = [*plan.notes], None, None
        if is_folder or options.probe:
            vae, probed = baked or (checkpoint, detected)
            if probed is None:
                raise UsageError("there is no autoencoder to probe", where=vae.name)
            decision, config = decide_config(vae, probed)
            notes += decision.notes() if is_folder else []
        check_target(target, sources, overwrite=options.overwrite, plan=plan)
        if options.probe and config:
            probe = options.probe(planner.autoencoder_rows(plan), config)
            config["force_upcast"] = not probe.is_finite
            if options.require_fp16 and not probe.is_finite:
                raise CheckFailedError(
                    probe.describe(),
                    where=checkpoint.name,
                    hint="publish it in fp32 or bf16, or without --require-fp16-decode",
                )
        config = config if is_folder else None
        layout = detected.autoencoder.layout if detected else None
        metadata, left_out = make_header(checkpoint.metadata, options, kind, plan, is_renamed=False)
        plan = plan._replace(notes=(*notes, *left_out))
        groups = planner.account(plan)
        written: tuple[Written, ...] = ()
        if not dry_run:
            written, plan = Output(
                target=target,
                kind=kind,
                checkpoints=checkpoints,
                plan=plan,
                config=config,
                facts={
                    "layout": layout.value if layout else None,
                    "ema_tensors": sorted(row.name for row in plan.rows if row.is_ema),
                    "vae": Path(options.vae).name if options.vae is not None else None,
                    "probe": probe.document() if probe else None,
                },
                metadata=metadata,
                options=options,
                max_shard_size=options.max_shard_size,
            ).write()
        return Pruning(
            source=checkpoint.name,
            container=checkpoint.container,
            size=checkpoint.size,
            output=target,
            layout=layout,
            plan=plan,
            groups=groups,
            config=config,
            metadata=metadata,
            written=written,
            probe=probe,
        )


def option_rules(
    kind: OutputKind, target: Path, source: str | os.PathLike[str], options: PruneOptions
) -> list[Rule]:
    """Make the rules of the options, as far as names of inputs and output tell."""
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
        Rule("--require-fp16-decode", options.require_fp16, options.probe is not None,
             "there is no probe"),
    ]  # fmt: skip


def _detect(checkpoint: Checkpoint, options: PruneOptions) -> Detected | None:
    """Recognise the autoencoder; a diffusion model may come without, unless it alone is wanted."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    is_model = any(drop_reason(name, "") is DropReason.UNET for name in shapes)
    if is_model and not find_prefixes(shapes) and not options.vae_only:
        return None
    return detect(checkpoint, prefix=options.source_prefix)


def _check_folder(checkpoint: Checkpoint, detected: Detected | None, plan: Plan) -> None:
    """Check that what is left is a diffusers autoencoder.

    Raises:
        UsageError: The source is not in the diffusers layout, or more than the autoencoder stays.
    """
    if detected is None or detected.autoencoder.layout is not Layout.DIFFUSERS:
        raise UsageError(
            "pruning keeps the layout, and a folder is for the diffusers layout",
            where=checkpoint.name,
            hint="name a .safetensors file, or use vaeconv convert",
        )
    autoencoder = detected.autoencoder
    names = {pair.name(Layout.DIFFUSERS) for pair in autoencoder.keys}
    aliases = {key[len(autoencoder.prefix) :] for key in autoencoder.keys.values()}
    other = next((row.name for row in plan.rows if row.name not in names | aliases), None)
    if other:
        raise UsageError(
            f"a diffusers folder holds an autoencoder without a prefix, and not {other}",
            where=checkpoint.name,
            hint="name a .safetensors file, or see --vae-only",
        )
