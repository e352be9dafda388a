"""Values of a release file that name what only the run knows: the tag, home, the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vaeconv.errors import UsageError, VaeconvError
from vaeconv.publish.hub.push_options import is_ref
from vaeconv.publish.release.config import PATHS, ReleaseConfig
from vaeconv.weights.output_names import no_path

_TAG = r"\{\{tag\}\}|\{tag\}"
_VARIABLE = r"\$(?:\{(?P<braced>\w+)\}|(?P<name>\w+))"
_IN_TEXT = re.compile(_TAG)
_IN_PATH = re.compile(rf"{_TAG}|{_VARIABLE}", re.ASCII)
_PLACEHOLDER = re.compile(r"(?<![{$])\{(\w+)\}(?!\})")
_HOW_TO_TAG = "name it with --tag, or set VAECONV_TAG; CI sets GITHUB_REF_NAME and CI_COMMIT_TAG"


def _find_tag() -> str | None:
    """Find the tag that this run is for, as CI's variables say; an empty one is not set."""
    is_tag = os.environ.get("GITHUB_REF_TYPE") == "tag"
    return (
        os.environ.get("VAECONV_TAG")
        or (os.environ.get("GITHUB_REF_NAME") if is_tag else None)
        or os.environ.get("CI_COMMIT_TAG")
        or None
    )


def fill_in(config: ReleaseConfig, tag: str | None, problems: list[VaeconvError]) -> ReleaseConfig:
    """Put the tag and the environment into a release file's values.

    ``{tag}`` stands for the tag in every text, ``{{tag}}`` for those five characters. In paths
    ``~`` is a home folder, and ``$NAME`` or ``${NAME}`` an environment variable.

    Args:
        config: The file.
        tag: The tag that was given; None for the one that the environment has.
        problems: Where what is wrong is added.
    """
    filler = _Filler(tag or _find_tag(), problems)
    filled = replace(
        config,
        **{one.name: filler.table(one.name, getattr(config, one.name)) for one in fields(config)},
    )
    if tag is None or filler.is_used:
        return filled
    if not config.push.repo_id:
        what = f"--tag {tag} has no effect: nothing is pushed, and no value has {{tag}}"
        problems.append(UsageError(what, hint="give repo_id in [push]"))
    return replace(filled, push=replace(filled.push, tag=tag))


class _Filler:
    def __init__(self, tag: str | None, problems: list[VaeconvError]) -> None:
        self._tag = tag
        self._problems = problems
        self._key = ("", "")
        self.is_used = False

    def table(self, name: str, table: Any) -> Any:
        changes = {}
        for one in fields(table):
            self._key = (name, one.name)
            changes[one.name] = self._value(getattr(table, one.name))
        return replace(table, **changes)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, tuple):
            return tuple(map(self._value, value))
        if isinstance(value, Mapping):
            return {name: self._value(one) for name, one in value.items()}
        return value

    def _text(self, text: str) -> str:
        if self._key[0] != "card":  # whose braces are people's own
            for name in _PLACEHOLDER.findall(text):
                if name != "tag":
                    self._refuse(
                        f"{{{name}}} is not a placeholder", "{tag} is the only placeholder"
                    )
        return self._path(text) if self._key in PATHS else _IN_TEXT.sub(self._put, text)

    def _put(self, found: re.Match[str]) -> str:
        """Give what stands for a tag, which is text, whatever is in it, or for a variable."""
        if found[0].startswith("$"):
            name = found["braced"] or found["name"]
            if not (value := os.environ.get(name, "")):
                self._refuse(f"the environment variable {name} is not set")
            return value
        if found[0] == "{{tag}}":
            return "{tag}"
        self.is_used = True
        if self._tag is None:
            self._refuse("has {tag}, but no tag is known", _HOW_TO_TAG)
        elif not is_ref(self._tag):
            self._refuse(f"{self._tag!r} is not a name that git allows for a tag", _HOW_TO_TAG)
        return self._tag or "tag"

    def _path(self, text: str) -> str:
        path = _IN_PATH.sub(self._put, text)
        if not path.strip():
            # An empty path is the current folder to the system, and never what is meant.
            self._refuse("is empty", "leave the key out, or name a path")
        if reason := no_path(path):
            self._refuse(reason)
            return "unnamed"  # so that the rest can be looked at
        if text.startswith("~"):
            try:
                path = str(Path(path).expanduser())
            except RuntimeError:
                self._refuse(f"there is no home folder for {path}")
        return path

    def _refuse(self, what: str, hint: str | None = None) -> None:
        table, key = self._key
        self._problems.append(UsageError(f"[{table}] {key}: {what}", hint=hint))
