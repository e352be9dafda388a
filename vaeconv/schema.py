"""TOML files as dataclasses: closed lists of typed keys, with a suggestion for a typo."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vaeconv.errors import UsageError

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


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: It cannot be read, or is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        document: dict[str, Any] = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(f"not a TOML file ({error})", where=str(path)) from error
    return document


def build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass of a table, and of tables in it.

    Args:
        kind: A dataclass, whose fields have defaults or must be given.
        table: What the file says.
        where: The file and the table, for messages.

    Raises:
        UsageError: A key is unknown, of another type, or missing.
    """
    hints = get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            meant = get_close_matches(key, known, 1)
            hint = f"did you mean {meant[0]}?" if meant else f"known: {', '.join(known)}"
            raise UsageError(f"unknown key {key}", where=where, hint=hint)
        found[key] = _value(hints[key], value, f"{where}: {key}")
    try:
        return kind(**found)
    except UsageError as error:
        raise UsageError(error.what, where=error.where or where, hint=error.hint) from error
    except TypeError as error:
        missing = [name for name in known if name not in found and _is_required(known[name])]
        raise UsageError(f"{', '.join(missing)} must be given", where=where) from error


def _is_required(one: Any) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _value(hint: Any, value: Any, where: str) -> Any:
    choices = [one for one in get_args(hint) if one is not NoneType]
    if len(choices) == 1 and NoneType in get_args(hint):
        (hint,) = choices
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, dict):
            raise UsageError("is a table", where=where)
        return build(hint, value, where)
    kind = get_origin(hint) or hint
    types, said = _KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind in (int, float)):
        raise UsageError(f"is {said}", where=where)
    if isinstance(value, list):
        if not all(isinstance(one, str) for one in value):
            raise UsageError(f"is {said}", where=where)
        return tuple(value)
    return float(value) if isinstance(value, int) and kind is float else value
