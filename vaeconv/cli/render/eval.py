"""An evaluation as text: tables, statistics of latents, notes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vaeconv.cli.output import print_notes
from vaeconv.cli.screen import Line, Table, fitted
from vaeconv.common.json_text import dump_json
from vaeconv.common.notes import Note, note, warning
from vaeconv.common.wording import plural
from vaeconv.evaluation.tables import format_latex, format_markdown, make_tables
from vaeconv.models.images import LeftOut, left_out_notes


def result_notes(result: Mapping[str, Any], *, verbose: bool) -> list[Note]:
    """Say what a user should know of a result beside its table."""
    images = result["pictures"]
    notes = left_out_notes([LeftOut(**one) for one in images["left_out"]], verbose=verbose)
    if images["beyond_limit"]:
        more = plural(images["beyond_limit"], "image")
        notes.append(note(f"left out, as beyond --limit: {more}"))
    notes += [
        note(f"measured {plural(number, 'image')}, but: {remark}")
        for remark, number in images["remarks"].items()
    ]
    notes += [
        warning(f"{name} not computed: {why}") for name, why in result["not_computed"].items()
    ]
    notes += [
        warning(
            f"{network['file']} holds other weights of {network['name']} than the published ones"
        )
        for network in result["nets"]
        if not network["is_published"]
    ]
    return notes


def print_results(results: Sequence[Mapping[str, Any]], form: str, written: Sequence[str]) -> None:
    """Print tables of results, and the files that were written.

    Args:
        results: Documents of evaluations.
        form: ``table``, ``markdown``, ``latex`` or ``json``.
        written: Files; named on stderr where stdout may go into a document.
    """
    if form == "json":
        sys.stdout.write(dump_json(list(results), indent=1) + "\n")
    elif form == "markdown":
        sys.stdout.write(format_markdown(results) + "\n")
    elif form == "latex":
        sys.stdout.write(format_latex(results) + "\n")
    else:
        lines = [*table_lines(results), *written_lines(written)]
        sys.stdout.writelines(line + "\n" for line in fitted(lines, sys.stdout))
    sys.stdout.flush()
    if form != "table":
        print_notes(written_lines(written))


def table_lines(results: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Lay results out as tables, and the statistics of latents below."""
    lines: list[Line] = []
    for table in make_tables(results):
        lines += [table.title, Table(table.head, table.rows), table.protocol, ""]
    for result in results:
        lines += _latent_lines(result)
    return lines


def written_lines(written: Sequence[str]) -> list[str]:
    """Name files that were written, one a line."""
    return [f"wrote {path}" for path in written]


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
