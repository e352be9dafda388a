"""An inspection as tables and as a document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vaeconv.cli.output import human_size
from vaeconv.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from vaeconv.inspection import Inspection

_SHOWN_PARTS = 40
_SHOWN_ENTRIES, _SHOWN_TEXT = 40, 120


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
