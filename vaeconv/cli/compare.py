"""``vaeconv compare``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import (
    AllowZeros,
    Device,
    Download,
    Images,
    Json,
    Limit,
    Overwrite,
    Quiet,
    Salvage,
    SourcePrefix,
    Verbose,
    with_dot,
)


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Autoencoders, from left to right: anything that convert opens.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where merged pictures go.", show_default=False),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Name of the first MODEL, of the second, and so on; repeatable.",
        ),
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(
            "--models",
            metavar="FILE.toml",
            show_default=False,
            help="Models, as for eval.",
        ),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Use the EMA weights of MODELs that have some.")
    ] = False,
    protocol: Annotated[str, typer.Option(metavar="NAME", help="As for eval.")] = "card-256",
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", min=1, show_default=False, help="Side of a picture."),
    ] = None,
    limit: Limit = None,
    labels: Annotated[
        bool,
        typer.Option(
            "--labels/--no-labels",
            help="Write names and PSNR under the pictures; the cards do not.",
        ),
    ] = True,
    zoom: Annotated[
        int,
        typer.Option(
            metavar="PIXELS",
            min=0,
            show_default=False,
            help="Show a square of this side enlarged, where candidates differ most.",
        ),
    ] = 0,
    sheet: Annotated[
        int,
        typer.Option(metavar="COLUMNS", min=0, help="Columns of the contact sheet; 0 for none."),
    ] = 1,
    picture_format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="png or webp; both lossless.")
    ] = "png",
    overwrite: Overwrite = False,
    device: Device = "auto",
    source_prefix: SourcePrefix = None,
    allow_zeros: AllowZeros = False,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Put reconstructions side by side: candidates first, the original last.

    Writes NAME_merged.png for each picture, a contact sheet of all, and compare.json, which tells
    the order to vaeconv card.

    Examples:

        vaeconv compare ft-ema/ ft-mse/ --images samples/ --out merged/

        vaeconv compare --no-labels ft-ema/ ft-mse/ --images val2017/ --limit 20 --out merged/

        vaeconv compare raw.ckpt ema.safetensors --images samples/ --zoom 48 --out merged/
    """  # fmt: skip
    from vaeconv.cli.left_out import left_out_notes
    from vaeconv.cli.progress import ByteProgress, StepProgress
    from vaeconv.cli.render import print_json, print_notes
    from vaeconv.effects import reading_rules, refuse_idle
    from vaeconv.errors import UsageError, one_line
    from vaeconv.evaluate.comparing import CompareOptions, write_comparison
    from vaeconv.evaluate.comparing import compare as run
    from vaeconv.evaluate.grids import FORMATS
    from vaeconv.evaluate.models import name_specs
    from vaeconv.evaluate.protocol import preset
    from vaeconv.names import check_ending
    from vaeconv.parity.side import SideOptions

    specs = name_specs(list(models or ()), {"name": list(name or ())}, models_file, ema=ema)
    if not specs or images is None or out is None:
        raise UsageError("models, --images and --out are needed")
    check_ending(out, (), "--out")
    refuse_idle(reading_rules([spec.path for spec in specs], download=download))
    if picture_format not in FORMATS:
        raise UsageError(f"--format {picture_format} is none of {', '.join(FORMATS)}")
    shown = not (quiet or json)
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        done = run(
            specs,
            images,
            out,
            CompareOptions(
                protocol=preset(protocol).changed(size=size),
                limit=limit,
                labels=labels,
                zoom=zoom,
                sheet=sheet,
                format=picture_format,
                overwrite=overwrite,
                device=device,
                sides=SideOptions(
                    source_prefix=with_dot(source_prefix),
                    allow_zeros=allow_zeros,
                    salvage=salvage,
                    download=download,
                    on_fetch=fetching.advance,
                ),
                on_progress=steps.advance,
            ),
        )
    write_comparison(done, out)
    if json:
        pictures = [
            {"path": str(path), "psnr": dict(zip(done.order, found, strict=False))}
            for path, found in done.pictures
        ]
        print_json(
            "compare",
            {
                "order": list(done.order),
                "pictures": pictures,
                "sheet": str(done.sheet) if done.sheet else None,
                "skipped": [{"name": name, "reason": why} for name, why in done.skipped],
                "left_out": [one._asdict() for one in done.left_out],
            },
        )
    elif not quiet:
        print_notes(f"note: {name} skipped: {why}" for name, why in done.skipped)
        print_notes(left_out_notes(done.left_out, verbose=verbose))
        order = ", ".join(done.order)
        lines = [f"compared {len(done.pictures)} pictures, from left to right: {order}"]
        if verbose:
            lines += [f"  {path}" for path, _ in done.pictures]
        lines.append(f"  {done.sheet or out}")
        sys.stdout.writelines(one_line(line) + "\n" for line in lines)
