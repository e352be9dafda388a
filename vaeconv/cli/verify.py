"""``vaeconv verify``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import (
    EXPERT,
    AllowZeros,
    Config,
    Device,
    Download,
    Family,
    Json,
    Quiet,
    Salvage,
    ScalingFactor,
    ShiftFactor,
    SourcePrefix,
    Verbose,
    with_dot,
)
from vaeconv.parity.measure import TOLERANCES

LIMITS, REFERENCES, REPORTS = "Limits", "References", "Reports"


class RunDType(str, Enum):
    """Element types that models can run in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


def verify(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="An autoencoder: anything that convert opens.",
            show_default=False,
        ),
    ],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="[B]", help="What should be the same autoencoder.", show_default=False
        ),
    ] = None,
    drop_in_for: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            show_default=False,
            help="Prove that A can stand in for BASE: encoder, posterior moments, channels and "
            "scaling are the same; the decoder may differ.",
        ),
    ] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Compare weights only. Imports no torch.")
    ] = False,
    encode: Annotated[
        bool, typer.Option("--encode/--no-encode", help="Compare posterior moments of pictures.")
    ] = True,
    ema: Annotated[
        bool,
        typer.Option("--ema/--no-ema", help="Compare the EMA weights of a side that has some."),
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        RunDType, typer.Option(help="Run in this type as well, after fp32.")
    ] = RunDType.FP32,
    atol: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            rich_help_panel=LIMITS,
            show_default=False,
            help="Largest difference of a value from -1 to 1; by default "
            + ", ".join(f"{limit:g} in {dtype}" for dtype, limit in TOLERANCES.items())
            + ".",
        ),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            rich_help_panel=LIMITS,
            show_default=False,
            help="Smallest PSNR of two decoded pictures. Without --atol it alone judges them.",
        ),
    ] = None,
    family: Family = None,
    scaling_factor: ScalingFactor = None,
    shift_factor: ShiftFactor = None,
    config: Config = None,
    latents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=REFERENCES,
            show_default=False,
            help="Reference latents, as vaeconv latents writes them; by default a built-in set.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=REFERENCES,
            show_default=False,
            help="References at a time; by default as many as fit.",
        ),
    ] = None,
    tile: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            rich_help_panel=REFERENCES,
            show_default=False,
            help="Decode larger latents in tiles of N x N.",
        ),
    ] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=REPORTS, show_default=False, help="Write it as JSON."
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=REPORTS,
            show_default=False,
            help="Write a PNG for each latent: A, B, and their difference amplified.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=REPORTS,
            show_default=False,
            help="Write one page with all of it, which needs no network.",
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=REPORTS, show_default=False, help="Write JUnit XML."
        ),
    ] = None,
    hash_files: Annotated[
        bool,
        typer.Option(
            "--hash/--no-hash", rich_help_panel=REPORTS, help="Put every file's sha256 into it."
        ),
    ] = True,
    variant_a: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=EXPERT,
            show_default=False,
            help="Variant of a diffusers folder A, such as fp16.",
        ),
    ] = None,
    variant_b: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", rich_help_panel=EXPERT, show_default=False, help="The same for B."
        ),
    ] = None,
    source_prefix: SourcePrefix = None,
    allow_zeros: AllowZeros = False,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Prove that two files hold the same autoencoder; end with exit code 4 where they do not.

    First every tensor, to the bit, or after rounding where dtypes differ. Then both decode and
    encode the same references, CompVis weights in modules of our own and diffusers folders in
    diffusers, on the GPU where there is one. A scaling factor that a file does not state is the one
    that convert would write; --family or --scaling-factor states it.

    Examples:

        vaeconv verify last.ckpt out/

        vaeconv verify --ema --dtype fp16 last.ckpt ema.safetensors

        vaeconv verify --family sdxl sdxl_vae.safetensors out/

        vaeconv verify --report parity.json --html parity.html last.ckpt out/

        vaeconv verify out/ --drop-in-for hf://stabilityai/sd-vae-ft-mse
    """  # fmt: skip
    from vaeconv.autoencoder.scaling import ScalingOptions
    from vaeconv.cli.progress import ByteProgress, StepProgress
    from vaeconv.cli.verified import Outputs, publish_result
    from vaeconv.effects import Rule, refuse_idle
    from vaeconv.parity.behaviour import Limits
    from vaeconv.parity.side import SideOptions
    from vaeconv.parity.verification import VerifyOptions
    from vaeconv.parity.verification import verify as run

    shown = not (quiet or json)
    refuse_idle(
        [Rule("--pictures", pictures is not None, not weights_only, "--weights-only draws none")]
    )
    outputs = Outputs(report=report, pictures=pictures, html=html, junit=junit)
    outputs.check([path for path in (a, b, drop_in_for, latents and str(latents)) if path])
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        side = SideOptions(
            source_prefix=with_dot(source_prefix),
            allow_zeros=allow_zeros,
            salvage=salvage,
            download=download,
            on_fetch=fetching.advance,
        )
        result = run(
            a,
            b,
            VerifyOptions(
                a=side._replace(variant=variant_a),
                b=side._replace(variant=variant_b),
                base=side,
                scaling=ScalingOptions(scaling_factor, shift_factor, family),
                config=config,
                ema=ema,
                weights_only=weights_only,
                encode=encode,
                device=device,
                dtype=dtype.value,
                limits=Limits(atol, min_psnr),
                latents=latents,
                batch_size=batch_size,
                tile=tile,
                hash_files=hash_files,
                on_picture=outputs.collector(),
                on_progress=steps.advance,
            ),
            drop_in_for=drop_in_for,
        )
    publish_result(result, outputs, json=json, quiet=quiet, verbose=verbose)
