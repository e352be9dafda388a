"""``vaeconv compare``."""

from __future__ import annotations

from dataclasses import replace

from vaeconv.cli.declare import declare
from vaeconv.cli.jobs import CompareJob, Reading
from vaeconv.cli.output import Sink
from vaeconv.evaluate.comparing import CompareOptions


@declare
def compare(job: CompareJob, options: CompareOptions, reading: Reading, sink: Sink) -> None:
    """Put reconstructions side by side: candidates first, the original last.

    Writes NAME_merged.png for each picture, a contact sheet of all, and compare.json, which tells
    the order to vaeconv card.

    Examples:

        vaeconv compare ft-ema/ ft-mse/ --images samples/ --out merged/

        vaeconv compare --no-labels ft-ema/ ft-mse/ --images val2017/ --limit 20 --out merged/

        vaeconv compare raw.ckpt ema.safetensors --images samples/ --zoom 48 --out merged/
    """
    from vaeconv.cli.left_out import left_out_notes
    from vaeconv.cli.render.compare import compare_document, compare_lines
    from vaeconv.effects import reading_rules, refuse_idle
    from vaeconv.errors import UsageError
    from vaeconv.evaluate.comparing import compare as run
    from vaeconv.evaluate.comparing import write_comparison
    from vaeconv.evaluate.models import name_specs
    from vaeconv.evaluate.protocol import preset
    from vaeconv.names import check_ending
    from vaeconv.notes import note

    specs = name_specs(list(job.models), {"name": job.name}, job.models_file, ema=job.ema)
    if not specs or job.images is None or job.out is None:
        raise UsageError("models, --images and --out are needed")
    check_ending(job.out, (), "--out")
    refuse_idle(reading_rules([spec.path for spec in specs], download=reading.download))
    with sink.progress("fetching") as fetching, sink.steps() as steps:
        options = replace(
            options,
            protocol=preset(job.protocol).changed(size=job.size),
            sides=reading.options(fetching.advance),
            on_progress=steps.advance,
        )
        done = run(specs, job.images, job.out, options)
    write_comparison(done, job.out)
    place = done.sheet or job.out
    notes = [note(f"{name} left out: {why}") for name, why in done.skipped]
    sink.show(
        "compare",
        lambda: compare_document(done),
        lambda: compare_lines(done, place, verbose=sink.verbose),
        notes=[*notes, *left_out_notes(done.left_out, verbose=sink.verbose)],
    )
