"""``vaeconv inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaeconv.cli.options import (
    CHECKS,
    Config,
    Download,
    Family,
    HashSource,
    Json,
    Quiet,
    Salvage,
    Source,
    SourcePrefix,
    Verbose,
    with_dot,
)


def inspect(
    source: Source,
    keys: Annotated[bool, typer.Option("--keys", help="List every tensor.")] = False,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Variant of a diffusers folder, such as fp16.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            rich_help_panel=CHECKS,
            help="Read the autoencoder's weights: CRC, NaN, infinity, zeros of an unfinished "
            "download. Local files only.",
        ),
    ] = True,
    hash_source: HashSource = False,
    family: Family = None,
    config: Config = None,
    source_prefix: SourcePrefix = None,
    salvage: Salvage = False,
    download: Download = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what is in a checkpoint: layout, family, config, EMA, and what else.

    Nothing in the file is executed, and only headers and the autoencoder's weights are read.
    Ends with exit code 3 where `convert` would refuse the file, and says why.

    Examples:

        vaeconv inspect model.ckpt

        vaeconv inspect --keys --no-check v1-5-pruned.safetensors

        vaeconv inspect --json hf://stabilityai/sd-vae-ft-mse
    """  # fmt: skip
    from vaeconv.cli.progress import ByteProgress
    from vaeconv.cli.render import (
        inspection_document,
        print_json,
        print_notes,
        render_inspection,
    )
    from vaeconv.inspection import InspectOptions
    from vaeconv.inspection import inspect as run

    with ByteProgress(f"fetching {Path(source).name}", enabled=not (quiet or json)) as fetching:
        report = run(
            source,
            InspectOptions(
                source_prefix=with_dot(source_prefix),
                variant=variant,
                config=config,
                family=family,
                check=check,
                hash_source=hash_source,
                salvage=salvage,
                download=download,
                on_fetch=fetching.advance,
            ),
        )
    if json:
        print_json("inspect", inspection_document(report, keys=keys), report.problem)
    elif not quiet:
        from rich.console import Console

        render_inspection(report, Console(), keys=keys)
    if not quiet and not json:
        print_notes(report.notes)
    if report.problem:
        report.problem.is_reported = json
        raise report.problem
