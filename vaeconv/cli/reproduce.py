"""``vaeconv eval --reproduce-card``: the published table, and ours beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vaeconv.cli.eval_files import check_result, parts_of
from vaeconv.cli.eval_jobs import EvalJob
from vaeconv.cli.evaluating import run_evaluation
from vaeconv.cli.output import Sink
from vaeconv.cli.render.eval import written_lines
from vaeconv.cli.screen import Line, Table
from vaeconv.errors import UsageError
from vaeconv.evaluation.eval_options import EvalOptions
from vaeconv.evaluation.published_card import (
    PROTOCOLS,
    Difference,
    card_specs,
    compare_with_card,
    default_cache,
    fetch,
    nearest_protocol,
    net_urls,
    plan_downloads,
    protocol_file,
)

_TITLES = {"rfid": "rFID", "psnr": "PSNR", "ssim": "SSIM", "psim": "PSIM"}


def reproduce(job: EvalJob, options: EvalOptions, sink: Sink) -> None:
    """Fetch what is missing, evaluate under each protocol, and print the comparison.

    Raises:
        UsageError: Models were named, or the protocol was changed.
        HubError: A file cannot be fetched.
    """
    if job.models or job.models_file:
        raise UsageError("--reproduce-card evaluates the card's models and no others")
    if options.protocol != PROTOCOLS[0]:
        raise UsageError("--reproduce-card runs protocols of its own")
    cache = default_cache()
    downloads = plan_downloads(cache)
    images = job.images or str(downloads[-1].target)
    if job.images:
        downloads.pop()
    if job.dry_run:
        _print_plan(sink, downloads, images)
        return
    if job.out is None:
        raise UsageError("no output", hint="name a file for the result with --out")
    for one in PROTOCOLS:
        out = protocol_file(job.out, one)
        check_result(out, parts_of(out), overwrite=job.overwrite)
    for download in downloads:
        if not download.is_there:
            fetch(download, quiet=not sink.is_shown)
    differences: list[Difference] = []
    for one in PROTOCOLS:
        run = replace(job, images=images, out=protocol_file(job.out, one))
        result = run_evaluation(run, card_specs(cache), replace(options, protocol=one), sink)
        if result is None:
            return
        differences += compare_with_card(result)
    written = [str(protocol_file(job.out, one)) for one in PROTOCOLS]
    sink.show(
        "eval",
        lambda: {**comparison_document(differences), "written": written},
        lambda: [*comparison_lines(differences), *written_lines(written)],
    )


def _print_plan(sink: Sink, downloads: Sequence[Any], images: str) -> None:
    document = {
        "dry_run": True,
        "downloads": [
            {"url": one.url, "target": str(one.target), "is_there": one.is_there}
            for one in downloads
        ],
        "nets": net_urls(),
        "images": images,
        "protocols": {one.name: one.describe() for one in PROTOCOLS},
    }
    lines = ["would fetch:"]
    lines += [
        f"  {one.url} to {one.target}{' (there)' if one.is_there else ''}" for one in downloads
    ]
    lines += [f"  {url}, unless it is in torch's cache" for url in net_urls()]
    lines.append(
        f"would evaluate {', '.join(spec.name for spec in card_specs(Path()))} on {images}:"
    )
    lines += [f"  {one.name}: {one.describe()}" for one in PROTOCOLS]
    sink.show("eval", lambda: document, lambda: lines)


def comparison_document(differences: Sequence[Difference]) -> dict[str, Any]:
    """Describe the comparison for machines."""
    return {
        "differences": [{**one._asdict(), "gap": one.gap} for one in differences],
        "nearest": {
            metric: {"protocol": found[0], "mean_gap": found[1]}
            for metric in _TITLES
            if (found := nearest_protocol(differences, metric))
        },
    }


def comparison_lines(differences: Sequence[Difference]) -> list[Line]:
    """Tell a person the card's numbers, ours and the gap, for each protocol."""
    rows = [
        (
            one.protocol,
            one.model,
            _TITLES[one.metric],
            _pair(one.published),
            "not computed" if one.ours is None else _pair(one.ours),
            "-" if one.gap is None else f"{one.gap:+.2f}",
        )
        for one in differences
    ]
    head = ("protocol", "model", "metric", "card", "ours", "gap")
    lines: list[Line] = [Table(head, rows, left=3)]
    for metric, title in _TITLES.items():
        found = nearest_protocol(differences, metric)
        if found:
            lines.append(f"{title}: nearest with {found[0]}, {found[1]:.2f} away on average")
    lines.append(
        "PSIM here is VGG without learned weights; that the card means the same is not verified"
    )
    return lines


def _pair(value: tuple[float, float | None]) -> str:
    mean, std = value
    return f"{mean:.2f}" if std is None else f"{mean:.2f} +/- {std:.2f}"
