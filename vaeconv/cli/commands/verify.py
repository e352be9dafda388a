"""``vaeconv verify``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import Reading, VerifyJob
from vaeconv.cli.output import Sink
from vaeconv.cli.render.verify import Outputs, publish_result
from vaeconv.common.option_docs import Doc
from vaeconv.parity.options import VerifyOptions
from vaeconv.weights.idle_options import Rule, refuse_idle

if TYPE_CHECKING:
    from vaeconv.parity.compare_outputs import Decoded

First = Annotated[str, Doc("Model to verify: anything that convert opens.", "A")]
Second = Annotated[
    str | None, Doc("Model that should be the same autoencoder.", "[B]", is_argument=True)
]


@declare
def verify(
    a: First,
    b: Second = None,
    *,
    options: VerifyOptions,
    files: Outputs,
    reading: Reading,
    job: VerifyJob,
    sink: Sink,
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
    """
    from vaeconv.cli.following import into_card
    from vaeconv.parity.verify import verify as run

    why = "--weights-only draws none"
    refuse_idle([Rule("--pictures", files.pictures is not None, not options.weights_only, why)])
    latents = options.latents and str(options.latents)
    files.check([path for path in (a, b, job.drop_in_for, latents) if path])
    decoded: list[Decoded] = []
    with sink.progress("fetching") as fetching, sink.steps() as steps:
        model = reading.options(fetching.advance)
        options = replace(
            options,
            a=replace(model, variant=job.variant_a),
            b=replace(model, variant=job.variant_b),
            base=model,
            on_image=decoded.append if files.pictures or files.html else None,
            on_progress=steps.advance,
        )
        result = run(a, b, options, drop_in_for=job.drop_in_for)
    then = into_card((b, a), "--parity", files.report)
    publish_result(result, files, decoded, sink, then=then)
