"""Convert an autoencoder between the CompVis and the diffusers layout."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vaeconv.autoencoder.config import build_config
from vaeconv.autoencoder.match import DropReason
from vaeconv.autoencoder.scaling import Decision, ScalingOptions
from vaeconv.autoencoder.topology import Layout
from vaeconv.checkpoint.open import open_checkpoint
from vaeconv.checkpoint.readers.in_memory import AnyModel, as_source
from vaeconv.checkpoint.types import Checkpoint
from vaeconv.common import option_docs as docs
from vaeconv.common.notes import Note, issue_warnings, note, warning
from vaeconv.common.option_checks import CAST_DTYPES, Text, check_fields, options_of
from vaeconv.common.option_docs import Doc
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import UnmappedKeysError, name_parameters
from vaeconv.weights.detect import Survey, decide, survey_checkpoint
from vaeconv.weights.ema import check_average, choose_average, shadow_of
from vaeconv.weights.execute import CopyOptions
from vaeconv.weights.idle_options import (
    Rule,
    pattern_rules,
    reading_rules,
    refuse_idle,
    variant_rule,
    writing_rules,
)
from vaeconv.weights.metadata import Change, make_header
from vaeconv.weights.output import Output, Written, check_target, write_output, written_notes
from vaeconv.weights.output_names import OutputKind, check_order, is_address, output_kind
from vaeconv.weights.parameters import weight_dtype
from vaeconv.weights.plan import KEEP, Plan, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Options of a conversion; each says what it does.

    Attributes:
        scaling: Scaling and shift, where the user knows them.
        copy: Checks while tensors are copied.
        on_fetch: Called with the bytes that arrived from the Hub, from any thread.

    Example:
        >>> options = ConvertOptions(ema=True, dtype="fp16", scaling=ScalingOptions(family="sd1"))
        >>> options.dtype
        'fp16'
    """

    dtype: Annotated[str, docs.choice("Type to cast the weights to", "TYPE", CAST_DTYPES)] = KEEP
    ema: Annotated[
        bool,
        Doc("Use the EMA weights of tensors that have some.", flags=("--ema/--no-ema",)),
    ] = False
    variant: docs.OutputVariant = None
    prefix: Annotated[
        str,
        Doc(
            "Prefix of the keys to write into a CompVis file, such as first_stage_model.; for a "
            "diffusers folder, whose keys have none, the same as --source-prefix.",
            "PREFIX",
            rule=Text,
            parse=docs.with_dot,
        ),
    ] = ""
    legacy_names: Annotated[bool, Doc("Write the attention names of diffusers before 0.17.")] = (
        False
    )
    overwrite: docs.Overwrite = False
    manifest: docs.Manifest = False
    metadata: docs.Metadata = field(default_factory=dict)
    keep_metadata: docs.KeepMetadata = True
    scaling: ScalingOptions = ScalingOptions()
    config: docs.Config = None
    copy: CopyOptions = CopyOptions()
    hash_source: docs.HashSource = False
    source_prefix: docs.SourcePrefix = None
    drop: Annotated[
        tuple[str, ...],
        Doc("Pattern of keys to leave out; repeatable.", "GLOB", docs.EXPERT),
    ] = ()
    salvage: docs.Salvage = False
    download: docs.Download = False
    on_fetch: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


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
    options, source = options_of(ConvertOptions, options), as_source(source)
    kind, target = output_kind(output)
    is_folder = kind is OutputKind.FOLDER
    refuse_idle(_option_rules(source, kind, target, options))
    check_order([source], target)
    if is_address(os.fspath(source)):  # before anything is fetched
        check_target(target, [source], overwrite=options.overwrite)
    with open_checkpoint(
        source,
        variant=None if is_folder else options.variant,
        salvage=options.salvage,
        download=options.download,
        on_fetch=options.on_fetch,
    ) as checkpoint:
        refuse_idle(
            [
                variant_rule(options.variant, kind, [checkpoint]),
                *pattern_rules("--drop", options.drop, checkpoint.tensors),
            ]
        )
        try:
            survey = survey_checkpoint(
                checkpoint,
                prefix=_wanted_prefix(options, is_folder=is_folder),
                config=options.config,
                drop=options.drop,
            )
        except UnmappedKeysError as error:
            if options.drop:
                error.hint = f"--drop {shlex.join(options.drop)} may have left them out"
            raise
        layout = Layout.DIFFUSERS if is_folder else Layout.COMPVIS
        if layout is Layout.COMPVIS and survey.given:
            survey.given.check_compvis()
        plan = build_plan(checkpoint, survey, layout, options)
        decision = config = None
        if layout is Layout.DIFFUSERS:
            decision = decide(checkpoint, survey, options.scaling)
            config = build_config(
                survey.autoencoder.topology,
                decision.scaling,
                sample_size=decision.sample_size,
                given=survey.given,
            )
            if decision.warning:
                plan = plan._replace(notes=(*plan.notes, warning(decision.warning)))
        header = make_header(
            checkpoint.metadata,
            options.metadata,
            kind,
            Change.of(plan, is_renamed=survey.autoencoder.layout is not layout),
            keep=options.keep_metadata,
        )
        plan = plan._replace(notes=(*plan.notes, *header.notes))
        check_target(target, [source], overwrite=options.overwrite, plan=plan)
        result = Conversion(
            checkpoint.name,
            checkpoint.container,
            target,
            survey.autoencoder.layout,
            layout,
            plan,
            decision,
            config,
            header.entries,
        )
        if dry_run:
            return result
        written = write_output(
            Output(
                target,
                kind,
                options.variant,
                config,
                _facts(checkpoint, result, options),
                metadata=header.entries,
            ),
            [checkpoint],
            plan,
            overwrite=options.overwrite,
            manifest=options.manifest,
            hash_source=options.hash_source,
            copy=options.copy,
        )
        notes = (*plan.notes, *written_notes(written))
        issue_warnings(notes)
        return result._replace(written=written, plan=plan._replace(notes=notes))


def _option_rules(
    source: str | os.PathLike[str], kind: OutputKind, target: Path, options: ConvertOptions
) -> list[Rule]:
    is_folder, scaling = kind is OutputKind.FOLDER, options.scaling
    config = "it goes into a config, and a CompVis file has none"
    return [
        *reading_rules([source], download=options.download),
        *writing_rules(
            kind,
            target,
            dtype=options.dtype,
            copy=options.copy,
            manifest=options.manifest,
            hash_source=options.hash_source,
            metadata=options.metadata,
        ),
        Rule("--family", scaling.family is not None, is_folder, config),
        Rule("--scaling-factor", scaling.scaling_factor is not None, is_folder, config),
        Rule("--shift-factor", scaling.shift_factor is not None, is_folder, config),
        Rule("--legacy-names", options.legacy_names, is_folder, "a CompVis file has its own names"),
        Rule(
            "--prefix",
            bool(options.prefix),
            not is_folder or options.source_prefix is None,
            "a folder's keys have none, and --source-prefix says which autoencoder to read",
        ),
    ]


def _wanted_prefix(options: ConvertOptions, *, is_folder: bool) -> str | None:
    """Tell which autoencoder to read; an empty prefix is a choice, too."""
    if options.source_prefix is None and is_folder:
        return options.prefix or None
    return options.source_prefix


def build_plan(
    checkpoint: Checkpoint, survey: Survey, layout: Layout, options: ConvertOptions
) -> Plan:
    """Pair every tensor of the output with the tensor that it is made of.

    Raises:
        EmaError: EMA weights were asked for, and there are none.
        UnmappedKeysError: A shadow has another shape than its parameter.
        UnsupportedModelError: A tensor is not of floating point.
    """
    autoencoder = survey.autoencoder
    notes = [*survey.notes, *_ema_notes(checkpoint, survey, options)]
    dropped = dict(autoencoder.dropped)
    dropped.update(dict.fromkeys(checkpoint.non_tensors, DropReason.NOT_A_TENSOR))
    prefix = options.prefix if layout is Layout.COMPVIS else ""
    shadows = survey.ema.shadows if options.ema or survey.ema.is_whole else {}
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
        notes.append(
            warning(
                f"left out: {plural(len(unknown), 'key')} of unknown purpose outside the "
                f"autoencoder, such as {unknown[0]}"
            )
        )
    return Plan(tuple(rows), dropped, tuple(notes))


def _ema_notes(checkpoint: Checkpoint, survey: Survey, options: ConvertOptions) -> list[Note]:
    ema, total = survey.ema, len(survey.autoencoder.keys)
    if not options.ema:
        if not ema.shadows or ema.is_whole:
            return []
        return [
            note(
                f"raw weights are used; the file also holds EMA weights for {len(ema.shadows)} of "
                f"{plural(total, 'tensor')} ({ema.prefix.rstrip('.')}), which --ema uses"
            )
        ]
    averaged = choose_average(checkpoint, survey)
    shadows = {
        key: averaged[pair.compvis]
        for pair, key in survey.autoencoder.keys.items()
        if pair.compvis in averaged
    }
    return [
        note(
            f"EMA weights for {plural(len(shadows), 'tensor')}, raw weights for "
            f"{total - len(shadows)}"
        ),
        *check_average(checkpoint, survey, shadows),
    ]


def _facts(
    checkpoint: Checkpoint, conversion: Conversion, options: ConvertOptions
) -> dict[str, Any]:
    """Gather what the manifest says of the plan."""
    ema, raw = conversion.plan.ema_counts
    facts: dict[str, Any] = {
        "source": {"name": Path(checkpoint.name).name, "size": checkpoint.size},
        "layout": {"from": conversion.source_layout.value, "to": conversion.layout.value},
        "dtype": options.dtype,
        "tensors": len(conversion.plan.rows),
        "ema": {"ema": ema, "raw": raw},
        "dropped": conversion.plan.drop_counts(),
    }
    if conversion.decision:
        scaling, family = conversion.decision.scaling, conversion.decision.family
        facts["family"] = family.name if family else None
        facts["scaling"] = {
            "scaling_factor": scaling.scaling_factor,
            "shift_factor": scaling.shift_factor,
            "from": scaling.source,
        }
    return facts
