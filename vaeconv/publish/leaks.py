"""What a release must not tell: access tokens, keys, and folders of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vaeconv.publish.places import places_in

_SECRETS = {
    "an access token of the Hub": r"\b(?:hf_(?:oauth_|jwt_)?|api_org_)[A-Za-z0-9]{30,}",
    "an access token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50})",
    "an access key of AWS": r"\bAKIA[0-9A-Z]{16}\b",
    "a secret key of an API": r"\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{40}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_PATTERNS = {what: re.compile(pattern) for what, pattern in _SECRETS.items()}
_MAX = 16 << 20  # bytes of a file that people or programs write as text
_HEAD = 8192


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
            yield f"{path} holds what looks like {what}: take it out, and revoke it"
    if local.suffix == ".safetensors":
        return  # its header is not written by people
    told = _told_places(text, places)
    if told:
        yield (
            f"{path} names a folder of this machine, {told[0]}: "
            + (
                "write it anew, or take the folders out"
                if path.endswith((".json", ".html", ".xml"))
                else "take it out"
            )
        )


def _read_text(local: Path) -> str:
    """Read a file where it is text, and of safetensors the header."""
    with local.open("rb") as file:
        if local.suffix == ".safetensors":
            size = int.from_bytes(file.read(8), "little")
            data = file.read(min(size, _MAX))
        else:
            data = file.read(_HEAD)
            if b"\0" in data:
                return ""
            data += file.read(_MAX)
    return data.decode("utf-8", "replace")


def _told_places(text: str, places: Sequence[str]) -> list[str]:
    """Find folders of this machine: in reports of ours any path, elsewhere those that are known."""
    if text.startswith("{"):
        try:
            document: Any = json.loads(text)
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
