"""Run an evaluation as the command line asks for it, and write what it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.checkpoint.writers.writable import check_writable
from vaeconv.cli.eval_jobs import EvalJob
from vaeconv.cli.following import into_card
from vaeconv.cli.output import SCHEMA_VERSION, Sink, print_notes
from vaeconv.cli.progress import ByteProgress, StepProgress
from vaeconv.cli.render.eval import print_results, result_notes, table_lines
from vaeconv.common.json_text import dump_json
from vaeconv.common.notes import note
from vaeconv.errors import InputError, OutputExistsError, UsageError
from vaeconv.evaluation.distributed import read_world
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.evaluate import evaluate
from vaeconv.evaluation.models import ModelSpec
from vaeconv.evaluation.partial_results import OtherRunError, read_digest
from vaeconv.evaluation.samples import SHOWN, Sample
from vaeconv.evaluation.tables import format_latex, format_markdown, identity_of
from vaeconv.publish.documents import MAX_REPORT, read_document
from vaeconv.publish.places import hide_places, hide_places_in_text
from vaeconv.weights.output_names import check_ending


def evaluate_job(job: EvalJob, options: EvalOptions, sink: Sink) -> None:
    """Evaluate the models of a job, add earlier results, and print and write what was found.

    Raises:
        VaeconvError: As :func:`~vaeconv.evaluation.evaluate.evaluate`.
    """
    results = [_read_result(path) for path in job.add]
    specs = job.specs()
    _check_drawings(job, bool(specs) + len(results), results)
    samples: list[Sample] = []
    written: list[Path] = []
    notes = []
    if specs:
        options = replace(options, on_sample=samples.append if job.html else None)
        result = _run(job, specs, options, sink)
        if result is None:  # not the first of several processes
            return
        assert job.out is not None
        results, written = [result, *results], [job.out]
        kept = _parts_of(job.out)
        notes.append(note(f"results of each image are kept in {kept}, which can be removed"))
    if job.plots:
        from vaeconv.evaluation.distributions import draw_plots

        written += draw_plots(job.plots, results)
    if job.html:
        write_page(job.html, "eval", results, samples, most=SHOWN)
        written.append(job.html)
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
        from vaeconv.evaluation.distributions import check_plots, import_figure

        check_ending(job.plots, (), "--plots")
        import_figure()  # before the work, where it is missing
        check_plots(job.plots, results, overwrite=job.overwrite)
    if job.html:
        from vaeconv.evaluation.page import make_page

        check_page(job.html, overwrite=job.overwrite)
        for path, result in zip(job.add, earlier, strict=True):
            with _read_as_result(path):
                make_page("eval", [result], [], most=0)


def _run(
    job: EvalJob, specs: Sequence[ModelSpec], options: EvalOptions, sink: Sink
) -> dict[str, Any] | None:
    """Evaluate, and write the result; None in all processes but the first."""
    if job.images is None:
        raise UsageError("no images", hint="name a folder, a zip file or an image with --images")
    if job.out is None:
        raise UsageError("no output", hint="name a file for the result with --out")
    check_ending(job.out, (".json",), "a result")
    parts = _parts_of(job.out)
    check_writable(job.out)
    # Whether the run that it belongs to is the one that is asked for shows when models are open.
    is_there, belongs = job.out.exists(), _belongs(job.out, parts)
    another = OutputExistsError(
        "exists, and is not the result of this run",
        where=str(job.out),
        hint="--overwrite replaces it",
    )
    if is_there and not job.overwrite and not belongs:
        raise another
    # Another run's progress may go where that was asked for, and with its own result.
    discards = job.overwrite and (options.restart or belongs) if is_there else options.restart
    shown = sink.is_shown and read_world().is_first
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        options = replace(
            options,
            discards=discards,
            reading=replace(options.reading, on_fetch=fetching.advance),
            quiet=True,
            on_progress=steps.advance,
        )
        try:
            result = evaluate(specs, job.images, options, parts=parts)
        except OtherRunError as error:
            if job.out.exists() and not job.overwrite:
                raise another from error
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


def _parts_of(out: Path) -> Path:
    """Name the folder of progress that lies beside a result."""
    return out.with_name(out.name + ".parts")


def _belongs(out: Path, parts: Path) -> bool:
    """Tell whether a file is the result of the run that left progress in a folder."""
    try:
        named = json.loads(read_text_file(out, MAX_REPORT)).get("run_sha256")
    except (InputError, ValueError, AttributeError, RecursionError):
        return False
    return named is not None and named == read_digest(parts)


@contextmanager
def _read_as_result(path: Path) -> Iterator[None]:
    """Say of a file that fails to be used as a result that it is none."""
    try:
        yield
    except (
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError
    ) as error:  # fmt: skip
        raise InputError(f"not a result of vaeconv eval ({error!r})", where=str(path)) from error


def _read_result(path: Path) -> dict[str, Any]:
    """Read an earlier result: a document of which every table can be made."""
    with _read_as_result(path):
        document = read_document(path, "eval")
        for make in (table_lines, format_markdown, format_latex):
            make([document])
        is_old = identity_of(document) is None
    if is_old:
        text = (
            f"{path} knows its images by names and sizes only, so it gets a table of its own; "
            "measure again to compare"
        )
        print_notes([note(text)])
    return dict(document)


def check_page(page: Path, *, overwrite: bool) -> None:
    """Check before the work that a page can be written, and replaces nothing unasked.

    Raises:
        OutputError: It cannot be written, or something is there.
        UsageError: Its name ends in something else than a page's.
    """
    check_ending(page, (".html", ".htm"), "a page")
    check_writable(page)
    if page.exists() and not overwrite:
        raise OutputExistsError("exists", where=str(page), hint="--overwrite replaces it")


def write_page(
    path: Path,
    command: str,
    results: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    *,
    most: int,
) -> None:
    """Write results and samples as a page that names no folders of this machine.

    Raises:
        OutputError: It cannot be written.
    """
    from vaeconv.evaluation.page import make_page

    page = make_page(command, [hide_places(result) for result in results], samples, most=most)
    replace_small_file(path, hide_places_in_text(page).encode(), durable=False)
