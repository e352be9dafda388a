"""The front matter of a card: the one place that takes a card apart and puts it together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vaeconv.errors import InputError

_MAX = 1 << 20  # bytes of a card
_FENCE = r"---[ \t]*"
# What may stand above: blank lines and HTML comments.
_ABOVE = re.compile(r"(?:[ \t]*\n|[ \t]*<!--(?:(?!-->).)*-->[ \t]*(?:\n|\Z))*", re.DOTALL)
# ``...`` ends a YAML document as well.
_BLOCK = re.compile(rf"{_FENCE}\n(?P<yaml>(?:.*\n)*?)(?:{_FENCE}|\.\.\.[ \t]*)(?:\n|\Z)")


class Card(NamedTuple):
    """A card, taken apart.

    Attributes:
        front: The front matter, in the card's order; empty for none.
        body: The Markdown below it.
        has_front: Whether there is front matter, be it empty.
        is_first: Whether nothing stands above it: elsewhere the Hub does not see it.
    """

    front: dict[str, Any]
    body: str
    has_front: bool
    is_first: bool = True


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        InputError: It cannot be read, or its front matter is broken.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise InputError("not a file", where=str(path))
        if path.stat().st_size > _MAX:
            raise InputError("larger than any card", where=str(path))
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 text ({error.reason} at byte {error.start})",
            where=str(path),
            hint="save it as UTF-8",
        ) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from error
    return split_card(text, str(path))


def split_card(text: str, where: str | None = None) -> Card:
    r"""Take a card apart.

    A byte order mark, ``\r\n``, and blank lines or comments above the front matter are no reason
    not to see it.

    Args:
        text: The card.
        where: What to call it in errors.

    Raises:
        InputError: The front matter is broken.
    """
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    above = _ABOVE.match(text)
    start = above.end() if above else 0
    comments = text[:start].strip("\n")
    match = _BLOCK.match(text, start)
    if match is None:
        if re.compile(rf"{_FENCE}(?:\n|\Z)").match(text, start) and not comments:
            raise InputError(
                "the front matter has no end",
                where=where,
                hint="a line of three hyphens ends it",
            )
        return Card({}, text, has_front=False)
    try:
        front = _load(match["yaml"])
    except InputError as error:
        if comments:  # a rule, and another one further down
            return Card({}, text, has_front=False)
        raise InputError(f"the front matter {error.what}", where=where, hint=error.hint) from error
    body = text[match.end() :]
    if comments:
        body = f"\n{comments}\n\n{body.lstrip()}"
    return Card(front, body, has_front=True, is_first=not comments)


def join_card(front: Mapping[str, Any], body: str) -> str:
    """Put a card together."""
    return f"{dump_front(front)}\n{body.lstrip()}"


def dump_front(front: Mapping[str, Any]) -> str:
    """Write front matter, with the lines around it."""
    import yaml

    if not front:
        return "---\n---\n"
    text = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def _load(text: str) -> dict[str, Any]:
    """Read YAML that people wrote.

    Raises:
        InputError: It is no mapping of names, or has what no front matter needs.
    """
    import yaml

    try:
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them make gigabytes
                raise InputError(f"refers to itself (*{event.anchor})", hint="write it out")
        node = yaml.compose(text, yaml.SafeLoader)
        _check_keys(node)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 2}" if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"cannot be read ({reason}{line})", hint="fix README.md") from error
    except (ValueError, RecursionError) as error:  # 2024-02-31 is no date
        raise InputError(f"cannot be read ({error})", hint="fix README.md") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(
            "cannot be read: it is not a list of names and values", hint="fix README.md"
        )
    odd = [key for key in data if not isinstance(key, str)]
    if odd:
        raise InputError(f"has a key that YAML reads as {odd[0]!r}", hint="put quotes around it")
    return data


def _check_keys(node: Any) -> None:
    """Refuse a key that stands twice: YAML's reader takes the last one without a word."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise InputError(
                        f"has the key {key.value} twice, again in line {key.start_mark.line + 2}",
                        hint="remove one of them",
                    )
                seen.add(key.value)
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _check_keys(one)
