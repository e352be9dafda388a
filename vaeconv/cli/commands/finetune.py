"""``vaeconv finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import Reading
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc, DryRun
from vaeconv.training.options import FinetuneOptions

Base = Annotated[str, Doc("Autoencoder to start from: anything that convert opens.", "BASE")]
Data = Annotated[
    str,
    Doc(
        "Images to train on: a folder, a zip file, a .tar file or a folder of them, or "
        "hf://datasets/owner/name with @revision and /path as needed.",
        "IMAGES",
        flags=("--data",),
    ),
]
Out = Annotated[Path, Doc("Folder of the run.", "RUN", flags=("--out",))]


@declare
def finetune(
    base: Base,
    *,
    data: Data,
    out: Out,
    options: FinetuneOptions,
    reading: Reading,
    dry_run: DryRun = False,
    sink: Sink,
) -> None:
    """Train an autoencoder's decoder on images; the encoder stays as it is, to the bit.

    RUN gets checkpoints with raw and EMA weights, last.ckpt, which every other command reads,
    metrics.jsonl, and sheets of reconstructions. The same command goes on where it was stopped.
    For many GPUs: torchrun --nproc-per-node N -m vaeconv finetune, or accelerate launch.

    Examples:

        vaeconv finetune out/ --data photos/ --out run/ --steps 50000 --val samples/ --dry-run

        vaeconv finetune last.ckpt --ema --recipe ft-mse --data photos/ --out run/ --steps 1

        torchrun --nproc-per-node 8 -m vaeconv finetune out/ --data photos --out run --steps 9 --dry-run
    """  # noqa: E501
    from dataclasses import replace

    from vaeconv.cli.render.finetune import finetune_document, finetune_lines, print_record
    from vaeconv.evaluation.distributed import read_world
    from vaeconv.models.images import left_out_notes
    from vaeconv.training.finetune import finetune as run

    with sink.progress("fetching") as fetching, sink.steps() as steps:
        options = replace(
            options,
            reading=reading.options(fetching.advance),
            on_progress=steps.advance if read_world().is_first else None,
            on_record=print_record if sink.is_shown else None,
        )
        done = run(base, data, out, options, dry_run=dry_run)
    if done is None:  # not the first of several processes
        return
    ema = ("--ema",) if options.ema else ()  # which weights the encoder was taken from
    proof = ("verify", *ema, done.checkpoint, "--drop-in-for", base)
    sink.show(
        "finetune",
        lambda: finetune_document(done),
        lambda: finetune_lines(done),
        notes=left_out_notes((*done.skipped, *done.left_out), verbose=sink.verbose),
        then=() if dry_run else proof,
    )
