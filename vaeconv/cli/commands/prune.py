"""``vaeconv prune``."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated

import typer

from vaeconv.cli.batch import fitting, pair, run_one
from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import PruneJob
from vaeconv.cli.output import Sink
from vaeconv.common.option_docs import Doc
from vaeconv.weights.options import PruneOptions

Paths = Annotated[
    list[str],
    Doc(
        "Checkpoint to read, as for convert, and file to write; a folder where the checkpoint is a "
        "diffusers folder. With --out-dir any number of checkpoints.",
        "IN OUT",
    ),
]


@declare
def prune(paths: Paths, options: PruneOptions, job: PruneJob, *, sink: Sink) -> None:
    """Write a checkpoint again with only what inference needs, in fp16.

    Layout and names stay. Optimizer, callbacks, loss and EMA are left out; --ema folds the EMA
    over the raw weights first. Of a full checkpoint everything but those is kept.

    Examples:

        vaeconv prune --ema last.ckpt vae.safetensors

        vaeconv prune --ema --dtype bf16 v1-5-full.ckpt v1-5-ema.safetensors

        vaeconv prune --vae-only v1-5-full.ckpt vae.safetensors

        vaeconv prune --vae out/ v1-5-full.ckpt v1-5-new-vae.safetensors

        vaeconv prune --ema --out-dir pruned/ a.ckpt b.ckpt c.ckpt
    """
    from vaeconv.cli.following import after_pruning
    from vaeconv.cli.render.prune import print_batch, pruning_document, pruning_lines
    from vaeconv.weights.idle_options import Rule, refuse_idle

    has_probe = job.probe or options.require_fp16
    refuse_idle([Rule("--device", job.device != "auto", has_probe, "only --probe computes")])
    jobs = pair(paths, job.out_dir)
    run = partial(
        run_one, sink=sink, dry_run=job.dry_run, probe_on=job.device if has_probe else None
    )
    if job.out_dir is None:
        ((source, target),) = jobs
        started = time.monotonic()
        result = run(source, target, options)
        seconds = time.monotonic() - started
        sink.show(
            "prune",
            lambda: pruning_document(result),
            lambda: pruning_lines(result, seconds=seconds, verbose=sink.verbose),
            notes=result.plan.notes,
            then=after_pruning(result, target, options),
        )
        return
    code = print_batch(
        jobs,
        lambda source, target: run(source, target, fitting(options, (source, target), jobs)),
        sink,
    )
    raise typer.Exit(code)
