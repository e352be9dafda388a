"""The facts of a card that no file of a release holds: a TOML file, with a closed list of keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaeconv.checkpoint.toml_file import build, read_toml
from vaeconv.common.option_checks import check_fields

DEFAULT_TAGS = ("stable-diffusion", "stable-diffusion-diffusers", "vae", "autoencoder-kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardMeta:
    """Facts of a model that people state for its card.

    Attributes:
        title: The heading; by default the repository's name.
        model: Row of the evaluation that this model is, if there are several.
        repo_id: ``owner/name`` of the repository in the diffusers layout.
        original_repo_id: ``owner/name`` of the repository with the CompVis file.
        original_file: Name of the CompVis file.
        license: Identifier of the licence, as the Hub knows it; ``other`` for another one.
        license_name: Name of a licence that is ``other``, such as ``my-license-1.0``.
        license_link: Address of its text, or the file in the release.
        base_model: ``owner/name`` of the model that training started from.
        base_model_relation: ``finetune``, ``quantized``, ``adapter`` or ``merge``.
        pipeline: ``owner/name`` of a pipeline to use it with, for the snippet.
        tags: Tags of the model on the Hub.
        datasets: Hub datasets that it was trained on.
        summary: Short description of the model, in Markdown.
        training: Description of the training, in Markdown.
        limits: Limitations of the model, in Markdown.
        facts: Names and values of facts on the training, for a table.
        inference: Let the Hub show an inference widget.
        eval_titles: Title of each evaluation's table, in the order of ``--eval``.

    Example:
        >>> CardMeta(title="My VAE", license="mit", base_model="stabilityai/sd-vae-ft-mse").license
        'mit'
    """

    title: str = ""
    model: str = ""
    repo_id: str = ""
    original_repo_id: str = ""
    original_file: str = ""
    license: str = ""
    license_name: str = ""
    license_link: str = ""
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

    def __post_init__(self) -> None:
        check_fields(self)


def read_meta(path: Path) -> CardMeta:
    """Read the facts of a card from a TOML file.

    Raises:
        UsageError: The file is not TOML, or a key is unknown or of another type.
    """
    return build(CardMeta, read_toml(path), str(path))
