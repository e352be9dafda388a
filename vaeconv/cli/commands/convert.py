"""``vaeconv convert``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc, DryRun, Source
from vaeconv.weights.options import ConvertOptions

Output = Annotated[
    str,
    Doc(
        "Output: a name ending in .safetensors, .sft, .ckpt, .pt, .pth or .bin is a CompVis file; "
        "one without an ending, or with a / behind it, is a diffusers folder.",
        "OUT",
    ),
]


@declare
def convert(
    source: Source,
    output: Output,
    options: ConvertOptions,
    *,
    dry_run: DryRun = False,
    sink: Sink,
) -> None:
    """Convert an autoencoder: CompVis checkpoint to diffusers folder, or back.

    Every tensor keeps its bits unless --dtype casts it. OUT appears whole or not at all.

    Examples:

        vaeconv convert model.ckpt out/

        vaeconv convert --ema --dtype fp16 --variant fp16 model.ckpt out/

        vaeconv convert --family sdxl sdxl_vae.safetensors out/

        vaeconv convert out/ back.safetensors

        vaeconv convert hf://stabilityai/sd-vae-ft-mse vae.ckpt
    """
    from vaeconv.cli.following import after_conversion
    from vaeconv.cli.render.convert import conversion_document, conversion_lines
    from vaeconv.weights.convert import convert as run

    started, name = time.monotonic(), Path(source).name
    with (
        sink.progress(f"fetching {name}") as fetching,
        sink.progress(f"converting {name}") as copying,
    ):
        copy = replace(options.copy, on_progress=copying.advance)
        options = replace(options, copy=copy, on_fetch=fetching.advance)
        result = run(source, output, options, dry_run=dry_run)
    seconds = time.monotonic() - started
    sink.show(
        "convert",
        lambda: conversion_document(result),
        lambda: conversion_lines(result, seconds=seconds, verbose=sink.verbose),
        notes=result.plan.notes,
        then=after_conversion(result, output, options),
    )
