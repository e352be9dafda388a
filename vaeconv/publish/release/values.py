"""Values of a release file that name what only the run knows: the tag, home, the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from vaeconv.errors import UsageError, VaeconvError
from vaeconv.publish.hub.push_options import is_ref
from vaeconv.publish.release.config import PATHS, ReleaseConfig
from vaeconv.weights.output_names import no_path

_TAG = re.compile(r"\{\{tag\}\}|\{tag\}")
_FIELD = re.compile(r"(?<![{$])\{(\w+)\}(?!\})")
_FILLED = re.compile(
    rf"(?P<tag>{_TAG.pattern})|\$(?:\{{(?P<braced>\w+)\}}|(?P<name>\w+))", re.ASCII
)
_HOW_TO_TAG = "name it with --tag, or set VAECONV_TAG; CI sets GITHUB_REF_NAME and CI_COMMIT_TAG"


def find_tag(environ: Mapping[str, str] | None = None) -> str | None:
    """Find the tag that this run is for; None where it is for none.

    In this order: ``VAECONV_TAG``; in GitHub's CI ``GITHUB_REF_NAME``, where ``GITHUB_REF_TYPE``
    says that it is a tag; in GitLab's ``CI_COMMIT_TAG``. An empty one is not set.
    """
    environ = os.environ if environ is None else environ
    is_tag = environ.get("GITHUB_REF_TYPE") == "tag"
    return (
        environ.get("VAECONV_TAG")
        or (environ.get("GITHUB_REF_NAME") if is_tag else None)
        or environ.get("CI_COMMIT_TAG")
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
    filler = _Filler(tag or find_tag(), problems)
    filled = replace(
        config,
        **{
            table.name: filler.table(table.name, getattr(config, table.name))
            for table in fields(config)
        },
    )
    if tag is None or filler.is_used:
        return filled
    if not config.push.repo_id:
        problems.append(
            UsageError(
                f"--tag {tag} has no effect: nothing is pushed, and no value has {{tag}}",
                hint="give repo_id in [push]",
            )
        )
    return replace(filled, push=replace(filled.push, tag=tag))


class _Filler:
    def __init__(self, tag: str | None, problems: list[VaeconvError]) -> None:
        self._tag = tag
        self._problems = problems
        self.is_used = False

    def table(self, name: str, table: Any) -> Any:
        changes = {
            key.name: self._value((name, key.name), getattr(table, key.name))
            for key in fields(table)
        }
        return replace(table, **changes)

    def _value(self, key: tuple[str, str], value: Any) -> Any:
        if isinstance(value, str):
            return self._text(key, value)
        if isinstance(value, tuple):
            return tuple(self._value(key, one) for one in value)
        if isinstance(value, Mapping):
            return {name: self._value(key, one) for name, one in value.items()}
        return value

    def _text(self, key: tuple[str, str], text: str) -> str:
        if key[0] != "card":  # whose braces are people's own
            for name in _FIELD.findall(text):
                if name != "tag":
                    what = f"{{{name}}} is not a placeholder"
                    self._refuse(key, what, "{tag} is the only placeholder")
        if key in PATHS:
            return self._path(key, text)
        return _TAG.sub(partial(self._put_tag, key), text)

    def _put_tag(self, key: tuple[str, str], found: re.Match[str]) -> str:
        if found[0].startswith("{{"):
            return "{tag}"
        self.is_used = True
        if self._tag is None:
            self._refuse(key, "has {tag}, but no tag is known", _HOW_TO_TAG)
        elif not is_ref(self._tag):
            self._refuse(key, f"{self._tag!r} is not a name that git allows for a tag", _HOW_TO_TAG)
        return self._tag or "tag"

    def _path(self, key: tuple[str, str], text: str) -> str:
        def put(found: re.Match[str]) -> str:
            if found["tag"]:  # which is text, whatever is in it
                return self._put_tag(key, found)
            name = found["braced"] or found["name"]
            value = os.environ.get(name, "")
            if not value:
                self._refuse(key, f"the environment variable {name} is not set")
            return value

        path = _FILLED.sub(put, text)
        if not path.strip():
            # An empty path is the current folder to the system, and never what is meant.
            self._refuse(key, "is empty", "leave the key out, or name a path")
        if reason := no_path(path):
            self._refuse(key, reason)
            return "unnamed"  # so that the rest can be looked at
        if text.startswith("~"):
            try:
                path = str(Path(path).expanduser())
            except RuntimeError:
                self._refuse(key, f"there is no home folder for {path}")
        return path

    def _refuse(self, key: tuple[str, str], what: str, hint: str | None = None) -> None:
        self._problems.append(UsageError(f"[{key[0]}] {key[1]}: {what}", hint=hint))
