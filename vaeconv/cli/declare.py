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
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer

from vaeconv.common.option_docs import Doc
from vaeconv.errors import UsageError, VaeconvError, raise_all

_EMPTY = inspect.Parameter.empty
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

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of an option on the command line."""
        flag = f"--{self.name.replace('_', '-')}"
        is_on = self.kind is bool and self.default
        return self.doc.flags or (f"{flag}/--no-{flag[2:]}" if is_on else flag,)


def declare(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function.

    Example:
        >>> class Options(NamedTuple):
        ...     limit: Annotated[int | None, Doc("Use only the first N images.", "N")] = None
        >>> def show(folder: Annotated[str, Doc("Folder to show.", "DIR")], options: Options): ...
        >>> str(list(declare(show).__signature__.parameters))
        "['folder', 'limit']"
    """
    found: dict[str, Field] = {}
    for field in documented(function):
        found.setdefault(field.name, field)

    def command(**values: Any) -> None:
        _call(function, {name: _parsed(found[name], value) for name, value in values.items()})

    command.__doc__, command.__name__ = function.__doc__, function.__name__
    command.__annotations__ = {}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_parameter(field) for field in found.values()]
    )
    return command


def documented(target: Callable[..., Any]) -> Iterator[Field]:
    """List what has a ``Doc`` of a function or class, and of the classes of options in it."""
    for part in _parts(target).values():
        yield from [part] if isinstance(part, Field) else documented(part)


@cache
def _parts(target: Callable[..., Any]) -> dict[str, Field | type]:
    """List the parameters that are options, or classes of options."""
    hints = get_type_hints(target, include_extras=True)
    parts: dict[str, Field | type] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        hint = hints[name]
        if get_origin(hint) is Annotated:
            kind, *extras = get_args(hint)
            if get_origin(kind) in (Union, UnionType):
                kinds = [one for one in get_args(kind) if one is not NoneType]
                kind = kinds[0] if len(kinds) == 1 else str  # a path that may be text is text here
            for doc in extras:
                if isinstance(doc, Doc):
                    parts[name] = Field(name, kind, doc, parameter.default)
        elif is_dataclass(hint) or hasattr(hint, "_fields"):
            parts[name] = hint
    return parts


def _call(target: Callable[..., Any], made: Mapping[str, Any]) -> Any:
    """Call a function, or make an object of options, with the values that its parameters have."""
    values: dict[str, Any] = {}
    problems: list[VaeconvError] = []
    for name, part in _parts(target).items():
        try:
            values[name] = made[name] if isinstance(part, Field) else _call(part, made)
        except UsageError as error:  # the default stands in for it, so that others are found too
            problems.append(error)
    if not isinstance(target, type):
        raise_all(problems)
        return target(**values)
    try:
        result = target(**values)
    except UsageError as error:
        flags = {
            field.name: field.flags[0].strip(" /").partition("/")[0] for field in documented(target)
        }
        error.what, *details = (
            _FIRST_WORD.sub(lambda word: flags.get(word[0], word[0]), text)
            for text in (error.what, *error.details)
        )
        error.details = tuple(details)
        problems.append(error)
    raise_all(problems)
    return result


def _parsed(field: Field, value: Any) -> Any:
    if field.doc.parse and (field.is_many or value is not None):
        return field.doc.parse(value or () if field.is_many else value)
    return (get_origin(field.kind) or tuple)(value or ()) if field.is_many else value


def _parameter(field: Field) -> inspect.Parameter:
    """Describe an option or argument as Typer wants it."""
    name, kind, doc, default = field
    is_argument = doc.is_argument or (default is _EMPTY and not doc.flags)
    is_negative = bool(doc.flags) and doc.flags[0].startswith(" /")
    shown: dict[str, Any] = {
        "help": doc.help,
        "metavar": doc.metavar,
        "show_default": not (field.is_many or is_negative) and default not in (None, "", _EMPTY),
        "rich_help_panel": doc.panel,
        "min": doc.least,
    }
    if values := doc.choices or doc.suggested:
        shown["autocompletion"] = lambda: list(values)
    if field.is_many:
        kind = list[_typed(get_args(kind)[0])]  # type: ignore[misc]
        default = _EMPTY if default is _EMPTY else None
    elif doc.parse:  # what is typed is text
        kind, default = str, ",".join(default) if isinstance(default, tuple) else default
    else:
        kind = _typed(kind)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[
            kind | None if default is None else kind,
            typer.Argument(**shown) if is_argument else typer.Option(*field.flags, **shown),
        ],
    )


def _typed(kind: Any) -> Any:
    """Take the type that a command line can have: a path or text for what may be either."""
    if isinstance(kind, type) and (kind in (str, int, float, bool, Path) or issubclass(kind, Enum)):
        return kind
    return kind if get_origin(kind) is tuple else str
