"""Turn results into text or JSON. The only place that prints."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vaeconv.errors import VaeconvError, one_line
from vaeconv.json_text import dump_json

if TYPE_CHECKING:
    from rich.console import Console

    from vaeconv.conversion import Conversion
    from vaeconv.inspection import Inspection

SCHEMA_VERSION = 1
_SHOWN_PARTS = 40
_SHOWN_ENTRIES, _SHOWN_TEXT = 40, 120


def print_json(
    command: str, document: Mapping[str, Any], error: VaeconvError | None = None
) -> None:
    """Write one JSON document straight to stdout, untouched by any console."""
    envelope: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "ok": error is None,
        **document,
    }
    if error is not None:
        envelope["error"] = describe_error(error)
    sys.stdout.write(dump_json(envelope) + "\n")
    sys.stdout.flush()


def describe_error(error: VaeconvError) -> dict[str, Any]:
    """Give an error's facts."""
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "message": str(error),
        "what": one_line(error.what),
        "where": error.where and one_line(error.where),
        "hint": error.hint,
        **({"details": list(error.details)} if error.details else {}),
    }


def print_error(text: str, details: Iterable[str] = ()) -> None:
    """Write one error line to stderr, where that can be written, and one for each detail."""
    lines = [f"error: {one_line(text)}", *(f"  - {one_line(detail)}" for detail in details)]
    with suppress(OSError):
        _write_stderr(line + "\n" for line in lines)


def print_notes(notes: Iterable[str]) -> None:
    """Write notes and warnings to stderr, a line each."""
    _write_stderr(one_line(note) + "\n" for note in notes)


def _write_stderr(lines: Iterable[str]) -> None:
    """Write lines; where there is no room for them, the work goes on."""
    try:
        sys.stderr.writelines(lines)
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def human_size(nbytes: int) -> str:
    """Write a number of bytes for people, in decimal units as file managers do."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def text_table(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, left: int, last_left: bool = False
) -> list[str]:
    """Align columns: the first ``left`` to the left, numbers to the right; as wide as it takes."""
    table = [head, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width) if column < left or (last_left and column == len(head) - 1)
            else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]  # fmt: skip
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def conversion_document(result: Conversion, *, dry_run: bool) -> dict[str, Any]:
    """Describe a conversion for machines."""
    ema, raw = result.plan.ema_counts
    document: dict[str, Any] = {
        "dry_run": dry_run,
        "source": {"name": result.source, "container": result.container,
                   "layout": result.source_layout.value},
        "output": {"path": str(result.output), "layout": result.layout.value,
                   "tensors": len(result.plan.rows), "bytes": result.plan.nbytes},
        "ema": {"ema": ema, "raw": raw},
        "dropped": result.plan.drop_counts(),
        "config": result.config,
        "metadata": dict(sorted(result.metadata.items())),
        "scaling_from": result.decision.scaling.source if result.decision else None,
        "family": result.decision.family.name
        if result.decision and result.decision.family else None,
        "files": [
            {"path": str(w.path), "size": w.size, "sha256": w.sha256} for w in result.written
        ],
        "notes": list(result.plan.notes),
    }  # fmt: skip
    if dry_run:
        document["rows"] = [
            {"name": row.name, "source": row.source.name, "shape": list(row.shape),
             "dtype": row.dtype.code, "cast_from": row.source.dtype.code if row.is_cast else None}
            for row in result.plan.rows
        ]  # fmt: skip
    return document


def conversion_lines(
    result: Conversion, *, dry_run: bool, seconds: float, verbose: bool
) -> Iterator[str]:
    """Tell a person what was converted."""
    yield (
        f"{'would convert' if dry_run else 'converted'} {result.source} ({result.container}, "
        f"{result.source_layout.value}) to {result.output} ({result.layout.value})"
    )
    yield f"  {len(result.plan.rows)} tensors, {human_size(result.plan.nbytes)}"
    if result.decision:
        scaling = result.decision.scaling
        shift = "" if scaling.shift_factor is None else f", shift factor {scaling.shift_factor:g}"
        yield f"  scaling factor {scaling.scaling_factor:g}{shift} ({scaling.source})"
    if result.plan.dropped:
        counts = ", ".join(f"{count} {why}" for why, count in result.plan.drop_counts().items())
        yield f"  left out: {counts}"
    if dry_run or verbose:
        for row in result.plan.rows:
            cast = f" {row.source.dtype.code} -> {row.dtype.code}" if row.is_cast else ""
            yield f"  {row.name} <- {row.source.name}{cast}"
    for written in result.written:
        digest = f"  sha256 {written.sha256}" if written.sha256 else ""
        yield f"  {written.path}  {human_size(written.size)}{digest}"
    if not dry_run:
        yield f"  in {seconds:.2f} s"


def inspection_document(report: Inspection, *, keys: bool) -> dict[str, Any]:
    """Describe an inspection for machines."""
    document: dict[str, Any] = {
        "name": report.name,
        "container": report.container,
        "size": report.size,
        "wrapper": list(report.wrapper),
        "layout": report.layout,
        "prefix": report.prefix,
        "family": report.family,
        "scaling": report.scaling,
        "config": report.config,
        "dtypes": report.dtypes,
        "parts": [
            {"name": p.name, "tensors": p.tensors, "parameters": p.parameters, "bytes": p.nbytes}
            for p in report.parts
        ],
        "ema": report.ema or None,
        "beside_the_state_dict": [
            {"name": s.name, "kind": s.kind, "tensors": s.tensors, "bytes": s.nbytes}
            for s in report.siblings
        ],
        "pickle_globals": [{"name": name, "verdict": verdict} for name, verdict in report.globals],
        "nonfinite": None if report.nonfinite is None else list(report.nonfinite),
        "metadata": dict(sorted(report.metadata.items())),
        "sha256": list(report.sha256),
        "notes": list(report.notes),
    }
    if keys:
        document["keys"] = [
            {"name": k.name, "dtype": k.dtype, "shape": list(k.shape), "role": k.role}
            for k in report.keys
        ]
    return document


def render_inspection(report: Inspection, console: Console, *, keys: bool = False) -> None:
    """Draw an inspection as tables."""
    from rich.table import Table
    from rich.text import Text

    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for label, value in _fact_lines(report):
        facts.add_row(label, Text(one_line(value)))
    console.print(Text(one_line(report.name), style="bold cyan"))
    console.print(facts)
    parts = Table(title=None, header_style="bold")
    for heading, justify in (("part", "left"), ("tensors", "right"), ("parameters", "right"),
                             ("size", "right")):  # fmt: skip
        parts.add_column(heading, justify=justify)  # type: ignore[arg-type]
    by_size = sorted(report.parts, key=lambda part: -part.nbytes)
    for part in report.parts if len(by_size) <= _SHOWN_PARTS else by_size[:_SHOWN_PARTS]:
        parts.add_row(
            Text(part.name), str(part.tensors), f"{part.parameters:,}", human_size(part.nbytes)
        )
    if len(by_size) > _SHOWN_PARTS:
        rest = by_size[_SHOWN_PARTS:]
        parts.add_row(
            f"{len(rest)} more", str(sum(part.tensors for part in rest)),
            f"{sum(part.parameters for part in rest):,}",
            human_size(sum(part.nbytes for part in rest)),
        )  # fmt: skip
    for sibling in report.siblings[:_SHOWN_PARTS]:
        size = human_size(sibling.nbytes) if sibling.tensors else ""
        count = str(sibling.tensors) if sibling.tensors else ""
        parts.add_row(
            Text(one_line(f"{sibling.name} ({sibling.kind})"), style="dim"), count, "", size
        )
    console.print(parts)
    if report.globals:
        names = Table("name in the pickle", "verdict", header_style="bold")
        for name, verdict in report.globals:
            names.add_row(Text(one_line(name)), verdict)
        console.print(names)
    if keys:
        table = Table("key", "dtype", "shape", "becomes", header_style="bold")
        for key in report.keys:
            shape = "x".join(map(str, key.shape)) or "scalar"
            table.add_row(Text(one_line(key.name)), key.dtype, shape, Text(key.role))
        console.print(table)


def _fact_lines(report: Inspection) -> list[tuple[str, str]]:
    lines = [("container", f"{report.container}, {human_size(report.size)}")]
    if report.wrapper:
        lines.append(("state dict", "under " + ".".join(report.wrapper)))
    if report.layout:
        prefix = f"prefix {report.prefix}" if report.prefix else "no prefix"
        lines.append(("layout", f"{report.layout}, {prefix}"))
        dtypes = ", ".join(f"{code} ({count})" for code, count in report.dtypes.items())
        lines.append(("dtype", dtypes))
    if report.family:
        lines.append(("family", report.family))
    if report.config:
        lines += _config_lines(report.config)
    if report.scaling:
        shift = report.scaling["shift_factor"]
        text = f"{report.scaling['scaling_factor']:g}"
        text += "" if shift is None else f", shift {shift:g}"
        lines.append(("scaling factor", f"{text} ({report.scaling['from']})"))
    lines.append(("EMA", _ema_line(report)))
    lines.append(("NaN, infinity", _nonfinite_line(report)))
    lines += _metadata_lines(report.metadata)
    lines += [("sha256", digest) for digest in report.sha256]
    return lines


def _metadata_lines(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Show what a header says, as much of it as a terminal takes."""
    lines = [
        ("metadata" if not index else "", one_line(f"{_start_of(key)}: {_start_of(text)}"))
        for index, (key, text) in enumerate(sorted(metadata.items())[:_SHOWN_ENTRIES])
    ]
    more = len(metadata) - len(lines)
    return [*lines, ("", f"{more} more; --json has all")] if more else lines


def _start_of(text: str) -> str:
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}… ({len(text)} characters)"


def _config_lines(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    halves = [
        {f"level {level}" for level, kind in enumerate(kinds) if "Attn" in kind}
        for kinds in (config["down_block_types"], config["up_block_types"][::-1])
    ]
    where = ["middle"] if config["mid_block_add_attention"] else []
    for level in sorted(halves[0] | halves[1]):
        only = [side for side, levels in zip(("encoder", "decoder"), halves, strict=True)
                if level in levels]  # fmt: skip
        where.append(level if len(only) == 2 else f"{level} of the {only[0]}")
    return [
        ("block_out_channels", " ".join(map(str, config["block_out_channels"]))),
        ("layers_per_block", str(config["layers_per_block"])),
        ("latent channels", f"{config['latent_channels']}"),
        ("attention", ", ".join(where) or "none"),
        ("quant convolutions", "yes" if config["use_quant_conv"] else "no"),
    ]


def _ema_line(report: Inspection) -> str:
    ema = report.ema
    if not ema:
        return "none"
    if not ema["autoencoder_tensors"]:
        return "of the diffusion model only" if ema["covers_unet"] else "a remnant without weights"
    updates = "" if ema["num_updates"] is None else f", {ema['num_updates']} updates"
    decay = "" if ema["decay"] is None else f", decay {ema['decay']:g}"
    if ema["is_whole"]:
        return f"these are EMA weights{updates}{decay}"
    place = ema["prefix"].rstrip(".")
    more = f", and under {', '.join(ema['others'])}" if ema["others"] else ""
    count = f"{ema['autoencoder_tensors']} of {ema['of']} tensors{updates}{decay}"
    return f"{count}, under {place}{more}"


def _nonfinite_line(report: Inspection) -> str:
    if report.nonfinite is None:
        return "not looked for"
    return ", ".join(report.nonfinite[:5]) or "none"
