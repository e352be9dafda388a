"""Folders of this machine, taken out of what is published: of a path its name is left."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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
