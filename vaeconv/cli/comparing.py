"""Run a comparison as the command line asks for it, and write what it asks for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vaeconv.cli.eval_jobs import CompareJob
from vaeconv.cli.evaluating import check_page, write_page
from vaeconv.cli.following import into_card
from vaeconv.cli.jobs import Reading
from vaeconv.cli.output import Sink
from vaeconv.cli.render.compare import compare_document, compare_lines
from vaeconv.common.notes import note
from vaeconv.errors import UsageError
from vaeconv.evaluation.compare import CompareOptions, compare, write_comparison
from vaeconv.evaluation.protocol import preset
from vaeconv.evaluation.samples import COMPARED, Extremes
from vaeconv.models.images import left_out_notes
from vaeconv.weights.idle_options import reading_rules, refuse_idle
from vaeconv.weights.output_names import check_ending


def compare_job(job: CompareJob, options: CompareOptions, reading: Reading, sink: Sink) -> None:
    """Compare the models of a job, print the outcome, and write what the job asks for.

    Raises:
        UsageError: Something that is needed was not named.
        VaeconvError: As :func:`~vaeconv.evaluation.compare.compare`.
    """
    specs = job.specs()
    given = {"a model": specs, "--images": job.images, "--out": job.out}
    if absent := [name for name, one in given.items() if not one]:
        raise UsageError(f"missing: {', '.join(absent)}", hint="see vaeconv compare --help")
    assert job.images is not None and job.out is not None
    check_ending(job.out, (), "--out")
    if job.html:
        check_page(job.html, overwrite=options.overwrite)
    refuse_idle(reading_rules([spec.path for spec in specs], download=reading.download))
    extremes = Extremes(COMPARED)
    with sink.progress("fetching") as fetching, sink.steps() as steps:
        options = replace(
            options,
            protocol=preset(job.protocol).changed(size=job.size),
            reading=reading.options(fetching.advance),
            on_sample=extremes.add if job.html else None,
            on_progress=steps.advance,
        )
        done = compare(specs, job.images, job.out, options)
    written = [write_comparison(done, job.out)]
    if job.html:
        write_page(job.html, "compare", [done.result], extremes.samples, most=COMPARED)
        written.append(job.html)
    notes = [note(f"{name} skipped: {why}") for name, why in done.skipped]
    folders = [one.path for one in specs if Path(one.path) in job.out.parents]  # published with it
    sink.show(
        "compare",
        lambda: compare_document(done, job.html, written),
        lambda: compare_lines(done, written, verbose=sink.verbose),
        notes=[*notes, *left_out_notes(done.left_out, verbose=sink.verbose)],
        then=into_card(folders, "--pictures", job.out),
    )
