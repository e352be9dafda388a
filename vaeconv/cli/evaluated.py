"""What ``vaeconv eval`` does with its options, prints and writes."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.atomic import replace_small_file
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.checkpoint.writable import check_writable
from vaeconv.cli.left_out import left_out_notes
from vaeconv.cli.progress import ByteProgress, StepProgress
from vaeconv.cli.render import SCHEMA_VERSION, print_json, print_notes, text_table
from vaeconv.errors import InputError, OutputExistsError, UsageError, one_line
from vaeconv.evaluate.evaluation import EvalOptions, evaluate
from vaeconv.evaluate.meter import METRICS
from vaeconv.evaluate.models import ModelSpec, name_specs
from vaeconv.evaluate.ranks import read_ranks
from vaeconv.evaluate.shards import OtherRunError, read_digest
from vaeconv.evaluate.tables import format_latex, format_markdown, identity_of, make_tables
from vaeconv.json_text import dump_json
from vaeconv.names import check_ending
from vaeconv.parity.images import LeftOut
from vaeconv.publish.documents import MAX_REPORT, read_document
from vaeconv.publish.places import hide_places


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalJob:
    """What the command was asked for, beside the options of an evaluation."""

    models: list[str]
    models_file: Path | None
    names: list[str]
    train_steps: list[int]
    comments: list[str]
    links: list[str]
    ema: bool
    images: Path | None
    out: Path | None
    format: str
    add: list[Path]
    plots: Path | None
    overwrite: bool
    reproduce_card: bool
    dry_run: bool
    batch_size: str
    metrics: str
    json: bool
    quiet: bool
    verbose: bool


def run_job(job: EvalJob, options: EvalOptions) -> None:
    """Run the command.

    Args:
        job: What was asked for.
        options: Those of the evaluation that can be taken as they were given.

    Raises:
        VaeconvError: As :func:`~vaeconv.evaluate.evaluation.evaluate`.
    """
    if job.reproduce_card:
        from vaeconv.cli.reproduced import reproduce

        reproduce(job, options)
        return
    earlier = [read_result(path) for path in job.add]
    specs = specs_of(job)
    if not specs and not earlier:
        raise UsageError("no models", hint="name some, or results of earlier runs with --add")
    if job.dry_run:
        raise UsageError("--dry-run goes with --reproduce-card")
    if job.plots:
        from vaeconv.evaluate.plots import check_plots, import_figure

        check_ending(job.plots, (), "--plots")

        import_figure()  # before the work, where it is missing
        check_plots(job.plots, bool(specs) + len(earlier), overwrite=job.overwrite)
    result = None
    if specs:
        result = run_evaluation(job, specs, options)
        if result is None:  # not the first of several processes
            return
    results = [*([result] if result else []), *earlier]
    if job.plots:
        from vaeconv.evaluate.plots import draw_plots

        draw_plots(job.plots, results)
    if job.json:
        print_json("eval", {"results": results} if job.add else dict(result or {}))
    elif not job.quiet:
        print_results(results, job.format)


def run_evaluation(
    job: EvalJob, specs: Sequence[ModelSpec], options: EvalOptions
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
    shown = not (job.quiet or job.json) and is_first
    with ByteProgress("fetching", enabled=shown) as fetching, StepProgress(enabled=shown) as steps:
        options = replace(
            options,
            metrics=_metrics_of(job.metrics),
            batch_size=_batch_size_of(job.batch_size),
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
        _print_notes(result, verbose=job.verbose)
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
        notes.append(f"note: {pictures['beyond_limit']} images are beyond --limit")
    notes += [
        f"note: {number} images measured, but: {remark}"
        for remark, number in pictures["remarks"].items()
    ]
    notes += [
        f"warning: {name} not computed: {why}" for name, why in result["not_computed"].items()
    ]
    notes += [
        f"warning: {net['file']} holds other weights of {net['name']} than the published ones"
        for net in result["nets"]
        if not net["is_published"]
    ]
    print_notes(notes)


def specs_of(job: EvalJob) -> list[ModelSpec]:
    """List the models that arguments and the file name."""
    columns: dict[str, Sequence[Any]] = {
        "name": job.names,
        "train_steps": job.train_steps,
        "comment": job.comments,
        "link": job.links,
    }
    return name_specs(job.models, columns, job.models_file, ema=job.ema)


def _metrics_of(text: str) -> tuple[str, ...]:
    wanted = [name.strip() for name in text.lower().split(",") if name.strip()]
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        raise UsageError(
            f"no metric is called {unknown[0]}" if unknown else "no metrics",
            hint=f"choose from {', '.join(METRICS)}",
        )
    return tuple(name for name in METRICS if name in wanted)


def _batch_size_of(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text} is neither auto nor a whole number")
    return int(text)


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
        lines: list[str] = []
        for table in make_tables(results):
            lines += [table.title, *text_table(table.head, table.rows, left=1), table.protocol, ""]
        for result in results:
            lines += _latent_lines(result)
        sys.stdout.writelines(one_line(line) + "\n" for line in lines)
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
