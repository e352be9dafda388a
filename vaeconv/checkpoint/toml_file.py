"""TOML files as dataclasses: closed lists of typed keys, with a suggestion for a typo."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vaeconv.checkpoint.text_file import read_text_file
from vaeconv.errors import UsageError, VaeconvError, raise_all

T = TypeVar("T")
# What TOML may have for a field, and how that is called in a message.
_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    tuple: ((list,), "a list of texts"),
    Mapping: ((dict,), "a table"),
}
_MAX_BITS = 63  # of a whole number, as TOML has them
_MOST_HINTS = 20  # that guess at a key; each costs time
# Of a line without blanks around it.
_HEADER = re.compile(r"\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?")
_ENTRY = re.compile(r"([A-Za-z0-9_\-.\"' \t]+)=")
_QUOTES = re.compile(r'"""|' + "'''")


class TomlTable(dict[str, Any]):
    """A TOML file that was read.

    Attributes:
        text: What it was read from.
    """

    text = ""


def read_toml(path: Path) -> TomlTable:
    """Read a TOML file; a byte order mark in front is no part of it.

    Raises:
        UsageError: It cannot be read, or is no TOML.
    """
    try:
        text = read_text_file(path)
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        document = TomlTable(tomllib.loads(text))
    except VaeconvError as error:
        raise UsageError(error.what, where=error.where, hint=error.hint) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not a TOML file ({error})", where=str(path)) from error
    document.text = text
    return document


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """List keys and tables with their lines; the text was parsed, so it is TOML."""
    table: tuple[str, ...] = ()
    closing = ""  # of a text over several lines, inside of which nothing is a key
    for number, line in enumerate(text.splitlines(), 1):
        is_inside = bool(closing)
        for quotes in _QUOTES.findall(line):
            if closing in ("", quotes):
                closing = "" if closing else quotes
        if is_inside:
            continue
        header, entry = _HEADER.fullmatch(line.strip()), _ENTRY.match(line.strip())
        if header:
            table = _names(header[1])
            yield table, number
        elif entry:
            yield (*table, *_names(entry[1])), number


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(name.strip().strip("\"'") for name in dotted.split("."))


def build(
    kind: type[T],
    table: Mapping[str, Any],
    where: str,
    problems: list[VaeconvError] | None = None,
) -> T:
    """Make a dataclass of a table, and of tables in it.

    Args:
        kind: A dataclass, whose fields have defaults or must be given.
        table: What the file says; one that was read knows the lines of its keys.
        where: The file and the table, for messages.
        problems: Where what is wrong is added, if something can be made without it: inner tables
            with a problem are as if they were not there. None to raise it.

    Raises:
        UsageError: Keys are unknown, of another type, or missing; all of them are named.
    """
    builder = _Builder(where, getattr(table, "text", ""))
    found = builder.build(kind, table, ())
    if found is None or problems is None:
        raise_all(builder.problems, where=where)
    assert found is not None
    problems = [] if problems is None else problems
    problems += builder.problems
    return found


class _Builder:
    """Builds, and notes what is wrong on the way."""

    def __init__(self, where: str, text: str) -> None:
        self.problems: list[VaeconvError] = []
        self._where = where
        self._lines = dict(_lines(text))

    def _note(
        self, what: str, table: Sequence[str], key: str = "", hint: str | None = None
    ) -> None:
        place = (*table, key)
        while place and place not in self._lines:  # the table stands for a key without a line
            place = place[:-1]
        line = f":{self._lines[place]}" if place else ""
        where = ": ".join([self._where + line, *table])
        self.problems.append(UsageError(what, where=where, hint=hint))

    def build(self, kind: type[T], table: Mapping[str, Any], keys: tuple[str, ...]) -> T | None:
        hints = get_type_hints(kind)
        known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
        found: dict[str, Any] = {}
        meant: set[str] = set()  # a key that is spelt wrong is not missing as well
        before = len(self.problems)
        for key, value in table.items():
            if key not in known:
                is_guessed = len(self.problems) < _MOST_HINTS
                near = get_close_matches(key, known, 1) if is_guessed else []
                meant.update(near)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                self._note(f"unknown key {key}", keys, key, hint)
            else:
                found[key] = self._value(hints[key], value, (*keys, key))
        absent = known.keys() - found.keys() - meant
        missing = [name for name in known if name in absent and _is_required(known[name])]
        if missing:
            self._note(f"{', '.join(missing)} must be given", keys)
        if len(self.problems) > before:
            sound = {name: one for name, one in found.items() if is_dataclass(one)}
            required = {name for name in known if _is_required(known[name])}
            # Without what is wrong, so that the rest can be looked at.
            return kind(**sound) if sound.keys() >= required and not keys else None
        try:
            return kind(**found)
        except UsageError as error:
            for what in error.details or (error.text,):
                self._note(what, keys, what.split()[0])
            return None

    def _value(self, hint: Any, value: Any, keys: tuple[str, ...]) -> Any:
        choices = [one for one in get_args(hint) if one is not NoneType]
        if len(choices) == 1 and NoneType in get_args(hint):
            (hint,) = choices
        if isinstance(hint, type) and is_dataclass(hint):
            if isinstance(value, dict):
                return self.build(hint, value, keys)
            return self._note("must be a table", keys)
        kind = get_origin(hint) or hint
        types, said = _KINDS[kind]
        if not isinstance(value, types) or (isinstance(value, bool) and kind in (int, float)):
            return self._note(f"must be {said}", keys)
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            return self._note(f"must be {said}, and is too large", keys)
        if isinstance(value, list):
            if not all(isinstance(one, str) for one in value):
                return self._note(f"must be {said}", keys)
            return tuple(value)
        if kind is float:
            number = float(str(value))
            if not math.isfinite(number):
                return self._note(f"must be {said}, and is {number}", keys)
            return number
        return value


def _is_required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING
