"""A comparison of reconstructions, as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vaeconv.evaluate.comparing import Compared
from vaeconv.wording import plural


def compare_document(done: Compared) -> dict[str, Any]:
    """Describe a comparison for machines."""
    return {
        "order": list(done.order),
        "pictures": [
            {"path": str(path), "psnr": dict(zip(done.order, found, strict=False))}
            for path, found in done.pictures
        ],
        "sheet": str(done.sheet) if done.sheet else None,
        "skipped": [{"name": name, "reason": why} for name, why in done.skipped],
        "left_out": [one._asdict() for one in done.left_out],
    }


def compare_lines(done: Compared, place: Path, *, verbose: bool) -> Iterator[str]:
    """Tell a person what was compared."""
    order = ", ".join(done.order)
    yield f"compared {plural(len(done.pictures), 'image')}, from left to right: {order}"
    if verbose:
        yield from (f"wrote {path}" for path, _ in done.pictures)
    yield f"wrote {place}"
