"""``vaeconv eval``."""

from __future__ import annotations

from vaeconv.cli.declare import declare
from vaeconv.cli.eval_jobs import EvalJob
from vaeconv.cli.jobs import Reading
from vaeconv.cli.output import Sink
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.metric_networks import NetworkFiles
from vaeconv.evaluation.protocol import ProtocolOptions


@declare
def eval(
    job: EvalJob,
    protocol: ProtocolOptions,
    options: EvalOptions,
    networks: NetworkFiles,
    reading: Reading,
    sink: Sink,
) -> None:
    """Reconstruct images and measure: rFID, PSNR, SSIM, PSIM and LPIPS of each model.

    Every image is read once for all models. A run that was killed goes on where it was. For
    many GPUs: torchrun --nproc-per-node N -m vaeconv eval, or accelerate launch -m vaeconv eval.

    Examples:

        vaeconv eval last.ckpt out/ --images val2017/ --out eval.json

        vaeconv eval last.ckpt --raw-and-ema --images photos/ --out eval.json --html eval.html

        vaeconv eval out/ --images hf://datasets/owner/name/val.zip --out eval.json

        vaeconv eval --models models.toml --images val2017.zip --out eval.json --format markdown

        vaeconv eval out/ --images photos/ --out eval.json --metrics psnr,ssim --latent-stats

        torchrun --nproc-per-node 8 -m vaeconv eval out/ --images val2017/ --out eval.json

        vaeconv eval --add coco.json --add laion.json --format markdown
    """
    from dataclasses import replace

    from vaeconv.cli.evaluating import evaluate_job

    job.check(options, reading, json=sink.json)
    options = replace(
        options,
        protocol=protocol.made(),
        weights=networks.by_network(options.metrics),
        reading=reading.options(),
    )
    evaluate_job(job, options, sink)
