"""Numbers in words."""

from __future__ import annotations


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
