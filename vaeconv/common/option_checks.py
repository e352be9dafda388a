"""Options from Python or a file: each has the type that it is declared with, and a value in range.

The command line checks what it reads by itself; here is the same for everybody else, at once, and
always as a :class:`~vaeconv.errors.UsageError`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Set
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from vaeconv.errors import UsageError, VaeconvError, raise_all

T = TypeVar("T")
MOST_PIXELS = 16384  # of a side; a decoder needs terabytes for more
RUN_DTYPES = ("fp32", "fp16", "bf16")
CAST_DTYPES = ("keep", *RUN_DTYPES)
# What torch and safetensors call them.
_WORDS = {
    "float32": "fp32", "float": "fp32", "f32": "fp32", "float16": "fp16", "half": "fp16",
    "f16": "fp16", "bfloat16": "bf16",
}  # fmt: skip
_NAMES = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number",
    Path: "a path",
}  # fmt: skip


class Range(NamedTuple):
    """Numbers that are allowed; infinity and NaN never are.

    Attributes:
        least: The smallest.
        is_open: Whether the smallest itself is not allowed.
        most: The largest.
    """

    least: float
    is_open: bool = False
    most: float = math.inf


class Pattern(NamedTuple):
    """Texts that are allowed.

    Attributes:
        regex: Matches them whole.
        what: Says what others are not.
        hint: Says how to write one.
    """

    regex: re.Pattern[str]
    what: str
    hint: str | None = None


Device = Pattern(
    re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?"), "is not a device", "auto, cpu, cuda, cuda:N or mps"
)
# Text that a file can hold.
Text = Pattern(re.compile("[^\ud800-\udfff]*"), "is not UTF-8")
# A part of a file's name that means nothing else in a folder of weights.
Variant = Pattern(
    re.compile(
        r"(?!((|.*[-.])\d{5}-of-\d{5}|index|safetensors)\Z)[A-Za-z0-9_][\w.+-]{0,63}", re.ASCII
    ),
    "is not the name of a variant",
    "such as fp16",
)
Rule = Collection[str] | Range | Pattern


def check_fields(options: Any, **rules: Rule) -> None:
    """Check a dataclass of options: every type, and values by rules.

    A path as text, a list in place of a tuple and the like become what they stand for.

    Args:
        options: The options.
        rules: What is allowed for a field, of several values for each; None always is where the
            field may be None.

    Raises:
        UsageError: Something else is there; all that is wrong is listed.
    """
    kind: type = type(options)
    hints, documented = _declared(kind)
    rules = {**documented, **rules}
    problems: list[VaeconvError] = []
    for name, hint in hints.items():
        try:
            value = getattr(options, name)
            checked = _typed(name, value, hint)
            if checked is not value:
                object.__setattr__(options, name, checked)
            if name in rules:
                check_value(name, checked, rules[name])
        except UsageError as error:
            problems.append(error)
    raise_all(problems)


@cache
def _declared(kind: type) -> tuple[dict[str, Any], dict[str, Rule]]:
    """Take the types of a class of options, and the rules that its fields have in their ``Doc``."""
    rules: dict[str, Rule] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for doc in getattr(hint, "__metadata__", ()):
            if rule := getattr(doc, "rule", None) or getattr(doc, "choices", None):
                rules[name] = rule
            elif getattr(doc, "least", None) is not None:
                rules[name] = Range(doc.least)
    return get_type_hints(kind), rules


def options_of(kind: type[T], given: T | None) -> T:
    """Take the options of a call, or the defaults.

    Raises:
        UsageError: They are those of another function, or something else.
    """
    if given is None:
        return kind()
    if not isinstance(given, kind):
        raise UsageError(f"options is of type {type(given).__name__}; it must be {kind.__name__}")
    return given


def path_text(name: str, given: Any) -> str:
    """Take a path or an address of a call, as text.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        if isinstance(text, str):
            return text
    raise UsageError(f"{name} is of type {type(given).__name__}; it must be text or a pathlib.Path")


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], **rules: Rule) -> None:
    """Check arguments of a function by its annotations and by rules, as :func:`check_fields`.

    Raises:
        UsageError: Something else is there.
    """
    hints = get_type_hints(function)
    for name, value in given.items():
        _typed(name, value, hints[name])
        if name in rules:
            check_value(name, value, rules[name])


def check_value(name: str, value: Any, rule: Rule) -> None:
    """Check a value, or each of several, by a rule; None is no value.

    Raises:
        UsageError: It is not allowed.
    """
    if value is None:
        return
    if isinstance(value, Mapping):
        value = (*value, *value.values())
    if isinstance(value, tuple | list | Set):
        for one in value:
            check_value(name, one, rule)
    elif isinstance(rule, Range):
        if value < rule.least or (rule.is_open and value == rule.least):
            bound = "above" if rule.is_open else "at least"
            raise UsageError(f"{name} is {value}; it must be {bound} {rule.least:g}")
        if value > rule.most:
            raise UsageError(f"{name} is {_shown(value)}; it must be at most {rule.most:g}")
    elif isinstance(rule, Pattern):
        if not rule.regex.fullmatch(value):
            raise UsageError(f"{name} {value!r} {rule.what}", hint=rule.hint)
    elif value not in rule:
        raise not_among(name, value, rule)


def not_among(name: str, value: Any, allowed: Collection[str]) -> UsageError:
    """Return the error for a value that is none of those allowed."""
    from difflib import get_close_matches

    said = str(value).removeprefix("torch.")
    word = _WORDS.get(said.lower(), said)
    meant = [word] if word in allowed else get_close_matches(said.lower(), allowed, 1)
    choices = ", ".join(allowed)
    known = f"there are {choices}" if len(allowed) > 1 else f"it must be {choices}"
    hint = f"did you mean {meant[0]}? There are {choices}" if meant else known
    return UsageError(f"{name} {value!r} is not known", hint=hint)


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its declaration has it.

    Raises:
        UsageError: It cannot be that.
    """
    if hint is Any:
        return value
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in inside:
            return None
        some = [one for one in inside if one is not NoneType]
        if len(some) == 1:
            return _typed(name, value, some[0])
        if any(_fits(value, one) for one in some):
            return value
        raise _of_wrong_type(name, value, some[0])
    if origin in (tuple, frozenset):
        if not isinstance(value, list | tuple | Set):
            raise UsageError(f"{name} is {_shown(value)}; it must be several: a tuple")
        is_fixed = origin is tuple and Ellipsis not in inside
        kinds = inside if is_fixed else inside[:1] * len(value)
        if len(kinds) != len(value):
            raise UsageError(f"{name} is {_shown(value)}; it must be {len(kinds)} values")
        found = [_typed(name, one, kind) for one, kind in zip(value, kinds, strict=True)]
        return value if type(value) is origin and found == list(value) else origin(found)
    if origin in (dict, Mapping) or hint is Mapping:
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} is {_shown(value)}; it must be a mapping")
        made = {
            _typed(f"a key of {name}", key, inside[0]): _typed(f"{name}[{key!r}]", one, inside[1])
            for key, one in value.items()
        }
        return value if made == value else made
    if origin is not None or hint is Callable:
        if not callable(value):
            raise UsageError(f"{name} is {_shown(value)}; it must be a function")
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        values = [str(one.value) for one in hint]
        if not isinstance(value, str) or value not in values:
            raise not_among(name, value, values)
        return hint(value)
    if hint is Path and isinstance(value, str | os.PathLike):
        return value if isinstance(value, Path) else Path(value)
    if not _fits(value, hint):
        raise _of_wrong_type(name, value, hint)
    if hint is int and abs(value) >= 1 << 63:
        raise UsageError(f"{name} is {_shown(value)}; no such number fits 64 bits")
    if hint is float and not math.isfinite(value):
        raise UsageError(f"{name} is {value}; it must be a finite number")
    return value


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, kind)


def _of_wrong_type(name: str, value: Any, hint: Any) -> UsageError:
    kind = get_origin(hint) or hint
    return UsageError(f"{name} is {_shown(value)}; it must be {_NAMES.get(kind, kind.__name__)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
