"""The facts of a card that no file of a release holds: a TOML file, with a closed list of keys."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vaeconv.errors import UsageError

DEFAULT_TAGS = ("stable-diffusion", "stable-diffusion-diffusers", "vae", "autoencoder-kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardMeta:
    """What people know of a model.

    Attributes:
        title: The heading; by default the repository's name.
        model: Which row of the evaluation this model is, where there are several.
        repo_id: ``owner/name`` of the repository in the diffusers layout.
        original_repo_id: Of the one with the CompVis file.
        original_file: That file.
        license: Identifier of the licence, as the Hub knows it.
        base_model: ``owner/name`` of what it was trained from.
        base_model_relation: ``finetune``, ``quantized``, ``adapter`` or ``merge``.
        pipeline: ``owner/name`` of a pipeline to use it with, for the snippet.
        tags: For the Hub.
        datasets: Hub datasets that it was trained on.
        summary: What it is, in Markdown.
        training: What is to be said of its training, in Markdown.
        limits: What it is not good at, in Markdown.
        facts: Name and value of training facts, for a table.
        inference: Whether the Hub shows a widget.
        eval_titles: Title of each evaluation's table, in the order of ``--eval``.
    """

    title: str = ""
    model: str = ""
    repo_id: str = ""
    original_repo_id: str = ""
    original_file: str = ""
    license: str = ""
    base_model: str = ""
    base_model_relation: str = "finetune"
    pipeline: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    tags: tuple[str, ...] = DEFAULT_TAGS
    datasets: tuple[str, ...] = ()
    summary: str = ""
    training: str = ""
    limits: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    inference: bool = False
    eval_titles: tuple[str, ...] = ()


def read_meta(path: Path) -> CardMeta:
    """Read the facts.

    Raises:
        UsageError: It is no TOML, or a key is unknown or of another type.
    """
    try:
        table = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"not a TOML file ({error})", where=str(path)) from error
    return meta_of(table, str(path))


def meta_of(table: Mapping[str, Any], where: str) -> CardMeta:
    """Check a table of facts.

    Raises:
        UsageError: A key is unknown or of another type.
    """
    defaults = {one.name: getattr(CardMeta(), one.name) for one in fields(CardMeta)}
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in defaults:
            meant = get_close_matches(key, defaults, 1)
            hint = f"did you mean {meant[0]}?" if meant else f"known: {', '.join(defaults)}"
            raise UsageError(f"unknown key {key}", where=where, hint=hint)
        default = defaults[key]
        if isinstance(default, tuple):
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise UsageError(f"{key} is a list of texts", where=where)
            found[key] = tuple(value)
        elif not isinstance(value, type(default)):
            kind = {str: "a text", bool: "true or false", dict: "a table"}[type(default)]
            raise UsageError(f"{key} is {kind}", where=where)
        else:
            found[key] = value
    return CardMeta(**found)


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML, also on Python 3.10.

    Raises:
        ValueError: It is none.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.loads(text)
    return document
