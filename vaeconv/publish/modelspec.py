"""ModelSpec entries of a safetensors header (https://github.com/Stability-AI/ModelSpec, 1.0.1).

Interfaces for images show a model by them. The hash of the tensors, which the specification asks
for where it can be had, is left out: it would have to be known before the first byte is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from vaeconv.autoencoder.families import Family
from vaeconv.autoencoder.topology import Layout
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.source_date import source_date

_VERSION = "1.0.1"
_PART = "vae"  # what the specification calls this component of a model
_UNKNOWN = "latent-diffusion"  # of an autoencoder of no published family
# The codebase whose names the tensors have.
_IMPLEMENTATIONS: Mapping[Layout, str] = {
    Layout.DIFFUSERS: "diffusers",
    Layout.COMPVIS: "https://github.com/CompVis/latent-diffusion",
}


def modelspec(meta: CardMeta, title: str, family: Family | None, layout: Layout) -> dict[str, str]:
    """Make the entries.

    Args:
        meta: What people know of the model.
        title: Its title.
        family: The family that it belongs to.
        layout: Of the file.

    Raises:
        UsageError: ``SOURCE_DATE_EPOCH`` is no date.
    """
    date = source_date()
    base = (family.modelspec if family else "") or _UNKNOWN
    entries = {
        "sai_model_spec": _VERSION,
        "architecture": f"{base}/{_PART}",
        "implementation": _IMPLEMENTATIONS[layout],
        "title": title,
        "description": meta.summary.strip(),
        "author": meta.repo_id.partition("/")[0],
        "license": meta.license,
        "tags": ",".join(meta.tags),
        "date": date.date().isoformat() if date else "",
    }
    return {f"modelspec.{key}": text for key, text in entries.items() if text}
