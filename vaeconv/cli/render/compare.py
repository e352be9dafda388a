"""A comparison of reconstructions, as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vaeconv.evaluation.compare import Compared

_MOST = 20  # images that are named one by one


def compare_document(done: Compared, page: Path | None, written: Sequence[Path]) -> dict[str, Any]:
    """Describe a comparison for machines.

    Args:
        done: What was compared.
        page: The HTML page.
        written: Files beside the images and their sheet.
    """
    return {
        "order": list(done.order),
        "pictures": [
            {"path": str(path), "psnr": dict(zip(done.order, found, strict=False))}
            for path, found in done.images
        ],
        "sheet": str(done.sheet) if done.sheet else None,
        "skipped": [{"name": name, "reason": why} for name, why in done.skipped],
        "left_out": [one._asdict() for one in done.left_out],
        "html": str(page) if page else None,
        "written": [str(path) for path in [*images_of(done), *written]],
    }


def images_of(done: Compared) -> list[Path]:
    """List the images that were written, the sheet last."""
    return [*(path for path, _ in done.images), *([done.sheet] if done.sheet else [])]


def compare_lines(done: Compared, written: Sequence[Path], *, verbose: bool) -> Iterator[str]:
    """Tell a person what was compared, and which files were written.

    Args:
        done: What was compared.
        written: Files beside the images and their sheet.
        verbose: Name every image, however many there are.
    """
    yield str(done)
    images = [path for path, _ in done.images]
    shown = images if verbose else images[:_MOST]
    yield from (f"wrote {path}" for path in shown)
    if len(shown) < len(images):
        yield f"wrote {len(images) - len(shown)} more there (--verbose names them)"
    yield from (f"wrote {path}" for path in [*([done.sheet] if done.sheet else []), *written])
