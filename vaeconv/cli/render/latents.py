"""Encoded images, as text and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vaeconv.common.wording import human_size, plural
from vaeconv.parity.encode import Encoded


def latents_document(done: Encoded) -> dict[str, Any]:
    """Describe encoded images for machines."""
    return {
        "path": str(done.output),
        "bytes": done.output.stat().st_size,
        "names": list(done.names),
        "images": done.source,
        "left_out": [one._asdict() for one in done.left_out],
        "latent": list(done.latent),
        "device": done.device,
    }


def latents_lines(done: Encoded, *, verbose: bool) -> Iterator[str]:
    """Tell a person what was encoded."""
    shape = "x".join(map(str, done.latent))
    yield (f"encoded {plural(len(done.names), 'image')} on {done.device} to latents of {shape}")
    if verbose:
        yield from (f"  {name}" for name in done.names)
    yield f"wrote {done.output} ({human_size(done.output.stat().st_size)})"
