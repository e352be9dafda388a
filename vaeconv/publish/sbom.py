"""A bill of materials of a release, for machines: CycloneDX 1.6 (ECMA-424), JSON.

It says which files the model is, what each was made from, and with what; everything in it comes
from the manifest, so that the same release gives the same bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vaeconv._version import __version__
from vaeconv.checkpoint.writers.atomic import replace_small_file
from vaeconv.common.json_text import dump_json
from vaeconv.errors import InputError
from vaeconv.publish.card.meta import CardMeta
from vaeconv.publish.documents import read_manifest
from vaeconv.publish.modelspec import source_date
from vaeconv.weights.manifest import MANIFEST

SBOM = "sbom.cdx.json"
_SPEC = "1.6"
_MODEL, _SOURCE = "model", "source"


def write_sbom(folder: Path, meta: CardMeta, title: str) -> Path:
    """Write the bill of materials of a release into its folder.

    Raises:
        InputError: There is no manifest to take it from.
        OutputError: It cannot be written.
        UsageError: ``SOURCE_DATE_EPOCH`` is no date.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"there is no {MANIFEST} in it, which says what it was made from",
            where=str(folder),
            hint="vaeconv convert writes one, and vaeconv prune --manifest",
        )
    target = folder / SBOM
    replace_small_file(target, make_sbom(manifest, meta, title), durable=True)
    return target


def make_sbom(manifest: Mapping[str, Any], meta: CardMeta, title: str) -> bytes:
    """Write the bill of materials of what a manifest describes.

    Raises:
        InputError: The manifest lacks what it needs.
    """
    try:
        files = [_file(name, entry) for name, entry in sorted(manifest["outputs"].items())]
        source = _source(manifest["source"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the manifest lacks {error}") from error
    names = [file["bom-ref"] for file in files]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC,
        "version": 1,
        "metadata": {
            "tools": {
                "components": [{"type": "application", "name": "vaeconv", "version": __version__}]
            },
            "component": _model(meta, title, manifest),
        },
        "components": [*files, source],
        "dependencies": [
            {"ref": _MODEL, "dependsOn": names},
            *({"ref": name, "dependsOn": [_SOURCE]} for name in names),
            {"ref": _SOURCE},
        ],
    }
    date = source_date()
    if date:
        document["metadata"]["timestamp"] = date.isoformat()
    said = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, said)}"
    return (dump_json(document, sort_keys=True, ascii=False) + "\n").encode()


def _model(meta: CardMeta, title: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": title,
        "properties": _properties(_facts(manifest)),
    }
    if meta.summary.strip():
        found["description"] = meta.summary.strip()
    if meta.license:  # the Hub's identifiers are not all those of SPDX
        found["licenses"] = [{"license": {"name": meta.license}}]
    if meta.repo_id:
        found["purl"] = f"pkg:huggingface/{quote(meta.repo_id)}"
    if meta.base_model:
        base = {
            "type": "machine-learning-model",
            "name": meta.base_model,
            "purl": f"pkg:huggingface/{quote(meta.base_model)}",
        }
        found["pedigree"] = {"ancestors": [base]}
    return found


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    scaling, ema = manifest.get("scaling") or {}, manifest.get("ema") or {}
    return {
        "family": manifest.get("family"),
        "scaling_factor": scaling.get("scaling_factor"),
        "shift_factor": scaling.get("shift_factor"),
        "scaling_from": scaling.get("from"),
        "ema_tensors": ema.get("ema"),
        "raw_tensors": ema.get("raw"),
    }


def _file(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        **_hashes(entry.get("sha256")),
        "properties": _properties({"size": entry.get("size"), "dtype": entry.get("dtype")}),
    }


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    sha256 = source.get("sha256")
    return {
        "type": "file",
        "bom-ref": _SOURCE,
        "name": source["name"],
        **(_hashes(sha256) if isinstance(sha256, str) else {}),
        "properties": _properties({"size": source.get("size")}),
    }


def _hashes(sha256: str | None) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def _properties(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"name": f"vaeconv:{name}", "value": str(value)}
        for name, value in facts.items()
        if value is not None
    ]
