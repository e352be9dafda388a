"""Words for people: numbers, and names that may have been meant."""

from __future__ import annotations

import os
from pathlib import Path

_MOST_NAMES = 10_000  # of a folder, that are looked at


def plural(count: int, noun: str) -> str:
    """Say how many there are; the noun is a regular one.

    Example:
        >>> plural(1, "image"), plural(2, "image")
        ('1 image', '2 images')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_size(nbytes: int) -> str:
    """Write a number of bytes for people, in decimal units as file managers do.

    Example:
        >>> human_size(334_643_268)
        '335 MB'
    """
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def suggest_path(path: Path) -> str | None:
    """Give a hint with the name in the same folder that is most like a missing one; else None.

    Example:
        >>> suggest_path(Path("fixtures/tiny-kl.ckp"))
        'did you mean fixtures/tiny-kl.ckpt?'
    """
    from difflib import get_close_matches
    from itertools import islice

    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    except (OSError, ValueError):
        return None
    near = get_close_matches(path.name, sorted(names), 1, 0.8)
    return f"did you mean {path.with_name(near[0])}?" if near else None
