"""Find what a release must not reveal: access tokens, keys, and folders of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vaeconv.publish.places import places_in
from vaeconv.weights.output_names import KINDS, OutputKind

SAFETENSORS = tuple(name for name, kind in KINDS.items() if kind is OutputKind.SAFETENSORS)

_SECRETS = {
    "an access token of the Hub": r"\b(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9]{30,}",
    "an access token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50})",
    "an access key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a secret key of an API": r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{40}",
    "an access token of GitLab": r"\bglpat-[A-Za-z0-9_-]{20}",
    "an access token of Slack": r"\bxox[abeprs]-[A-Za-z0-9-]{20}",
    "a key of Google": r"\bAIza[A-Za-z0-9_-]{35}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----",
}
_PATTERNS = {what: re.compile(pattern) for what, pattern in _SECRETS.items()}
_MAX = 64 << 20  # bytes that are looked at of a file, and of the header of weights
# What programs write of whoever ran them; in a card such a path may be an example.
_SUPERUSER = "root"  # whose home bears its name, at the top
_HOMES = re.compile(
    r"(?<![\w.~/-])(?:/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})[\w.-]+" rf"|/{_SUPERUSER}/\w"
)
_WRITTEN_BY_PROGRAMS = (".json", ".jsonl", ".html", ".xml", ".csv", ".log", ".txt")


def leak_problems(path: str, local: Path, places: Sequence[str]) -> Iterator[str]:
    """Name what a file tells that it must not; what the secret is, is never told.

    Args:
        path: Its path in the repository.
        local: The file.
        places: Folders of this machine that no text may name.
    """
    text = _read_text(local)
    for what, pattern in _PATTERNS.items():
        if pattern.search(text):
            yield f"{path} holds what looks like {what}: remove it, and revoke it"
    told = _told_places(text, places)
    if not told and path.endswith(_WRITTEN_BY_PROGRAMS):
        told = [found[0] for found in [_HOMES.search(text)] if found]
    if told:
        hint = "remove it"
        if path.endswith(_WRITTEN_BY_PROGRAMS):
            hint = "write it again, or remove the names of folders"
        elif local.suffix in SAFETENSORS:
            hint = "vaeconv prune --no-metadata leaves its header's entries out"
        yield f"{path} names a folder of this machine, {told[0]}: {hint}"


def _read_text(local: Path) -> str:
    """Read what there is of text in a file: of weights the header, of others all of it."""
    with local.open("rb") as file:
        if local.suffix in SAFETENSORS:
            size = int.from_bytes(file.read(8), "little")
            data = file.read(min(size, _MAX))
        elif local.suffix in KINDS:
            return ""
        else:
            data = file.read(_MAX)
    text = data.decode("utf-8", "replace")
    if "\0" in text:  # as in UTF-16 beside each letter, and in images, which hold texts as well
        text = "\n".join((text.replace("\0", " "), text.replace("\0", "")))
    return text


def _told_places(text: str, places: Sequence[str]) -> list[str]:
    """Find folders of this machine: in reports of ours any path, elsewhere those that are known."""
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        try:
            document: Any = json.loads(text.lstrip("\ufeff"))
        except (ValueError, RecursionError):
            document = None
        if isinstance(document, dict) and {"schema_version", "command"} <= document.keys():
            return places_in(document)
    return [
        place
        for place in places
        if re.search(rf"(?<![\w.~-]){re.escape(place)}(?=[/\\]|[^\w.-]|\Z)", text)
    ]


def places_of(folder: Path) -> list[str]:
    """Folders of this machine that nobody needs to know: of the user, and of the release."""
    found = [os.path.expanduser("~"), str(Path.cwd()), str(folder.absolute().parent)]  # noqa: PTH111
    # The root and what lies right below it ("/root", "/data") may be anything.
    return [one for one in dict.fromkeys(found) if len(Path(one).parts) > 2]
