"""``vaeconv latents``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vaeconv.cli.options import (
    AllowZeros,
    Device,
    Download,
    Json,
    Limit,
    Quiet,
    Salvage,
    SourcePrefix,
    Variant,
    Verbose,
    with_dot,
)


def latents(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="A folder of images, or one.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The .safetensors file to write.", show_default=False),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The autoencoder: anything that convert opens.",
            show_default=False,
        ),
    ],
    size: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            min=1,
            help="Resize the shorter side to this, and cut out the middle.",
        ),
    ] = 256,
    limit: Limit = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", "--force", help="Replace OUT.")] = False,
    variant: Variant = None,
    source_prefix: SourcePrefix = None,
    allow_zeros: AllowZeros = False,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode pictures to a file of reference latents, for verify --latents.

    The latents are posterior means in float32, not scaled. The pictures are kept beside them, so
    that verify can encode them again.

    Examples:

        vaeconv latents photos/ refs.safetensors --model out/

        vaeconv verify --latents refs.safetensors last.ckpt out/
    """  # fmt: skip
    from vaeconv.cli.left_out import left_out_notes
    from vaeconv.cli.progress import ByteProgress, StepProgress
    from vaeconv.cli.render import human_size, print_json, print_notes
    from vaeconv.errors import one_line
    from vaeconv.parity.encoding import encode_pictures
    from vaeconv.parity.side import SideOptions

    shown = not (quiet or json)
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        done = encode_pictures(
            images,
            output,
            model,
            size=size,
            limit=limit,
            device=device,
            overwrite=overwrite,
            how=SideOptions(
                variant=variant,
                source_prefix=with_dot(source_prefix),
                allow_zeros=allow_zeros,
                salvage=salvage,
                download=download,
                on_fetch=fetching.advance,
            ),
            on_progress=steps.advance,
        )
    nbytes = done.output.stat().st_size
    if json:
        facts: dict[str, Any] = {
            "path": str(done.output),
            "bytes": nbytes,
            "names": list(done.names),
        }
        facts["left_out"] = [one._asdict() for one in done.left_out]
        print_json("latents", {**facts, "latent": list(done.latent), "device": done.device})
    elif not quiet:
        print_notes(left_out_notes(done.left_out, verbose=verbose))
        shape = "x".join(map(str, done.latent))
        sys.stdout.write(
            one_line(
                f"encoded {len(done.names)} pictures on {done.device} to latents of {shape}: "
                f"{done.output} ({human_size(nbytes)})"
            )
            + "\n"
        )
        if verbose:
            sys.stdout.writelines(one_line(f"  {name}") + "\n" for name in done.names)
