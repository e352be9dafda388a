"""Run an evaluation as the command line asks for it, and write what it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.cli.eval_files import (
    another_result,
    check_page,
    check_result,
    may_discard,
    parts_of,
    read_as_result,
    read_result,
)
from vaeconv.cli.eval_jobs import EvalJob
from vaeconv.cli.following import into_card
from vaeconv.cli.output import SCHEMA_VERSION, Sink, print_notes
from vaeconv.cli.progress import ByteProgress, StepProgress
from vaeconv.cli.render.eval import print_results, result_notes
from vaeconv.common.json_text import dump_json
from vaeconv.common.notes import Note, note
from vaeconv.errors import UsageError
from vaeconv.evaluation.distributed import read_ranks
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.evaluate import evaluate
from vaeconv.evaluation.models import ModelSpec
from vaeconv.evaluation.partial_results import OtherRunError
from vaeconv.evaluation.samples import Sample
from vaeconv.publish.places import hide_places, hide_places_in_text
from vaeconv.weights.output_names import check_ending


def evaluate_job(job: EvalJob, options: EvalOptions, sink: Sink) -> None:
    """Evaluate the models of a job, add earlier results, and print and write what was found.

    Raises:
        VaeconvError: As :func:`~vaeconv.evaluation.evaluate.evaluate`.
    """
    earlier = [read_result(path) for path in job.add]
    specs = job.specs()
    _check_drawings(job, bool(specs) + len(earlier), earlier)
    samples: list[Sample] = []
    results, written = earlier, []
    notes: list[Note] = []
    if specs:
        options = replace(options, on_sample=samples.append if job.html else None)
        result = run_evaluation(job, specs, options, sink)
        if result is None:  # not the first of several processes
            return
        assert job.out is not None
        results, written = [result, *earlier], [job.out]
        kept = parts_of(job.out)
        notes.append(note(f"results of each image are kept in {kept}, which can be removed"))
    written += _draw(job, results, samples)
    names = [str(path) for path in written]
    sink.show(
        "eval",
        lambda: {**({"results": results} if job.add else results[0]), "written": names},
        lambda: print_results(results, job.format.value, names),
        notes=notes,
        then=into_card([spec.path for spec in specs], "--eval", job.out),
    )


def _check_drawings(job: EvalJob, results: int, earlier: Sequence[dict[str, Any]]) -> None:
    """Check before the work what is drawn of its results, and of earlier ones."""
    if job.plots:
        from vaeconv.evaluation.plots import check_plots, import_figure

        check_ending(job.plots, (), "--plots")
        import_figure()  # before the work, where it is missing
        check_plots(job.plots, results, overwrite=job.overwrite)
    if job.html:
        from vaeconv.evaluation.page import make_page

        check_page(job.html, overwrite=job.overwrite)
        for path, result in zip(job.add, earlier, strict=True):
            with read_as_result(path):
                make_page("eval", [result], [], most=0)


def _draw(job: EvalJob, results: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> list[Path]:
    written: list[Path] = []
    if job.plots:
        from vaeconv.evaluation.plots import draw_plots

        written += draw_plots(job.plots, results)
    if job.html:
        from vaeconv.evaluation.page import make_page
        from vaeconv.evaluation.samples import SHOWN

        told = [hide_places(one) for one in results]
        page = make_page("eval", told, samples, most=SHOWN)
        replace_small_file(job.html, hide_places_in_text(page).encode(), durable=False)
        written.append(job.html)
    return written


def run_evaluation(
    job: EvalJob, specs: Sequence[ModelSpec], options: EvalOptions, sink: Sink
) -> dict[str, Any] | None:
    """Evaluate, and write the result.

    Returns:
        The result; None in all processes but the first.

    Raises:
        OutputError: Something else is there, or it cannot be written.
        UsageError: There are no images, or no place for the result.
    """
    if job.images is None:
        raise UsageError("no images", hint="name a folder, a zip file or an image with --images")
    if job.out is None:
        raise UsageError("no output", hint="name a file for the result with --out")
    check_ending(job.out, (".json",), "a result")
    parts = parts_of(job.out)
    check_result(job.out, parts, overwrite=job.overwrite)
    shown = sink.is_shown and read_ranks().is_first
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        options = replace(
            options,
            discards=may_discard(job.out, parts, options.restart, job.overwrite),
            sides=options.sides._replace(on_fetch=fetching.advance),
            quiet=True,
            on_progress=steps.advance,
        )
        try:
            result = evaluate(specs, job.images, options, parts=parts)
        except OtherRunError as error:
            if job.out.exists() and not job.overwrite:
                raise another_result(job.out) from error
            raise
    if result is None:
        return None
    # It may be published, and names no folders of this machine.
    document = hide_places(
        {"schema_version": SCHEMA_VERSION, "command": "eval", "ok": True, **result}
    )
    data = dump_json(document, indent=1)
    replace_small_file(job.out, data.encode() + b"\n", durable=True)
    if shown:
        print_notes(result_notes(result, verbose=sink.verbose))
    return result
