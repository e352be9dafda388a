"""A conversion as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vaeconv.cli.output import human_size

if TYPE_CHECKING:
    from vaeconv.conversion import Conversion


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
