"""A conversion as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vaeconv.cli.screen import Line, Style, Styled
from vaeconv.common.wording import human_size

if TYPE_CHECKING:
    from vaeconv.weights.convert import Conversion
    from vaeconv.weights.output import Written
    from vaeconv.weights.plan import Row


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
        "notes": [str(note) for note in result.plan.notes],
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
) -> Iterator[Line]:
    """Tell a person what was converted, or would be."""
    first, *rest = result.lines()
    yield Styled(first, Style.STRONG, first.index(f" {result.source}"))
    yield from rest
    if not dry_run:
        yield f"  in {seconds:.2f} s"
    if verbose:
        yield from map(row_line, result.plan.rows)
    elif dry_run:
        yield "  --verbose lists every tensor"
    for written in result.written:
        yield from written_lines(written)


def row_line(row: Row) -> str:
    """Say which tensor becomes which."""
    cast = f" {row.source.dtype.label} -> {row.dtype.label}" if row.is_cast else ""
    return f"  {row.name} <- {row.source.name}{cast}"


def written_lines(written: Written) -> Iterator[str]:
    """Name a file that was written; its hash has a line of its own, as it is long."""
    yield f"wrote {written.path} ({human_size(written.size)})"
    if written.sha256:
        yield f"  sha256 {written.sha256}"
