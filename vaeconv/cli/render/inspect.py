"""An inspection as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vaeconv.checkpoint.dtypes import BY_CODE
from vaeconv.cli.screen import Line, Style, Styled, Table
from vaeconv.common.wording import human_size, plural
from vaeconv.errors import listed

if TYPE_CHECKING:
    from vaeconv.weights.inspect import Inspection

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
        "notes": [str(note) for note in report.notes],
    }
    if keys:
        document["keys"] = [
            {"name": k.name, "dtype": k.dtype, "shape": list(k.shape), "role": k.role}
            for k in report.keys
        ]
    return document


def inspection_lines(report: Inspection, *, keys: bool, verbose: bool) -> Iterator[Line]:
    """Tell a person what a checkpoint is; the details where they are wanted."""
    yield Styled(f"{report.name}: {_essence(report)}", Style.STRONG)
    facts = [*_facts(report), *(_details(report) if verbose else ())]
    yield Table(("", ""), facts, last_left=True)
    yield from ("", _part_table(report))
    if report.siblings and verbose:
        yield from ("", _sibling_table(report))
    elif report.siblings:
        yield f"  beside the state dict: {_named([one.name for one in report.siblings])}"
    if report.globals and verbose:
        yield from ("", Table(("name in the pickle", "treated as"), report.globals, left=2))
    elif report.globals:
        number = plural(len(report.globals), "name")
        yield f"  the pickle holds {number} of other packages; none is run or imported"
    if (report.siblings or report.globals) and not verbose:
        yield "  more with --verbose"
    if keys:
        rows = [
            (key.name, BY_CODE[key.dtype].label if key.dtype in BY_CODE else key.dtype,
             "x".join(map(str, key.shape)) or "scalar", key.role)
            for key in report.keys
        ]  # fmt: skip
        yield from ("", Table(("key", "dtype", "shape", "becomes"), rows, left=4))


def _essence(report: Inspection) -> str:
    """Say in a few words what it is."""
    if not report.layout:
        return "no autoencoder that vaeconv knows"
    return f"autoencoder in the {report.layout} layout, {_dtypes(report)}"


def _part_table(report: Inspection) -> Table:
    by_size = sorted(report.parts, key=lambda part: -part.nbytes)
    shown = report.parts if len(by_size) <= _SHOWN_PARTS else by_size[:_SHOWN_PARTS]
    rows = [
        (part.name, str(part.tensors), f"{part.parameters:,}", human_size(part.nbytes))
        for part in shown
    ]
    if rest := by_size[len(shown) :]:
        rows.append((
            f"{len(rest)} more", str(sum(part.tensors for part in rest)),
            f"{sum(part.parameters for part in rest):,}",
            human_size(sum(part.nbytes for part in rest)),
        ))  # fmt: skip
    return Table(("part", "tensors", "parameters", "size"), rows)


def _sibling_table(report: Inspection) -> Table:
    rows = [
        (one.name, str(one.tensors or "-"), human_size(one.nbytes) if one.tensors else "-",
         one.kind.removeprefix("a "))
        for one in report.siblings[:_SHOWN_PARTS]
    ]  # fmt: skip
    return Table(("beside the state dict", "tensors", "size", "type"), rows, last_left=True)


def _named(names: Sequence[str]) -> str:
    """Name what a line has room for."""
    return listed([_start_of(name, 40) for name in names], 8)


def _facts(report: Inspection) -> list[tuple[str, str]]:
    wrapper = f", state dict under {'.'.join(report.wrapper)}" if report.wrapper else ""
    lines = [("container", f"{report.container}, {human_size(report.size)}{wrapper}")]
    if report.prefix:
        lines.append(("prefix", report.prefix))
    if report.family:
        lines.append(("family", report.family))
    if report.scaling:
        shift = report.scaling["shift_factor"]
        text = f"{report.scaling['scaling_factor']:g}"
        text += "" if shift is None else f", shift factor {shift:g}"
        lines.append(("scaling factor", f"{text} ({report.scaling['from']})"))
    lines.append(("EMA", _ema_line(report)))
    lines.append(("NaN, infinity", _nonfinite_line(report)))
    if report.config:
        lines += _config_lines(report.config)
    if report.metadata:
        lines.append(("metadata", _named(sorted(report.metadata))))
    return lines + [("sha256", digest) for digest in report.sha256]


def _dtypes(report: Inspection) -> str:
    """Name the element types, and how many tensors have each where they are several."""
    labels = {BY_CODE[code].label: count for code, count in report.dtypes.items()}
    if len(labels) == 1:
        return next(iter(labels))
    return ", ".join(f"{label} ({plural(count, 'tensor')})" for label, count in labels.items())


def _details(report: Inspection) -> list[tuple[str, str]]:
    """Show what a header says, as much of it as a terminal takes."""
    shown = sorted(report.metadata.items())[:_SHOWN_ENTRIES]
    lines = [("", f"{_start_of(key)}: {_start_of(text)}") for key, text in shown]
    more = len(report.metadata) - len(lines)
    return [*lines, ("", f"{more} more; --json has all")] if more else lines


def _start_of(text: str, limit: int = _SHOWN_TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


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
        ("latent channels", f"{config['latent_channels']}"),
        ("block widths", " ".join(map(str, config["block_out_channels"]))),
        ("layers per block", str(config["layers_per_block"])),
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
        return "not checked"
    return ", ".join(report.nonfinite[:5]) or "none"
