"""``vaeconv latents``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import IMAGES, Device, Doc, Limit, Overwrite
from vaeconv.models.open_model import ModelOptions

Images = Annotated[str, Doc(f"Images to encode: {IMAGES}.", "IMAGES")]
Output = Annotated[Path, Doc(".safetensors file to write.", "OUT")]
Model = Annotated[
    str,
    Doc("Autoencoder to encode with: anything that convert opens.", "MODEL", flags=("--model",)),
]
Size = Annotated[
    int,
    Doc(
        "Side of the square images, in pixels: the shorter side is resized to it, and the middle "
        "is cut out.",
        "PIXELS",
        least=1,
    ),
]


@declare
def latents(
    images: Images,
    output: Output,
    model: Model,
    how: ModelOptions,
    *,
    size: Size = 256,
    limit: Limit = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    sink: Sink,
) -> None:
    """Encode images to a file of reference latents, for verify --latents.

    The latents are posterior means in float32, not scaled. The images are kept beside them, so
    that verify can encode them again.

    Examples:

        vaeconv latents photos/ refs.safetensors --model out/

        vaeconv verify --latents refs.safetensors last.ckpt out/
    """
    from vaeconv.cli.render.latents import latents_document, latents_lines
    from vaeconv.models.images import left_out_notes
    from vaeconv.parity.encode import encode_images

    with sink.progress("fetching") as fetching, sink.steps() as steps:
        done = encode_images(
            images,
            output,
            model,
            size=size,
            limit=limit,
            device=device,
            overwrite=overwrite,
            how=replace(how, on_fetch=fetching.advance),
            on_progress=steps.advance,
        )
    sink.show(
        "latents",
        lambda: latents_document(done),
        lambda: latents_lines(done, verbose=sink.verbose),
        notes=left_out_notes(done.left_out, verbose=sink.verbose),
        then=("verify", "--latents", output, "A", "B"),
    )
