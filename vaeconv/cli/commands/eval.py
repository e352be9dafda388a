"""``vaeconv eval``."""

from __future__ import annotations

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import EvalJob, NetworkFiles, Reading
from vaeconv.cli.output import Sink
from vaeconv.cli.render.eval import run_job
from vaeconv.evaluate.evaluation import EvalOptions
from vaeconv.evaluate.protocol import ProtocolOptions


@declare
def eval(
    job: EvalJob,
    protocol: ProtocolOptions,
    options: EvalOptions,
    networks: NetworkFiles,
    reading: Reading,
    sink: Sink,
) -> None:
    """Reconstruct pictures and measure: rFID, PSNR, SSIM, PSIM and LPIPS of each model.

    Every picture is read once for all models. A run that was killed goes on where it was. For
    many GPUs: torchrun --nproc-per-node N -m vaeconv eval, or accelerate launch -m vaeconv eval.

    Examples:

        vaeconv eval last.ckpt out/ --images val2017/ --out eval.json

        vaeconv eval --models models.toml --images val2017.zip --out eval.json --format markdown

        vaeconv eval out/ --images photos/ --out eval.json --metrics psnr,ssim --latent-stats

        torchrun --nproc-per-node 8 -m vaeconv eval out/ --images val2017/ --out eval.json

        vaeconv eval --add coco.json --add laion.json --format markdown
    """
    run_job(job, protocol, options, networks, reading, sink)
