"""Prune a checkpoint to what inference needs, in its own layout and under its own names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vaeconv.autoencoder.match import DropReason, drop_reason, find_prefixes
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.option_checks import options_of
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import CheckFailedError, UsageError
from vaeconv.weights.detect import Detected, decide_config, detect
from vaeconv.weights.idle_options import (
    Rule,
    pattern_rules,
    pruning_rules,
    refuse_idle,
    variant_rule,
)
from vaeconv.weights.metadata import make_header
from vaeconv.weights.options import Part, PruneOptions
from vaeconv.weights.output import Output, Written, check_target, open_sources
from vaeconv.weights.output_names import OutputKind, output_kind
from vaeconv.weights.plan import Plan, Row
from vaeconv.weights.prune_plan import Group, PrunePlanner


class Probed(Protocol):
    """Result of a probe; :class:`vaeconv.models.probe.ProbeReport` is one."""

    @property
    def is_finite(self) -> bool:
        """True if activations fit fp16."""

    def describe(self) -> str:
        """Say it in one line."""

    def document(self) -> dict[str, Any]:
        """Describe it for machines."""


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


class PlannedPruning(NamedTuple):
    """Pruning that is planned and checked, and not written yet; its checkpoints are open.

    Attributes:
        result: The pruning, as of a dry run.
        kind: Kind of the output.
        checkpoints: The source, and the autoencoder that is put into it.
        options: Options of pruning.
        rows: The autoencoder's rows under their diffusers names and shapes.
        config: The autoencoder's config; empty for a file that will not be probed.
    """

    result: Pruning
    kind: OutputKind
    checkpoints: Sequence[Checkpoint]
    options: PruneOptions
    rows: Sequence[Row]
    config: Mapping[str, Any]

    def with_probe(self, probe: Probed) -> PlannedPruning:
        """Take a probe's result into a folder's config and the manifest.

        Raises:
            CheckFailedError: The probe found that fp16 is not enough, and it is required.
        """
        result = self.result
        if self.options.require_fp16 and not probe.is_finite:
            raise CheckFailedError(
                probe.describe(),
                where=result.source,
                hint="publish it in fp32 or bf16, or without --require-fp16-decode",
            )
        config = result.config and {**result.config, "force_upcast": not probe.is_finite}
        return self._replace(result=result._replace(config=config, probe=probe))

    def write(self) -> Pruning:
        """Write the output, whole or not at all.

        Raises:
            InputError: A source turns out to be bad while it is read.
            OutputError: The output cannot be written.
            UsageError: Decoding in fp16 is required, and was not probed.
        """
        result, options = self.result, self.options
        if options.require_fp16 and result.probe is None:
            raise UsageError("--require-fp16-decode needs a probe before writing")
        written, plan = Output(
            target=result.output,
            kind=self.kind,
            checkpoints=self.checkpoints,
            plan=result.plan,
            config=result.config,
            facts={
                "layout": result.layout.value if result.layout else None,
                "ema_tensors": sorted(row.name for row in result.plan.rows if row.is_ema),
                "vae": Path(options.vae).name if options.vae is not None else None,
                "probe": result.probe.document() if result.probe else None,
            },
            metadata=result.metadata,
            options=options,
            max_shard_size=options.max_shard_size,
        ).write()
        return result._replace(plan=plan, written=written)


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
        HubError: A source on the Hub cannot be fetched.

    Example:
        >>> print(prune("fixtures/tiny-kl.ckpt", "ema.safetensors", PruneOptions(ema=True)))
        pruned fixtures/tiny-kl.ckpt (torch zip, 1.3 MB) to ema.safetensors (438 kB)
          120 tensors kept, 239 dropped
        >>> from vaeconv.models.probe import probe_decoder  # between planning and writing
        >>> from vaeconv.weights.prune import plan_pruning
        >>> with plan_pruning("fixtures/tiny-kl.ckpt", "fp16.ckpt", will_probe=True) as planned:
        ...     probe = probe_decoder(planned.rows, planned.config)
        ...     planned.with_probe(probe).write().probe.is_finite
        True
    """
    with plan_pruning(source, output, options) as planned:
        return planned.result if dry_run else planned.write()


@contextmanager
def plan_pruning(
    source: AnyModel,
    output: str | os.PathLike[str],
    options: PruneOptions | None = None,
    *,
    will_probe: bool = False,
) -> Iterator[PlannedPruning]:
    """Plan and check a pruning, and keep its checkpoints open to probe and to write it.

    The arguments and what is raised are those of :func:`prune`; with ``will_probe`` the config that
    a probe needs is decided for a file, too.
    """
    options, source = options_of(PruneOptions, options), as_source(source)
    kind, target = output_kind(output)
    refuse_idle(pruning_rules(kind, target, source, options, will_probe=will_probe))
    is_folder = kind is OutputKind.FOLDER
    sources = [source, *([options.vae] if options.vae is not None else [])]
    with ExitStack() as stack:
        checkpoint, *others = checkpoints = open_sources(stack, sources, kind, target, options)
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
        notes = [*plan.notes]
        config: dict[str, Any] = {}
        if is_folder or will_probe:
            vae, probed = baked or (checkpoint, detected)
            if probed is None:
                raise UsageError("there is no autoencoder to probe", where=vae.name)
            decision, config = decide_config(vae, probed)
            notes += decision.notes() if is_folder else []
        check_target(target, sources, overwrite=options.overwrite, plan=plan)
        metadata, left_out = make_header(checkpoint.metadata, options, kind, plan, is_renamed=False)
        plan = plan._replace(notes=(*notes, *left_out))
        result = Pruning(
            source=checkpoint.name,
            container=checkpoint.container,
            size=checkpoint.size,
            output=target,
            layout=detected.autoencoder.layout if detected else None,
            plan=plan,
            groups=planner.account(plan),
            config=config if is_folder else None,
            metadata=metadata,
        )
        rows = planner.autoencoder_rows(plan)
        yield PlannedPruning(result, kind, checkpoints, options, rows, config)


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
