"""``vaeconv.json``: where the files beside it come from, and what each of them is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaeconv._version import __version__

MANIFEST = "vaeconv.json"
_VERSION = 1


def source_name(folder: Path) -> str | None:
    """Read which file a folder was made from; None where nothing says so."""
    try:
        name = json.loads((folder / MANIFEST).read_bytes())["source"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None


def kept_entries(target: Path, replaced: set[str]) -> dict[str, Any]:
    """Take over what an earlier manifest says of files that stay, such as another variant."""
    try:
        outputs = json.loads((target / MANIFEST).read_bytes())["outputs"]
        return {
            name: entry
            for name, entry in outputs.items()
            if name not in replaced and (target / name).is_file()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def dump_manifest(facts: Mapping[str, Any], outputs: Mapping[str, Any]) -> bytes:
    """Write a manifest: the same facts give the same bytes.

    Args:
        facts: What is to be said of the source and the plan.
        outputs: Of each file, by its name: size, sha256, dtype.
    """
    document = {
        "schema_version": _VERSION,
        "vaeconv_version": __version__,
        **facts,
        "outputs": outputs,
    }
    return (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
