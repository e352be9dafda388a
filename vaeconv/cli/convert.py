"""``vaeconv convert``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import (
    EXPERT,
    AllowNonfinite,
    AllowZeros,
    Check,
    Clamp,
    Config,
    Download,
    DryRun,
    DTypeChoice,
    Family,
    HashSource,
    Json,
    Manifest,
    Metadata,
    NoMetadata,
    Overwrite,
    Quiet,
    Salvage,
    ScalingFactor,
    ShiftFactor,
    Source,
    SourcePrefix,
    Variant,
    Verbose,
    parse_metadata,
    with_dot,
)

Output = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="A name ending in .safetensors, .sft, .ckpt, .pt, .pth or .bin is a CompVis file; "
        "one without an ending, or with a / behind it, is a diffusers folder.",
        show_default=False,
    ),
]


def convert(
    source: Source,
    output: Output,
    dtype: Annotated[DTypeChoice, typer.Option(help="Cast the weights.")] = DTypeChoice.KEEP,
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Take EMA weights where a tensor has them.")
    ] = False,
    variant: Variant = None,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="PREFIX",
            show_default=False,
            help="What keys of a CompVis OUT begin with, such as first_stage_model.; "
            "with a folder, as --source-prefix.",
        ),
    ] = "",
    legacy_names: Annotated[
        bool, typer.Option("--legacy-names", help="Write attention names of diffusers < 0.17.")
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    manifest: Manifest = False,
    metadata: Metadata = None,
    no_metadata: NoMetadata = False,
    family: Family = None,
    scaling_factor: ScalingFactor = None,
    shift_factor: ShiftFactor = None,
    config: Config = None,
    check: Check = True,
    allow_nonfinite: AllowNonfinite = False,
    allow_zeros: AllowZeros = False,
    clamp: Clamp = False,
    hash_source: HashSource = False,
    source_prefix: SourcePrefix = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            show_default=False,
            rich_help_panel=EXPERT,
            help="Leave out keys of IN that match; repeatable.",
        ),
    ] = None,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert an autoencoder: CompVis checkpoint to diffusers folder, or back.

    Every tensor keeps its bits unless --dtype casts it. OUT appears whole or not at all.

    Examples:

        vaeconv convert model.ckpt out/

        vaeconv convert --ema --dtype fp16 --variant fp16 model.ckpt out/

        vaeconv convert --family sdxl sdxl_vae.safetensors out/

        vaeconv convert out/ back.safetensors

        vaeconv convert hf://stabilityai/sd-vae-ft-mse vae.ckpt
    """  # fmt: skip
    from vaeconv.autoencoder.scaling import ScalingOptions
    from vaeconv.cli.progress import ByteProgress
    from vaeconv.cli.render import (
        conversion_document,
        print_conversion,
        print_json,
        print_notes,
    )
    from vaeconv.conversion import ConvertOptions
    from vaeconv.conversion import convert as run
    from vaeconv.executor import CopyOptions

    started = time.monotonic()
    shown, name = not (quiet or json), Path(source).name
    with (
        ByteProgress(f"fetching {name}", enabled=shown) as fetching,
        ByteProgress(f"converting {name}", enabled=shown) as copying,
    ):
        result = run(
            source,
            output,
            ConvertOptions(
                dtype=dtype.value,
                variant=variant,
                prefix=with_dot(prefix) or "",
                source_prefix=with_dot(source_prefix),
                scaling=ScalingOptions(scaling_factor, shift_factor, family),
                config=config,
                ema=ema,
                legacy_names=legacy_names,
                drop=tuple(drop or ()),
                salvage=salvage,
                download=download,
                overwrite=overwrite,
                hash_source=hash_source,
                manifest=manifest,
                metadata=parse_metadata(metadata),
                keep_metadata=not no_metadata,
                copy=CopyOptions(
                    check=check,
                    allow_nonfinite=allow_nonfinite,
                    allow_zeros=allow_zeros,
                    clamp=clamp,
                    on_progress=copying.advance,
                ),
                on_fetch=fetching.advance,
            ),
            dry_run=dry_run,
        )
    seconds = time.monotonic() - started
    if json:
        print_json("convert", conversion_document(result, dry_run=dry_run))
        return
    if not quiet:
        print_notes(result.plan.notes)
        print_conversion(result, dry_run=dry_run, seconds=seconds, verbose=verbose)
