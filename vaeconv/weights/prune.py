"""Prune a checkpoint to what inference needs, in its own layout and under its own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.autoencoder.config import build_config
from vaeconv.autoencoder.match import DropReason, drop_reason, find_prefixes
from vaeconv.autoencoder.scaling import ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.notes import issue_warnings, warning
from vaeconv.common.option_checks import options_of
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import CheckFailedError, UsageError
from vaeconv.weights.detect import Survey, decide, survey_checkpoint
from vaeconv.weights.idle_options import Rule, pattern_rules, refuse_idle, variant_rule
from vaeconv.weights.metadata import Change, make_header
from vaeconv.weights.output import Output, Written, check_target, write_output, written_notes
from vaeconv.weights.output_names import OutputKind, check_order, is_address, output_kind
from vaeconv.weights.parts import Part
from vaeconv.weights.plan import Plan
from vaeconv.weights.prune_options import Probed, PruneOptions
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
    ``ema`` the average takes the place of the raw weights wherever a parameter has one. A cast
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
    refuse_idle(options.rules(kind, target, source))
    sources = [source, *([options.vae] if options.vae is not None else [])]
    check_order(sources, target)
    if any(is_address(os.fspath(one)) for one in sources):  # before anything is fetched
        check_target(target, sources, overwrite=options.overwrite)
    with ExitStack() as stack:
        checkpoints = [
            stack.enter_context(
                open_checkpoint(
                    path,
                    variant=None if kind is OutputKind.FOLDER else options.variant,
                    salvage=options.salvage,
                    download=options.download,
                    on_fetch=options.on_fetch,
                )
            )
            for path in sources
        ]
        checkpoint, *others = checkpoints
        survey = _survey(checkpoint, options)
        has_autoencoder = bool(others) or (survey is not None and Part.VAE in options.kept)
        refuse_idle(
            [
                variant_rule(options.variant, kind, checkpoints),
                Rule("--prefix", options.prefix is not None, has_autoencoder,
                     "no autoencoder is kept"),
                Rule("--source-prefix", options.source_prefix is not None, survey is not None,
                     "there is no autoencoder in it"),
            ]
        )  # fmt: skip
        planner = PrunePlanner(checkpoint, survey, options)
        baked = (others[0], survey_checkpoint(others[0])) if others else None
        plan = planner.plan(baked)
        names = {*checkpoint.tensors, *(row.name for row in plan.rows)}
        refuse_idle(pattern_rules("--fp16-except", options.fp16_except, names))
        if kind is OutputKind.FOLDER:
            _check_folder(checkpoint, survey, plan)
        config = probe = None
        if kind is OutputKind.FOLDER or options.probe:
            config, doubt = _build_config(*(baked or (checkpoint, survey)))
            if doubt and kind is OutputKind.FOLDER:
                plan = plan._replace(notes=(*plan.notes, warning(doubt)))
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
        change = Change.of(plan, is_renamed=False)
        header = make_header(
            checkpoint.metadata, options.metadata, kind, change, keep=options.keep_metadata
        )
        plan = plan._replace(notes=(*plan.notes, *header.notes))
        result = Pruning(
            source=checkpoint.name,
            container=checkpoint.container,
            size=checkpoint.size,
            output=target,
            layout=survey.autoencoder.layout if survey else None,
            plan=plan,
            groups=planner.account(plan),
            config=config if kind is OutputKind.FOLDER else None,
            metadata=header.entries,
            probe=probe,
        )
        if dry_run:
            return result
        facts = _facts(result, options)
        written = write_output(
            Output(
                target,
                kind,
                options.variant,
                result.config,
                facts,
                options.max_shard_size,
                result.metadata,
            ),
            checkpoints,
            plan,
            overwrite=options.overwrite,
            manifest=options.manifest,
            hash_source=options.hash_source,
            copy=options.copy,
        )
        notes = (*plan.notes, *written_notes(written))
        issue_warnings(notes)
        return result._replace(written=written, plan=plan._replace(notes=notes))


def _survey(checkpoint: Checkpoint, options: PruneOptions) -> Survey | None:
    """Recognise the autoencoder; a diffusion model may come without, unless it alone is wanted."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    is_model = any(drop_reason(name, "") is DropReason.UNET for name in shapes)
    if is_model and not find_prefixes(shapes) and not options.vae_only:
        return None
    return survey_checkpoint(checkpoint, prefix=options.source_prefix)


def _check_folder(checkpoint: Checkpoint, survey: Survey | None, plan: Plan) -> None:
    """Check that what is left is a diffusers autoencoder.

    Raises:
        UsageError: The source is not in the diffusers layout, or more than the autoencoder stays.
    """
    if survey is None or survey.autoencoder.layout is not Layout.DIFFUSERS:
        raise UsageError(
            "pruning keeps the layout, and a folder is for the diffusers layout",
            where=checkpoint.name,
            hint="name a .safetensors file, or use vaeconv convert",
        )
    autoencoder = survey.autoencoder
    names = {pair.name(Layout.DIFFUSERS) for pair in autoencoder.keys}
    aliases = {key[len(autoencoder.prefix) :] for key in autoencoder.keys.values()}
    other = next((row.name for row in plan.rows if row.name not in names | aliases), None)
    if other:
        raise UsageError(
            f"a diffusers folder holds an autoencoder without a prefix, and not {other}",
            where=checkpoint.name,
            hint="name a .safetensors file, or see --vae-only",
        )


def _build_config(
    checkpoint: Checkpoint, survey: Survey | None
) -> tuple[dict[str, Any], str | None]:
    """Build the config of the autoencoder, and say what of it is only assumed.

    Raises:
        UsageError: There is none.
        AmbiguousInputError: Its scaling cannot be told.
    """
    if survey is None:
        raise UsageError("there is no autoencoder to probe", where=checkpoint.name)
    autoencoder = survey.autoencoder
    decision = decide(checkpoint, survey, ScalingOptions())
    config = build_config(
        autoencoder.topology, decision.scaling, sample_size=decision.sample_size, given=survey.given
    )
    return config, decision.warning


def _facts(result: Pruning, options: PruneOptions) -> dict[str, Any]:
    """Gather what the manifest says of the plan."""
    ema, raw = result.plan.ema_counts
    return {
        "source": {"name": Path(result.source).name, "size": result.size},
        "layout": result.layout.value if result.layout else None,
        "dtype": options.dtype,
        "tensors": len(result.plan.rows),
        "ema": {"ema": ema, "raw": raw},
        "ema_tensors": sorted(row.name for row in result.plan.rows if row.is_ema),
        "dropped": result.plan.drop_counts(),
        "vae": Path(options.vae).name if options.vae is not None else None,
        "probe": result.probe.document() if result.probe else None,
    }
