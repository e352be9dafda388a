"""Secrets that a release must not reveal: access tokens, keys, and folders of this machine.

Reports are written without the folders (of a path its name is left); a push looks for all three.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vaeconv.weights.output_names import KINDS, OutputKind

# Fields of reports that hold a path, and nothing else.
_FIELDS = frozenset({"path", "name", "source", "file", "folder", "images", "where"})
# Fields that people write: what stands there is meant to be read.
_WORDS = frozenset({"comment", "link", "title", "summary", "description"})
_ABSOLUTE = re.compile(r"/(?!/)|~[\w.-]*[/\\]|[A-Za-z]:[\\/]|\\\\|file:/+", re.IGNORECASE)
_SEPARATOR = re.compile(r"[\\/]+")
_URL = r"data:[^\s\"'<>)]*|(?!file:)[a-z][a-z0-9+.-]{0,31}://[^\s\"'<>]*"
_PART = r"[^\s\\/\"'`<>|:;,()\[\]{}]"
# A path in a sentence: nothing that a path or an address goes on with stands before it. One part
# below the root ("/half") may be anything.
_TOKEN = (
    rf"file:/+{_PART}*(?:[\\/]{_PART}+)*"
    rf"|(?:/(?!/)|~[\w.-]*[\\/]|[a-z]:[\\/]+|\\\\){_PART}+(?:[\\/]+{_PART}+)+"
    rf"|(?:~[\w.-]*/|[a-z]:[\\/]+){_PART}+"
)
_BEFORE, _AFTER = r"(?<![\w./\\~<%-])", r"(?![\w~%+-]|[.@](?=\w))"

_SAFETENSORS = tuple(name for name, kind in KINDS.items() if kind is OutputKind.SAFETENSORS)

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


def is_place(text: str) -> bool:
    """Tell if a text is a path of some machine: absolute, of a home folder, or a ``file://``."""
    return bool(_ABSOLUTE.match(text)) and "\n" not in text and bool(_parts(text))


def hide_places(document: Any, *, root: Path | None = None, known: Iterable[str] = ()) -> Any:
    """Leave folders of this machine out of a report that was parsed from JSON.

    A path in the root folder is left relative to it, of any other the last part is left. Addresses
    (``https://``, ``hf://``) and what people wrote (comments, titles, links) stay as they are.

    Args:
        document: What JSON can hold.
        root: A folder whose inner paths may be told.
        known: More paths of this machine, which sentences may name.
    """
    hider = _Hider(root, [*known, *_find_places(document)])
    return hider.hide(document)


def hide_places_in_text(text: str, *, root: Path | None = None, known: Iterable[str] = ()) -> str:
    """Leave folders of this machine out of a text, such as a report in HTML or Markdown.

    Paths with spaces are found where they are ``known``; see :func:`hide_places`.
    """
    return _Hider(root, known).sentence(text)


def places_in(document: Any) -> list[str]:
    """List the paths of machines that a report tells; see :func:`hide_places`."""
    hider = _Hider(None, _find_places(document))
    hider.hide(document)
    return list(dict.fromkeys(hider.found))


def _find_places(document: Any, field: str = "") -> Iterator[str]:
    """Find whole paths in the fields that hold some."""
    if isinstance(document, Mapping):
        for key, value in document.items():
            yield from _find_places(value, key)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from _find_places(value, field)
    elif isinstance(document, str) and field in _FIELDS and is_place(document):
        yield document


class _Hider:
    """Takes paths out of values and sentences."""

    def __init__(self, root: Path | None, known: Iterable[str]) -> None:
        roots = [] if root is None else [str(root.absolute()), str(root.resolve())]
        # A root folder's inner paths are all the paths there are.
        self._roots = [one for one in dict.fromkeys(roots) if _parts(one)]
        places = {one for one in known if is_place(one)} | set(self._roots)
        spellings = {spelling for one in places for spelling in (one, html.escape(one))}
        exact = "|".join(re.escape(one) for one in sorted(spellings, key=len, reverse=True))
        rest = rf"(?:[\\/]+{_PART}+)*[\\/]*"
        place = rf"(?:{exact}){_AFTER}{rest}|{_TOKEN}" if exact else _TOKEN
        self.found: list[str] = []
        self._pattern = re.compile(rf"({_URL})|{_BEFORE}({place})", re.IGNORECASE)

    def hide(self, value: Any, field: str = "") -> Any:
        """Take paths out of a value, which a field holds."""
        if isinstance(value, Mapping):
            return {key: self.hide(one, key) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(one, field) for one in value]
        if not isinstance(value, str) or field in _WORDS:
            return value
        if field in _FIELDS and is_place(value):
            return self._shorten(value)
        return self.sentence(value)

    def sentence(self, text: str) -> str:
        """Take paths out of a sentence."""
        if not any(mark in text for mark in "/\\"):
            return text
        return self._pattern.sub(lambda found: found[1] or self._shorten(found[2]), text)

    def _shorten(self, path: str) -> str:
        """Leave what may be told of a path."""
        self.found.append(path)
        if path.lower().startswith("file:"):
            path = unquote(urlsplit(path).path)
        stop = len(path.rstrip(". "))  # the end of a sentence is not the path's
        path, end = path[:stop], path[stop:]
        name = _parts(path)[-1] if _parts(path) else ""
        plain = os.path.normpath(html.unescape(path))
        for root in self._roots:
            if plain.startswith(root + os.sep):
                name = (
                    html.escape(plain[len(root) + 1 :]) if "&" in path else plain[len(root) + 1 :]
                )
                return Path(name).as_posix() + end
        return name + end


def _parts(path: str) -> list[str]:
    return [one for one in _SEPARATOR.split(path) if one]


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
        elif local.suffix in _SAFETENSORS:
            hint = "vaeconv prune --no-metadata leaves its header's entries out"
        yield f"{path} names a folder of this machine, {told[0]}: {hint}"


def _read_text(local: Path) -> str:
    """Read what there is of text in a file: of weights the header, of others all of it."""
    with local.open("rb") as file:
        if local.suffix in _SAFETENSORS:
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
