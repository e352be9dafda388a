"""A conversion as text and as a document, and what it has in common with a pruning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vaeconv.cli.screen import Line, Style, Styled
from vaeconv.common.wording import human_size

if TYPE_CHECKING:
    from vaeconv.weights.convert import Conversion
    from vaeconv.weights.plan import Row
    from vaeconv.weights.prune import Pruning


def conversion_document(result: Conversion) -> dict[str, Any]:
    """Describe a conversion for machines."""
    family = result.decision.family if result.decision else None
    document: dict[str, Any] = {
        "dry_run": not result.written,
        "source": {"name": result.source, "container": result.container,
                   "layout": result.source_layout.value},
        **output_document(result),
        "dropped": result.plan.drop_counts(),
        **config_document(result),
        "scaling_from": result.decision.scaling.source if result.decision else None,
        "family": family.name if family else None,
        **files_document(result),
    }  # fmt: skip
    if not result.written:
        document["rows"] = [row_document(row) for row in result.plan.rows]
    return document


def output_document(result: Conversion | Pruning) -> dict[str, Any]:
    """Describe what is written, and how much of it is of the EMA."""
    ema, raw = result.plan.ema_counts
    return {
        "output": {"path": str(result.output), "layout": result.layout and result.layout.value,
                   "tensors": len(result.plan.rows), "bytes": result.plan.nbytes},
        "ema": {"ema": ema, "raw": raw},
    }  # fmt: skip


def config_document(result: Conversion | Pruning) -> dict[str, Any]:
    """Give the config and the header's entries."""
    return {"config": result.config, "metadata": dict(sorted(result.metadata.items()))}


def files_document(result: Conversion | Pruning) -> dict[str, Any]:
    """List the files that were written, and notes."""
    files = [{"path": str(w.path), "size": w.size, "sha256": w.sha256} for w in result.written]
    return {"files": files, "notes": [str(note) for note in result.plan.notes]}


def row_document(row: Row) -> dict[str, Any]:
    """Describe which tensor becomes which."""
    return {
        "name": row.name, "source": row.source.name, "shape": list(row.shape),
        "dtype": row.dtype.code, "cast_from": row.source.dtype.code if row.is_cast else None,
    }  # fmt: skip


def conversion_lines(result: Conversion, *, seconds: float, verbose: bool) -> Iterator[Line]:
    """Tell a person what was converted, or would be."""
    first, *rest = result.lines()
    yield Styled(first, Style.STRONG, first.index(f" {result.source}"))
    yield from rest
    if result.written:
        yield f"  in {seconds:.2f} s"
    yield from row_lines(result, verbose=verbose)


def row_lines(result: Conversion | Pruning, *, verbose: bool) -> Iterator[str]:
    """Say which tensor becomes which, and name the files; a hash is long, and has a line."""
    for row in result.plan.rows if verbose else ():
        cast = f" {row.source.dtype.label} -> {row.dtype.label}" if row.is_cast else ""
        yield f"  {row.name} <- {row.source.name}{cast}"
    if not (verbose or result.written):
        yield "  --verbose lists every tensor"
    for written in result.written:
        yield f"wrote {written.path} ({human_size(written.size)})"
        if written.sha256:
            yield f"  sha256 {written.sha256}"
