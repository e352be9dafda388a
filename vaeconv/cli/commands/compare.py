"""``vaeconv compare``."""

from __future__ import annotations

from vaeconv.cli.declare import declare
from vaeconv.cli.eval_jobs import CompareJob
from vaeconv.cli.jobs import Reading
from vaeconv.cli.output import Sink
from vaeconv.evaluation.compare import CompareOptions


@declare
def compare(job: CompareJob, options: CompareOptions, reading: Reading, sink: Sink) -> None:
    """Put reconstructions side by side: candidates first, the original last.

    Writes NAME_merged.png for each picture, a contact sheet of all, and compare.json, which tells
    the order to vaeconv card.

    Examples:

        vaeconv compare ft-ema/ ft-mse/ --images samples/ --out merged/

        vaeconv compare last.ckpt --raw-and-ema --images photo.png --out merged/ --html merged.html

        vaeconv compare --no-labels ft-ema/ ft-mse/ --images val2017/ --limit 20 --out merged/

        vaeconv compare raw.ckpt ema.safetensors --images samples/ --zoom 48 --out merged/
    """
    from vaeconv.cli.comparing import compare_job

    compare_job(job, options, reading, sink)
