"""``vaeconv inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc, Source
from vaeconv.weights.options import InspectOptions


@declare
def inspect(
    source: Source,
    options: InspectOptions,
    *,
    keys: Annotated[bool, Doc("List every tensor.")] = False,
    sink: Sink,
) -> None:
    """Say what is in a checkpoint: layout, family, config, EMA, and what else.

    Nothing in the file is executed, and only headers and the autoencoder's weights are read.
    Ends with exit code 3 where `convert` would refuse the file, and says why.

    Examples:

        vaeconv inspect model.ckpt

        vaeconv inspect --keys --no-check v1-5-pruned.safetensors

        vaeconv inspect --json hf://stabilityai/sd-vae-ft-mse
    """
    from dataclasses import replace

    from vaeconv.cli.render.inspect import inspection_document, inspection_lines
    from vaeconv.weights.inspect import inspect as run

    with sink.progress(f"fetching {Path(source).name}") as fetching:
        report = run(source, replace(options, on_fetch=fetching.advance))

    sink.show(
        "inspect",
        lambda: inspection_document(report, keys=keys),
        lambda: inspection_lines(report, keys=keys, verbose=sink.verbose),
        notes=report.notes,
        failure=report.problem,
    )
