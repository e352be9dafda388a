"""What ``vaeconv eval`` does with its options, prints and writes."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.atomic import replace_small_file
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.writable import check_writable
from vaeconv.cli.jobs import EvalJob, NetworkFiles, Reading
from vaeconv.cli.left_out import left_out_notes
from vaeconv.cli.output import SCHEMA_VERSION, Sink, print_notes
from vaeconv.cli.progress import ByteProgress, StepProgress
from vaeconv.cli.screen import Line, Table, fitted
from vaeconv.errors import InputError, OutputExistsError, UsageError
from vaeconv.evaluate.evaluation import EvalOptions, evaluate
from vaeconv.evaluate.models import ModelSpec, name_specs
from vaeconv.evaluate.protocol import ProtocolOptions
from vaeconv.evaluate.ranks import read_ranks
from vaeconv.evaluate.shards import OtherRunError, read_digest
from vaeconv.evaluate.tables import format_latex, format_markdown, identity_of, make_tables
from vaeconv.json_text import dump_json
from vaeconv.names import check_ending
from vaeconv.notes import note, warning
from vaeconv.parity.images import LeftOut
from vaeconv.publish.documents import MAX_REPORT, read_document
from vaeconv.publish.places import hide_places


def run_job(
    job: EvalJob,
    protocol: ProtocolOptions,
    options: EvalOptions,
    networks: NetworkFiles,
    reading: Reading,
    sink: Sink,
) -> None:
    """Run the command.

    Raises:
        VaeconvError: As :func:`~vaeconv.evaluate.evaluation.evaluate`.
    """
    if not (job.models or job.models_file or job.reproduce_card or job.add):
        raise UsageError("no models", hint="name some, or results of earlier runs with --add")
    job.refuse_idle(options, reading, json=sink.json)
    options = replace(
        options,
        protocol=protocol.made(),
        weights=networks.by_network(options.metrics),
        sides=reading.options(),
    )
    if job.reproduce_card:
        from vaeconv.cli.render.reproduce import reproduce

        reproduce(job, options, sink)
        return
    earlier = [read_result(path) for path in job.add]
    specs = specs_of(job)
    if job.dry_run:
        raise UsageError("--dry-run goes with --reproduce-card")
    if job.plots:
        from vaeconv.evaluate.plots import check_plots, import_figure

        check_ending(job.plots, (), "--plots")

        import_figure()  # before the work, where it is missing
        check_plots(job.plots, bool(specs) + len(earlier), overwrite=job.overwrite)
    result = None
    if specs:
        result = run_evaluation(job, specs, options, sink)
        if result is None:  # not the first of several processes
            return
    results = [*([result] if result else []), *earlier]
    if job.plots:
        from vaeconv.evaluate.plots import draw_plots

        draw_plots(job.plots, results)
    sink.show(
        "eval",
        lambda: {"results": results} if job.add else dict(result or {}),
        lambda: print_results(results, job.format.value),
    )


def run_evaluation(
    job: EvalJob, specs: Sequence[ModelSpec], options: EvalOptions, sink: Sink
) -> dict[str, Any] | None:
    """Evaluate, and write the result."""
    if job.images is None:
        raise UsageError("no pictures", hint="name a folder or a zip file with --images")
    if job.out is None:
        raise UsageError("no output", hint="name a file for the result with --out")
    check_ending(job.out, (".json",), "a result")
    parts = job.out.with_name(job.out.name + ".parts")
    is_first = read_ranks().is_first
    check_result(job.out, parts, overwrite=job.overwrite)
    shown = sink.is_shown and is_first
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        options = replace(
            options,
            discards=_may_discard(job.out, parts, options.restart, job.overwrite),
            sides=options.sides._replace(on_fetch=fetching.advance),
            quiet=not shown,
            on_progress=steps.advance,
        )
        try:
            result = evaluate(specs, job.images, parts, options)
        except OtherRunError as error:
            if job.out.exists() and not job.overwrite:
                raise _another_result(job.out) from error
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
        _print_notes(result, verbose=sink.verbose)
    return result


def check_result(out: Path, parts: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file, unless it is the result of the run whose progress lies beside it.

    Whether that run is the one that is asked for shows when its models are open.

    Raises:
        OutputExistsError: Something else is there, and may not be replaced.
        OutputError: It cannot be written.
    """
    check_writable(out)
    if out.exists() and not overwrite and not _belongs(out, parts):
        raise _another_result(out)


def _another_result(out: Path) -> OutputExistsError:
    return OutputExistsError(
        "exists, and is not the result of this run", where=str(out), hint="--overwrite replaces it"
    )


def _belongs(out: Path, parts: Path) -> bool:
    """Tell whether a file is the result of the run that left progress in a folder."""
    try:
        document = json_module.loads(read_text_file(out, MAX_REPORT))
        named = document.get("run_sha256")
    except (InputError, ValueError, AttributeError, RecursionError):
        return False
    return named is not None and named == read_digest(parts)


def _may_discard(out: Path, parts: Path, restart: bool, overwrite: bool) -> bool:
    """Tell whether another run's progress may go.

    It may where that was asked for, and with its own result, which --overwrite replaces.
    """
    if not out.exists():
        return restart
    return overwrite and (restart or _belongs(out, parts))


def _print_notes(result: Mapping[str, Any], *, verbose: bool) -> None:
    pictures = result["pictures"]
    notes = left_out_notes([LeftOut(**one) for one in pictures["left_out"]], verbose=verbose)
    if pictures["beyond_limit"]:
        notes.append(note(f"{pictures['beyond_limit']} images are beyond --limit"))
    notes += [
        note(f"{number} images measured, but: {remark}")
        for remark, number in pictures["remarks"].items()
    ]
    notes += [
        warning(f"{name} not computed: {why}") for name, why in result["not_computed"].items()
    ]
    notes += [
        warning(f"{net['file']} holds other weights of {net['name']} than the published ones")
        for net in result["nets"]
        if not net["is_published"]
    ]
    print_notes(notes)


def specs_of(job: EvalJob) -> list[ModelSpec]:
    """List the models that arguments and the file name."""
    columns: dict[str, Sequence[Any]] = {
        "name": job.name,
        "train_steps": job.train_steps,
        "comment": job.comment,
        "link": job.link,
    }
    return name_specs(list(job.models), columns, job.models_file, ema=job.ema)


def read_result(path: Path) -> dict[str, Any]:
    """Read an earlier result.

    Raises:
        InputError: It is none.
    """
    try:
        document = read_document(path, "eval")
        make_tables([document])
        is_old = identity_of(document) is None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a result of vaeconv eval ({error!r})", where=str(path)) from error
    if is_old:
        print_notes(
            [
                f"note: {path} knows its images by names and sizes only, so it gets a table of its "
                "own; measure again to compare"
            ]
        )
    return dict(document)


def print_results(results: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print tables of results."""
    if form == "json":
        sys.stdout.write(dump_json(list(results), indent=1) + "\n")
    elif form == "markdown":
        sys.stdout.write(format_markdown(results) + "\n")
    elif form == "latex":
        sys.stdout.write(format_latex(results) + "\n")
    else:
        lines: list[Line] = []
        for table in make_tables(results):
            lines += [table.title, Table(table.head, table.rows), table.protocol, ""]
        for result in results:
            lines += _latent_lines(result)
        sys.stdout.writelines(line + "\n" for line in fitted(lines, sys.stdout))
    sys.stdout.flush()


def _latent_lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for model in result["models"]:
        stats = model.get("latents")
        if stats:
            channels = ", ".join(
                f"{mean:.3f} +/- {std:.3f}"
                for mean, std in zip(stats["channel_mean"], stats["channel_std"], strict=True)
            )
            factor = stats["scaling_factor"]
            lines += [
                f"latents of {model['name']}: {stats['mean']:.4f} +/- {stats['std']:.4f}, "
                f"scaling factor {'-' if factor is None else f'{factor:.5f}'}",
                f"  channels: {channels}",
            ]
    return lines
