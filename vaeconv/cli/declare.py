"""Commands from functions: the options that their dataclasses declare become the command's own.

A parameter of a command's function is one of three: ``Annotated[T, Doc(...)]`` without a default is
an argument, with one it is an option, and a class whose fields are such is an object that is made
of its fields' options. A field that is a class of options itself is taken apart as well; one that
has no ``Doc``, such as a callback, keeps its default.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer

from vaeconv.common.option_docs import Doc
from vaeconv.errors import UsageError

_FIRST_WORD = re.compile(r"^\w+")


class Field(NamedTuple):
    """One option or argument.

    Attributes:
        name: Of the field or parameter.
        kind: The type of its value, without None.
        doc: What there is to say of it.
        default: Its default; ``inspect.Parameter.empty`` for an argument that must be given.
    """

    name: str
    kind: Any
    doc: Doc
    default: Any

    @property
    def is_many(self) -> bool:
        """Tell if an option is repeatable; a tuple of fixed length or of a list is not."""
        if get_origin(self.kind) is tuple:
            return Ellipsis in get_args(self.kind) and self.doc.parse is None
        return get_origin(self.kind) in (frozenset, list, Mapping)


def declare(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function.

    Example:
        >>> class Options(NamedTuple):
        ...     limit: Annotated[int | None, Doc("Use only the first N images.", "N")] = None
        >>> def show(folder: Annotated[str, Doc("Folder to show.", "DIR")], options: Options): ...
        >>> str(list(declare(show).__signature__.parameters))
        "['folder', 'limit']"
    """
    hints = get_type_hints(function, include_extras=True)
    given = inspect.signature(function).parameters
    parts = {
        name: _field(name, hints[name], parameter.default) or hints[name]
        for name, parameter in given.items()
    }
    found: dict[str, Field] = {}
    for part in parts.values():
        for field in [part] if isinstance(part, Field) else documented(part):
            found.setdefault(field.name, field)

    def command(**values: Any) -> None:
        made = {name: _parsed(found[name], value) for name, value in values.items()}
        function(
            **{
                name: made[name] if isinstance(part, Field) else _build(part, made)
                for name, part in parts.items()
            }
        )

    command.__doc__, command.__name__ = function.__doc__, function.__name__
    command.__annotations__ = {}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(field) for field in found.values()]
    )
    return command


def documented(kind: Any) -> Iterator[Field]:
    """List the fields of a class of options that have a ``Doc``, and those of the classes in it."""
    hints = get_type_hints(kind, include_extras=True)
    for name, default in _defaults(kind).items():
        field = _field(name, hints[name], default)
        if field:
            yield field
        elif _is_options(hints[name]):
            yield from documented(hints[name])


def _defaults(kind: Any) -> dict[str, Any]:
    if not is_dataclass(kind):
        return {name: kind._field_defaults.get(name, MISSING) for name in kind._fields}
    return {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(kind)
    }


def _is_options(kind: Any) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_field_defaults"))


def _field(name: str, hint: Any, default: Any) -> Field | None:
    if get_origin(hint) is not Annotated:
        return None
    kind, *extras = get_args(hint)
    doc = next((one for one in reversed(extras) if isinstance(one, Doc)), None)
    if doc is None:
        return None
    if get_origin(kind) in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        kind = kinds[0] if len(kinds) == 1 else str  # a path that may be text is text here
    return Field(name, kind, doc, inspect.Parameter.empty if default is MISSING else default)


def _build(kind: Any, made: Mapping[str, Any]) -> Any:
    """Make an object of options from the values that its fields have."""
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for name, default in _defaults(kind).items():
        if _field(name, hints[name], default):
            values[name] = made[name]
        elif _is_options(hints[name]):
            values[name] = _build(hints[name], made)
    try:
        return kind(**values)
    except UsageError as error:
        flags = {field.name: _first_flag(field) for field in documented(kind)}
        error.what, *details = (
            _FIRST_WORD.sub(lambda word: flags.get(word[0], word[0]), text)
            for text in (error.what, *error.details)
        )
        error.details = tuple(details)
        raise


def _first_flag(field: Field) -> str:
    flags = field.doc.flags or (_flag(field),)
    return flags[0].strip(" /").partition("/")[0].strip()


def _parsed(field: Field, value: Any) -> Any:
    if field.is_many:
        value = value or ()
        if field.doc.parse:
            return field.doc.parse(value)
        return (get_origin(field.kind) or tuple)(value)
    return field.doc.parse(value) if field.doc.parse and value is not None else value


def _parameter(field: Field) -> inspect.Parameter:
    """Describe an option or argument as Typer wants it."""
    name, kind, doc, default = field
    is_argument = doc.is_argument or (default is inspect.Parameter.empty and not doc.flags)
    is_negative = bool(doc.flags) and doc.flags[0].startswith(" /")
    shown: dict[str, Any] = {
        "help": doc.help,
        "metavar": doc.metavar,
        "show_default": not (field.is_many or is_negative)
        and default not in (None, "", inspect.Parameter.empty),
        "rich_help_panel": doc.panel,
        "min": doc.least,
    }
    if values := doc.choices or doc.suggested:
        shown["autocompletion"] = lambda: list(values)
    if field.is_many:
        default = inspect.Parameter.empty if default is inspect.Parameter.empty else None
        kind = list[_typed(get_args(kind)[0])] | None  # type: ignore[misc]
    else:
        kind = _typed(kind) if default is not None else _typed(kind) | None
    if doc.parse and not field.is_many:  # what is typed is text
        kind = str if default is not None else str | None
    if doc.parse and isinstance(default, tuple):
        default = ",".join(default)
    flags = doc.flags or (_flag(field),)
    info = typer.Argument(**shown) if is_argument else typer.Option(*flags, **shown)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, info],
    )


def _flag(field: Field) -> str:
    flag = f"--{field.name.replace('_', '-')}"
    return f"{flag}/--no-{flag[2:]}" if field.kind is bool and field.default else flag


def _typed(kind: Any) -> Any:
    """Take the type that a command line can have: a path or text for what may be either."""
    if isinstance(kind, type) and (kind in (str, int, float, bool, Path) or issubclass(kind, Enum)):
        return kind
    return kind if get_origin(kind) is tuple else str
