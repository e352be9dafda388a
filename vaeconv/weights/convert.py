"""Convert an autoencoder between the CompVis and the diffusers layout."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.autoencoder.match import DropReason
from vaeconv.autoencoder.scaling import Decision
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common.notes import Note, note, warning
from vaeconv.common.option_checks import options_of
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import UnmappedKeysError, name_parameters
from vaeconv.weights.detect import Detected, decide_config, detect
from vaeconv.weights.ema import check_ema_weights, choose_ema, shadow_of
from vaeconv.weights.idle_options import (
    conversion_rules,
    pattern_rules,
    refuse_idle,
    variant_rule,
)
from vaeconv.weights.metadata import make_header
from vaeconv.weights.options import ConvertOptions
from vaeconv.weights.output import Output, Written, check_target, open_sources
from vaeconv.weights.output_names import OutputKind, output_kind
from vaeconv.weights.parameters import weight_dtype
from vaeconv.weights.plan import Plan, Row


class Conversion(NamedTuple):
    """Result of a conversion, or of its dry run.

    Attributes:
        source: The source, as it was named.
        container: Kind of the file, such as ``safetensors``.
        output: The output.
        source_layout: Naming in the source.
        layout: Naming in the output.
        plan: Every row and every dropped key.
        decision: Scaling and family; None where the output has no config.
        config: The config that was written; None if there is none.
        metadata: Entries of the header of a safetensors file, beside ``format``.
        written: The files; empty for a dry run.

    Example:
        >>> result = convert("fixtures/tiny-kl.ckpt", "out", dry_run=True)
        >>> result.layout.value, len(result.plan.rows), result.written
        ('diffusers', 120, ())
    """

    source: str
    container: str
    output: Path
    source_layout: Layout
    layout: Layout
    plan: Plan
    decision: Decision | None
    config: dict[str, Any] | None
    metadata: Mapping[str, str]
    written: tuple[Written, ...] = ()

    def lines(self) -> Iterator[str]:
        """Say in a few lines what was converted, or would be."""
        verb = "converted" if self.written else "would convert"
        yield (
            f"{verb} {self.source} ({self.container}, {self.source_layout.value}) to "
            f"{self.output} ({self.layout.value})"
        )
        yield f"  {plural(len(self.plan.rows), 'tensor')}, {human_size(self.plan.nbytes)}"
        if self.decision:
            scaling = self.decision.scaling
            shift = scaling.shift_factor
            shifted = "" if shift is None else f", shift factor {shift:g}"
            yield f"  scaling factor {scaling.scaling_factor:g}{shifted} ({scaling.source})"
        if self.plan.dropped:
            counts = ", ".join(f"{count} {why}" for why, count in self.plan.drop_counts().items())
            yield f"  left out: {counts}"

    def __str__(self) -> str:
        return name_parameters("\n".join(self.lines()))

    def facts(self) -> dict[str, Any]:
        """Gather what the manifest says beyond the plan."""
        layouts = {"from": self.source_layout.value, "to": self.layout.value}
        facts: dict[str, Any] = {"layout": layouts}
        if self.decision:
            facts["family"] = self.decision.family.name if self.decision.family else None
            facts["scaling"] = self.decision.scaling.facts()
        return facts


class PlannedConversion(NamedTuple):
    """Conversion that is planned and checked, and not written yet; its checkpoint is open.

    Attributes:
        result: The conversion, as of a dry run.
        kind: Kind of the output.
        checkpoint: The source.
        options: Options of the conversion.
    """

    result: Conversion
    kind: OutputKind
    checkpoint: Checkpoint
    options: ConvertOptions

    def write(self) -> Conversion:
        """Write the output, whole or not at all.

        Raises:
            InputError: The source turns out to be bad while it is read.
            OutputError: The output cannot be written.
        """
        result = self.result
        written, plan = Output(
            target=result.output,
            kind=self.kind,
            checkpoints=[self.checkpoint],
            plan=result.plan,
            config=result.config,
            facts=result.facts(),
            metadata=result.metadata,
            options=self.options,
        ).write()
        return result._replace(plan=plan, written=written)


def convert(
    source: AnyModel,
    output: str | os.PathLike[str],
    options: ConvertOptions | None = None,
    *,
    dry_run: bool = False,
) -> Conversion:
    """Convert an autoencoder to the layout that the output's name stands for.

    A name that ends in ``.safetensors``, ``.sft``, ``.ckpt``, ``.pt``, ``.pth`` or ``.bin`` is a
    file in the CompVis layout, one without an ending or with a slash behind it a diffusers
    folder. Every tensor keeps its bits unless
    ``dtype`` asks for a cast.

    Args:
        source: Anything that :func:`~vaeconv.checkpoint.open.open_checkpoint` opens.
        output: The file or folder to write.
        options: Options of the conversion.
        dry_run: Plan and check everything, and write nothing.

    Returns:
        What was done.

    Raises:
        InputError: The source is bad, unsafe, or no autoencoder that diffusers can express.
        OutputError: The output exists or cannot be written.
        UsageError: The options do not fit together.
        HubError: A source on the Hub cannot be fetched.

    Example:
        >>> options = ConvertOptions(scaling=ScalingOptions(scaling_factor=0.18215))
        >>> print(convert("fixtures/tiny-kl.ckpt", "out", options))
        converted fixtures/tiny-kl.ckpt (torch zip, compvis) to out (diffusers)
          120 tensors, 438 kB
          scaling factor 0.18215 (scaling_factor)
          left out: 76 ema, 16 loss
        >>> model = AutoencoderKL.from_pretrained("out")  # a model or a state dict is a source, too
        >>> convert(model, "back.safetensors").container
        'in memory'
    """
    with plan_conversion(source, output, options) as planned:
        return planned.result if dry_run else planned.write()


@contextmanager
def plan_conversion(
    source: AnyModel, output: str | os.PathLike[str], options: ConvertOptions | None = None
) -> Iterator[PlannedConversion]:
    """Plan and check a conversion, and keep its checkpoint open to write it.

    The arguments and what is raised are those of :func:`convert`.
    """
    options, source = options_of(ConvertOptions, options), as_source(source)
    kind, target = output_kind(output)
    is_folder = kind is OutputKind.FOLDER
    refuse_idle(conversion_rules(kind, target, source, options))
    with ExitStack() as stack:
        (checkpoint,) = open_sources(stack, [source], kind, target, options)
        refuse_idle(
            [
                variant_rule(options.variant, kind, [checkpoint]),
                *pattern_rules("--drop", options.drop, checkpoint.tensors),
            ]
        )
        detected = _detect(checkpoint, options, is_folder=is_folder)
        source_layout = detected.autoencoder.layout
        layout = Layout.DIFFUSERS if is_folder else Layout.COMPVIS
        if detected.provided and not is_folder:
            detected.provided.check_compvis()
        plan = build_plan(checkpoint, detected, layout, options)
        notes = [*plan.notes]
        decision = config = None
        if is_folder:
            decision, config = decide_config(checkpoint, detected, options.scaling)
            notes += decision.notes()
        is_renamed = source_layout is not layout
        metadata, left_out = make_header(
            checkpoint.metadata, options, kind, plan, is_renamed=is_renamed
        )
        plan = plan._replace(notes=(*notes, *left_out))
        check_target(target, [source], overwrite=options.overwrite, plan=plan)
        result = Conversion(
            checkpoint.name,
            checkpoint.container,
            target,
            source_layout,
            layout,
            plan,
            decision,
            config,
            metadata,
        )
        yield PlannedConversion(result, kind, checkpoint, options)


def _detect(checkpoint: Checkpoint, options: ConvertOptions, *, is_folder: bool) -> Detected:
    prefix = options.source_prefix
    if prefix is None and is_folder:
        prefix = options.prefix or None
    try:
        return detect(checkpoint, prefix=prefix, config=options.config, drop=options.drop)
    except UnmappedKeysError as error:
        if options.drop:
            error.hint = f"--drop {shlex.join(options.drop)} may have left them out"
        raise


def build_plan(
    checkpoint: Checkpoint, detected: Detected, layout: Layout, options: ConvertOptions
) -> Plan:
    """Pair every tensor of the output with the tensor that it is made of.

    Raises:
        EmaError: EMA weights were asked for, and there are none.
        UnmappedKeysError: A shadow has another shape than its parameter.
        UnsupportedModelError: A tensor is not of floating point.
    """
    autoencoder = detected.autoencoder
    notes = [*detected.notes, *_ema_notes(checkpoint, detected, options)]
    dropped = dict(autoencoder.dropped)
    dropped.update(dict.fromkeys(checkpoint.non_tensors, DropReason.NOT_A_TENSOR))
    prefix = options.prefix if layout is Layout.COMPVIS else ""
    shadows = detected.ema.shadows if options.ema or detected.ema.is_whole else {}
    rows: list[Row] = []
    for pair, key in autoencoder.keys.items():
        shadow = shadows.get(pair.compvis)
        tensor = checkpoint.tensors[key]
        if shadow:
            tensor = shadow_of(tensor, checkpoint.tensors[shadow], checkpoint.name)
        rows.append(
            Row(
                prefix + pair.name(layout, legacy=options.legacy_names),
                tensor,
                pair.shape(layout),
                weight_dtype(tensor, options.dtype, checkpoint.name),
                shadow is not None,
            )
        )
    unknown = [name for name, reason in dropped.items() if reason is DropReason.UNKNOWN]
    if unknown:
        text = f"{plural(len(unknown), 'key')} of unknown purpose outside the autoencoder"
        notes.append(warning(f"left out: {text}, such as {unknown[0]}"))
    return Plan(tuple(rows), dropped, tuple(notes))


def _ema_notes(
    checkpoint: Checkpoint, detected: Detected, options: ConvertOptions
) -> Iterator[Note]:
    ema, total = detected.ema, len(detected.autoencoder.keys)
    if options.ema:
        by_name = choose_ema(checkpoint, detected)
        shadows = {
            key: by_name[pair.compvis]
            for pair, key in detected.autoencoder.keys.items()
            if pair.compvis in by_name
        }
        count = plural(len(shadows), "tensor")
        yield note(f"EMA weights for {count}, raw weights for {total - len(shadows)}")
        yield from check_ema_weights(checkpoint, detected, shadows)
    elif ema.shadows and not ema.is_whole:
        yield note(
            f"raw weights are used; the file also holds EMA weights for {len(ema.shadows)} of "
            f"{plural(total, 'tensor')} ({ema.prefix.rstrip('.')}), which --ema uses"
        )
