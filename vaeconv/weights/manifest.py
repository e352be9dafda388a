"""``vaeconv.json``: where the files beside it come from, and what each of them is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vaeconv._version import __version__
from vaeconv.checkpoint.readers.folder import CONFIG, STEM
from vaeconv.checkpoint.source import FileSource, hash_bytes
from vaeconv.common.json_text import dump_json
from vaeconv.common.notes import Note, note, warning
from vaeconv.errors import listed

MANIFEST = "vaeconv.json"
MAX_MANIFEST = 64 << 20
"""Bytes; one has some 300 for each file."""
_VERSION = 1
_WEIGHTS = (STEM, "diffusion_flax_model")  # beginnings of names under which diffusers has weights


def source_name(folder: Path) -> str | None:
    """Read which file a folder was made from; None where nothing says so."""
    try:
        name = json.loads((folder / MANIFEST).read_bytes())["source"]["name"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


class Kept(NamedTuple):
    """Files that stay in a folder that is written to.

    Attributes:
        same: What the manifest says of weights of the same source, such as another variant.
        others: What is known of weights that are not: where they came from, if that is known.
        rest: Names of files that hold no weights, such as a README.
    """

    same: Mapping[str, Any] = MappingProxyType({})
    others: Mapping[str, Any] = MappingProxyType({})
    rest: tuple[str, ...] = ()


def kept_files(
    target: Path, replaced: Collection[str], source: Mapping[str, Any], *, check: bool
) -> Kept:
    """Account for files that are there already and stay; none of them is claimed unproved.

    A file is of the same source where the earlier manifest lists it, its bytes are still those,
    and that source held the same weights.

    Args:
        target: The folder; it need not exist.
        replaced: Names of files that are written now, or removed.
        source: What the manifest will say of the source of what is written.
        check: Whether to hash the files.
    """
    if not target.is_dir():
        return Kept()
    known, came_from = _read_earlier(target)
    same, others, rest = {}, {}, []
    for path in sorted(target.iterdir()):
        name = path.name
        if name in replaced or name == MANIFEST:
            continue
        entry = known.get(name)
        if not path.is_file() or not (entry or name.startswith(_WEIGHTS)):
            rest.append(name)
        elif entry and _is_unchanged(path, entry, check=check):
            own = entry.get("source", came_from)
            if check and _is_same(own, source):
                same[name] = {key: entry[key] for key in entry if key != "source"}
            else:
                others[name] = {**entry, "source": own}
        else:
            others[name] = {"size": path.stat().st_size, "source": None}
    return Kept(same, others, tuple(rest))


def remove_outputs(target: Path, kept: Collection[str]) -> None:
    """Remove weights that a manifest lists as its own, as long as nobody changed them.

    Args:
        target: The folder.
        kept: Names of files that stay.
    """
    for name, entry in _read_earlier(target)[0].items():
        path = target / name
        is_own = name.startswith(_WEIGHTS) and "source" not in entry and name not in kept
        if is_own and path.is_file() and _is_unchanged(path, entry, check=True):
            path.unlink()


def _read_earlier(target: Path) -> tuple[dict[str, Any], Any]:
    try:
        document = json.loads((target / MANIFEST).read_bytes())
        entries = {**document["outputs"], **document.get("others", {})}
        found = {name: dict(entry) for name, entry in entries.items()}
        return found, document["source"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}, None


def _is_unchanged(path: Path, entry: Mapping[str, Any], *, check: bool) -> bool:
    if path.stat().st_size != entry.get("size"):
        return False
    if not check or entry.get("sha256") is None:
        return True
    with closing(FileSource(path)) as source:
        return bool(hash_bytes(source) == entry["sha256"])


def _is_same(one: Any, other: Mapping[str, Any]) -> bool:
    return isinstance(one, dict) and any(
        one.get(key) is not None and one.get(key) == other.get(key)
        for key in ("fingerprint", "sha256")
    )


def kept_notes(target: Path, kept: Kept, removed: Collection[str]) -> list[Note]:
    """Say which files stay in a folder without being of what was written, and which went."""
    notes = []
    if removed:
        notes.append(
            note(
                f"removed from {target}: {listed(sorted(removed), 5)}, weights of the same variant "
                "that an earlier run wrote"
            )
        )
    for name, entry in kept.others.items():
        source = entry["source"]
        known = isinstance(source, dict) and source.get("name")
        made = f"was made from {source['name']}" if known else "was not made by vaeconv"
        notes.append(
            warning(
                f"{target} keeps {name}, which {made}; {CONFIG} beside it now belongs to the new "
                "weights"
            )
        )
    if kept.rest:
        notes.append(note(f"{target} keeps {listed(kept.rest, 5)}"))
    return notes


def dump_manifest(
    facts: Mapping[str, Any], outputs: Mapping[str, Any], others: Mapping[str, Any] | None = None
) -> bytes:
    """Write a manifest: the same facts give the same bytes.

    Args:
        facts: What is to be said of the source and the plan.
        outputs: Of each file, by its name: size, sha256, dtype.
        others: The same of weights beside them that came from elsewhere, and from where.
    """
    document = {
        "schema_version": _VERSION,
        "vaeconv_version": __version__,
        **facts,
        "outputs": outputs,
        **({"others": others} if others else {}),
    }
    return (dump_json(document, sort_keys=True, ascii=False) + "\n").encode()
