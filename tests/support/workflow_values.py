"""Workflows of GitHub Actions as text: expressions, conditions, and files of values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

_TOKENS = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>\d+)|(?P<name>[A-Za-z_][\w.-]*)"
    r"|(?P<sign>&&|\|\||==|!=|!|[(),]))"
)
_SIGNS = {"&&": " and ", "||": " or ", "!": " not "}
_STATUS = re.compile(r"\b(always|failure|success|cancelled)\(")


def read_workflow(text: str) -> dict[str, Any]:
    """Read a workflow; YAML 1.1 takes ``on`` for true."""
    found = yaml.safe_load(text)
    if True in found:
        found["on"] = found.pop(True)
    return dict(found)


# --- expressions ---


def evaluate(text: str, contexts: Mapping[str, Any], failed: bool = False) -> Any:
    """Compute an expression, such as ``steps.run.outputs.pushed == 'true'``."""
    functions: dict[str, Callable[..., Any]] = {
        "always": lambda: True,
        "success": lambda: not failed,
        "failure": lambda: failed,
        "cancelled": lambda: False,
        "startsWith": lambda whole, part: as_text(whole).lower().startswith(part.lower()),
        "fromJSON": json.loads,
        "look": lambda name: _look_up(name, contexts),
    }
    parts, at = [], 0
    while text[at:].strip():
        token = _TOKENS.match(text, at)
        assert token, f"no such expression here: {text[at:]}"
        at = token.end()
        if token["text"]:
            parts.append(repr(token["text"][1:-1].replace("''", "'")))
        elif token["name"] in ("true", "false"):
            parts.append(token["name"].capitalize())
        elif token["name"]:
            is_call = text[at:].startswith("(")
            parts.append(token["name"] if is_call else f"look({token['name']!r})")
        else:
            parts.append(_SIGNS.get(token[0].strip(), token[0]))
    return eval("".join(parts), {"__builtins__": {}}, functions)


def _look_up(name: str, contexts: Mapping[str, Any]) -> Any:
    found: Any = contexts
    first, *others = name.split(".")
    assert first in contexts, f"no such context: {name}"
    for part in (first, *others):
        found = found.get(part, "") if isinstance(found, Mapping) else ""
    return found


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def fill(value: Any, contexts: Mapping[str, Any], failed: bool = False) -> Any:
    """Put values into ``${{ }}``, in whatever a workflow has."""
    if isinstance(value, Mapping):
        return {key: fill(one, contexts, failed) for key, one in value.items()}
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\s*\$\{\{(.*?)\}\}\s*", value, re.DOTALL)
    if whole and "${{" not in whole[1]:
        return evaluate(whole[1], contexts, failed)
    return re.sub(
        r"\$\{\{(.*?)\}\}", lambda one: as_text(evaluate(one[1], contexts, failed)), value
    )


def holds(condition: Any, contexts: Mapping[str, Any], failed: bool) -> bool:
    """Whether a step or job runs; one without a status function needs success before it."""
    text = "success()" if condition is None else as_text(condition)
    text = re.sub(r"^\s*\$\{\{(.*)\}\}\s*$", r"\1", text, flags=re.DOTALL)
    return bool(evaluate(text, contexts, failed)) and (bool(_STATUS.search(text)) or not failed)


def read_values(text: str) -> dict[str, str]:
    """Read ``name=value`` lines, and values of several lines between delimiters."""
    found: dict[str, str] = {}
    lines = iter(text.split("\n"))
    for line in lines:
        name, sign, value = re.match(r"([^=<]*)(=|<<|$)(.*)", line).groups()  # type: ignore[union-attr]
        if sign == "=":
            found[name] = value
        elif sign == "<<":
            held: list[str] = []
            while (one := next(lines)) != value:
                held.append(one)
            found[name] = "\n".join(held)
    return found
