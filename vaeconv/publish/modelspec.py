"""ModelSpec entries of a safetensors header (https://github.com/Stability-AI/ModelSpec, 1.0.1).

Interfaces for images show a model by them. The hash of the tensors, which the specification asks
for where it can be had, is left out: it would have to be known before the first byte is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone

from vaeconv.autoencoder.families import Family
from vaeconv.autoencoder.topology import Layout
from vaeconv.errors import UsageError
from vaeconv.publish.card.meta import CardMeta

_DATE = "SOURCE_DATE_EPOCH"
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


def source_date() -> datetime | None:
    """Read the one date that may stand in what is published: ``SOURCE_DATE_EPOCH``.

    See https://reproducible-builds.org/specs/source-date-epoch/.

    Returns:
        The time in UTC; None where it is not set. The clock is never asked: the same inputs give
        the same bytes.

    Raises:
        UsageError: It is not a number of seconds.
    """
    text = os.environ.get(_DATE, "")
    if not text:
        return None
    try:
        if not re.fullmatch(r"[0-9]+", text):  # int() takes more, such as 1_000
            raise ValueError
        return datetime.fromtimestamp(int(text), timezone.utc)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{_DATE} is not a number of seconds since 1970: {text!r}") from error
