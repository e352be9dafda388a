"""JSON as every reader takes it: no NaN, no infinity, and text of any name."""

from __future__ import annotations

import json
import math
from typing import Any


def dump_json(
    document: Any, *, indent: int | None = 2, sort_keys: bool = False, ascii: bool = True
) -> str:
    """Write a document as JSON.

    A number that is not finite becomes null, as JSON has no word for it; where a reader should know
    which it was, the document says so in another way, such as the text ``inf`` of a PSNR.

    Args:
        document: What ``json`` can write.
        indent: Spaces a level; None for one line.
        sort_keys: Whether keys come in their order.
        ascii: Whether letters beyond ASCII are escaped. Halves of pairs, which names of files may
            hold where they are not UTF-8, always are.
    """
    how: dict[str, Any] = {"indent": indent, "sort_keys": sort_keys, "ensure_ascii": ascii}
    try:
        text = json.dumps(document, allow_nan=False, **how)
    except ValueError:
        text = json.dumps(_finite(document), allow_nan=False, **how)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    """Put None in the place of numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
