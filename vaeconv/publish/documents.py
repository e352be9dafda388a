"""Readers of what the other commands wrote: reports, manifests, weights in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.checkpoint.readers.folder import STEM
from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.errors import InputError
from vaeconv.weights.manifest import MANIFEST, MAX_MANIFEST

MAX_REPORT = 64 << 20
"""Bytes; an evaluation has some 200 for each image of each model."""


def read_document(path: Path, command: str) -> dict[str, Any]:
    """Read the report of another command.

    Raises:
        InputError: It is not one.
    """
    try:
        document = json.loads(read_text_file(path, MAX_REPORT))
        found = document["command"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"not a report of vaeconv {command} ({error})", where=str(path)) from error
    if found != command:
        raise InputError(f"a report of vaeconv {found}, not of {command}", where=str(path))
    return dict(document)


class ParityReport(NamedTuple):
    """A report of ``vaeconv verify``, as far as it decides what may be published.

    Attributes:
        sha256s: Of all files that were compared.
        problems: Why it failed; empty where it passed.
        has_decoded: Whether images were decoded, and not weights compared only.
        unproven: What it could not prove.
    """

    sha256s: frozenset[str]
    problems: tuple[str, ...]
    has_decoded: bool
    unproven: tuple[str, ...]


def read_parity(path: Path) -> ParityReport:
    """Read a parity report.

    Raises:
        InputError: It is not one.
    """
    report = read_document(path, "verify")
    try:
        sha256s = frozenset(one["sha256"] for side in report["sides"] for one in side["files"])
        unproven = report.get("unproven")
        is_ok = report["ok"]
        return ParityReport(
            sha256s,
            () if is_ok else tuple(report["problems"] or ["the verification failed"]),
            is_ok and any(report[key] and report[key]["decoded"] for key in ("same", "drop_in")),
            tuple(unproven) if isinstance(unproven, list) else (),
        )
    except (KeyError, TypeError) as error:
        raise InputError(str(error)) from error


def parity_reports(folder: Path) -> list[Path]:
    """Find the parity reports in a release."""
    return sorted(folder.glob("parity*.json"))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read what ``convert`` and ``prune`` wrote beside the weights; None where there is nothing."""
    paths = [folder / MANIFEST] if (folder / MANIFEST).is_file() else []
    paths += sorted(folder.glob(f"*.{MANIFEST}"))  # of single files
    found: dict[str, Any] | None = None
    for path in paths:
        try:
            manifest = json.loads(read_text_file(path, MAX_MANIFEST))
            outputs, _ = manifest["outputs"], manifest["source"]["name"]
            others = manifest.get("others", {})
            entries = [*outputs.values(), *others.values()]
            if not all(isinstance(entry, dict) for entry in entries):
                raise TypeError("the description of a file in it is not a table")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"not a manifest ({error})", where=str(path)) from error
        found = {**manifest, "outputs": {**(found or manifest)["outputs"], **outputs}}
    return found


def variants_of(folder: Path) -> list[str | None]:
    """List the variants of the weights in a folder; None is the plain one."""
    found: dict[str | None, None] = {}
    for path in sorted(folder.glob(f"{STEM}*.safetensors")):
        middle = path.name[len(STEM) : -len(".safetensors")].strip(".").split("-")[0]
        found[middle or None] = None
    return sorted(found, key=lambda variant: variant or "")
